"""Low-rank adapters as one flat vector, at any public rank up to the largest.

W = W0 + scale·B·A per target, A ∈ R^{R×n} (random), B ∈ R^{m×R} (zero). At rank b a round sees
only A[:b] and B[:, :b], plus the head (federated.md §1, DP-DyLoRA).

Symbols: R largest rank, b rank of the round, α the adapter's alpha, m×n the shape of W0.
"""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from fl_integration.models import Classifier
from fl_integration.scales import Scale, check_rank, effective_scale

ADAPTER = "default"
HEAD_FILE = "head.safetensors"


class AdapterSpace:
    """The trainable part of a classifier: adapters of rank R, their slices, and the head.

    **Guarantees**: A at rank b is the first b rows of A at rank R, B its first b columns;
    `flatten` after `assign` gives back the vector to the bit in fp32; nothing outside the slice
    changes in `assign`; inside `use_rank` no gradient reaches anything but the slice.

    The flat vector is, for each target in the order of the encoder's modules, A[:b] then B[:, :b],
    both row by row; then the head's weight and bias.

    Args:
        classifier: its encoder is wrapped with adapters in place; once only. Move it to its
            device first.
        rank: R, at least 1, the largest rank.
        alpha: α > 0, finite.
        targets: names of the linear layers of the encoder that get an adapter.
        generator: draws A, uniform in ±1/√n; a CPU generator.
        scale: how the scale depends on the rank, see `effective_scale`.
    Raises:
        ValueError: a bad argument, a target that the encoder has not, or adapters already there.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        targets: Sequence[str] = ("query", "value"),
        generator: torch.Generator,
        scale: Scale = "rs",
    ) -> None:
        if rank < 1:
            raise ValueError(f"Expected rank={rank} >= 1.")
        if not 0.0 < alpha < math.inf:
            raise ValueError(f"Expected alpha={alpha} > 0 and finite.")
        if isinstance(classifier.encoder, PeftModel):
            raise ValueError("Expected a classifier without adapters; load a fresh model.")
        effective_scale(scale, alpha=alpha, maximum=rank, rank=rank)  # refuses an unknown mode
        self.classifier, self.rank, self.alpha = classifier, rank, alpha
        self.scale: Scale = scale
        self.targets = tuple(targets)
        _wrap(classifier, self.config(rank))
        self._layers = [m for m in classifier.encoder.modules() if isinstance(m, LoraLayer)]
        self._live: AdapterSlice | None = None
        with torch.no_grad():
            for layer in self._layers:
                _draw(_weights(layer)[0], generator)
        self._stored = [p for layer in self._layers for p in _weights(layer)] + self._head()
        names = {id(p): name for name, p in classifier.named_parameters()}
        self.names = tuple(names[id(p)] for p in self._stored)
        self._use_scale(rank)

    def config(self, rank: int) -> LoraConfig:
        """The configuration of peft that has the scale of this space at a rank (α/r there)."""
        scale = effective_scale(self.scale, alpha=self.alpha, maximum=self.rank, rank=rank)
        return LoraConfig(
            r=rank,
            lora_alpha=cast(Any, scale * rank),
            target_modules=list(self.targets),
            lora_dropout=0.0,
            bias="none",
            use_rslora=False,
            inference_mode=False,
        )

    def shapes(self, rank: int) -> tuple[torch.Size, ...]:
        """The shapes of the tensors of a slice, in the order of `names`."""
        return tuple(master.shape for master in self._slices(rank))

    def dim(self, rank: int) -> int:
        """The length of the flat vector at a rank."""
        return sum(shape.numel() for shape in self.shapes(rank))

    def head_slice(self, rank: int) -> slice:
        """Which part of the flat vector is the head (it wants a learning rate of its own)."""
        head = sum(parameter.numel() for parameter in self._head())
        return slice(self.dim(rank) - head, self.dim(rank))

    def flatten(self, rank: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a flat copy of the stored slice at a rank, and of the head."""
        return _flat(self._slices(rank), dtype)

    def assign(self, vector: Tensor, rank: int) -> None:
        """Store a flat vector as the slice at a rank and as the head.

        Raises:
            ValueError: a wrong length, or a slice is in use.
        """
        self._idle()
        self.write(vector, self._slices(rank), rank)

    def unflatten(self, vector: Tensor, rank: int) -> dict[str, Tensor]:
        """View a vector (..., dim) as tensors (..., *shape) by name, for `torch.func`.

        Raises:
            ValueError: the last axis is not `dim(rank)` long.
        """
        shapes = self.shapes(rank)
        sizes = [shape.numel() for shape in shapes]
        if vector.shape[-1] != sum(sizes):
            raise ValueError(
                f"Expected a vector of {sum(sizes)} at rank {rank}, got {tuple(vector.shape)}."
            )
        parts = vector.split(sizes, dim=-1)
        return {
            name: part.reshape(*part.shape[:-1], *shape)
            for name, part, shape in zip(self.names, parts, shapes, strict=True)
        }

    @contextmanager
    def use_rank(self, rank: int) -> Generator["AdapterSlice"]:
        """Let the classifier run and train on a copy of the slice at a rank.

        The stored tensors come back on leaving, whatever was trained: read the copy before, and
        `assign` it after.

        Raises:
            ValueError: a rank outside 1..R, or a slice is in use.
        """
        self._idle()
        copies = [nn.Parameter(master.detach().clone()) for master in self._slices(rank)]
        live = AdapterSlice(self, rank, tuple(copies))
        self._live = live
        try:
            self._install(copies)
            self._use_scale(rank)
            yield live
        finally:
            self._install(self._stored)
            self._use_scale(self.rank)
            self._live = None

    def export(self, folder: str | Path, rank: int) -> None:
        """Write the adapter at a rank for `PeftModel.from_pretrained`, and the head beside it.

        **Guarantees**: the encoder's outputs under peft are those under `use_rank(rank)`.

        Args:
            folder: made if missing; gets adapter_config.json, adapter_model.safetensors and
                head.safetensors (weight, bias).
            rank: 1..R.
        """
        target = Path(folder)
        encoder = cast(PeftModel, self.classifier.encoder)
        config = self.config(rank)
        config.inference_mode = True
        config.base_model_name_or_path = encoder.peft_config[ADAPTER].base_model_name_or_path
        target.mkdir(parents=True, exist_ok=True)
        with self.use_rank(rank):
            state = _portable(get_peft_model_state_dict(encoder))
            head = _portable(self.classifier.head.state_dict())
        config.save_pretrained(str(target))
        save_file(state, target / "adapter_model.safetensors", metadata={"format": "pt"})
        save_file(head, target / HEAD_FILE, metadata={"format": "pt"})

    def _head(self) -> list[nn.Parameter]:
        """The head's parameters."""
        head = self.classifier.head
        return [cast(nn.Parameter, head.weight), head.bias]

    def _slices(self, rank: int) -> list[Tensor]:
        """Views of the stored tensors at a rank, in the flat order."""
        check_rank(rank, self.rank)
        adapters = self._stored[:-2]
        cut = [t[:rank] if i % 2 == 0 else t[:, :rank] for i, t in enumerate(adapters)]
        return [*cut, *self._stored[-2:]]

    def _install(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put parameters into the modules, in the flat order."""
        for i, layer in enumerate(self._layers):
            layer.lora_A[ADAPTER].weight = parameters[2 * i]
            layer.lora_B[ADAPTER].weight = parameters[2 * i + 1]
        self.classifier.head.weight, self.classifier.head.bias = parameters[-2:]

    def _use_scale(self, rank: int) -> None:
        """Set the scale of every adapter."""
        value = effective_scale(self.scale, alpha=self.alpha, maximum=self.rank, rank=rank)
        for layer in self._layers:
            layer.scaling[ADAPTER] = value

    def _idle(self) -> None:
        """Refuse while a slice is in use."""
        if self._live is not None:
            raise ValueError(f"Expected no slice in use, got rank {self._live.rank}; leave it.")

    def write(self, vector: Tensor, tensors: Sequence[Tensor], rank: int) -> None:
        """Copy a flat vector of a rank into tensors of its shapes, in the order of `names`."""
        if vector.ndim != 1:
            raise ValueError(f"Expected a 1-D vector at rank {rank}, got {tuple(vector.shape)}.")
        parts = self.unflatten(vector, rank).values()
        with torch.no_grad():
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part)


class AdapterSlice:
    """The copy of a slice that the classifier runs on inside `AdapterSpace.use_rank`."""

    def __init__(
        self, space: AdapterSpace, rank: int, parameters: tuple[nn.Parameter, ...]
    ) -> None:
        self._space, self.rank, self.parameters = space, rank, parameters

    @property
    def scale(self) -> float:
        """What multiplies B·A at this rank."""
        space = self._space
        return effective_scale(space.scale, alpha=space.alpha, maximum=space.rank, rank=self.rank)

    def load(self, vector: Tensor) -> None:
        """Overwrite the copy with a flat vector of this rank (what the server broadcasts)."""
        self._space.write(vector, self.parameters, self.rank)

    def read(self, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a flat copy of the slice as it stands."""
        return _flat(self.parameters, dtype)

    def gradient(self, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the flat gradient; zero where none has arrived."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return _flat(grads, dtype)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None


def _wrap(classifier: Classifier, config: LoraConfig) -> None:
    """Put peft's adapters into the encoder; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        try:
            classifier.encoder = get_peft_model(cast(Any, classifier.encoder), config)
        except ValueError as error:
            raise ValueError(
                f"Expected targets={config.target_modules} to be linear layers: {error}"
            ) from error
    classifier.encoder.eval()


def _weights(layer: LoraLayer) -> list[nn.Parameter]:
    """A and B of an adapted layer."""
    pair = (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
    return [cast(nn.Parameter, weight) for weight in pair]


def _draw(a: Tensor, generator: torch.Generator) -> None:
    """Draw A uniformly in ±1/√n."""
    bound = 1.0 / math.sqrt(a.shape[1])
    uniform = torch.rand(a.shape, generator=generator, dtype=torch.float32)
    a.copy_((2.0 * uniform - 1.0) * bound)


def _flat(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """One flat, detached copy of tensors."""
    return torch.cat([tensor.detach().to(dtype).reshape(-1) for tensor in tensors])


def _portable(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file wants them: detached, contiguous, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
