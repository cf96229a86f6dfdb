"""Low-rank adapters as one flat vector, at any public rank up to the largest.

W = W0 + scale·B·A per target, A ∈ R^{R×n} (random), B ∈ R^{m×R} (zero). At rank b a round sees
only A[:b] and B[:, :b], plus the head (federated.md §1, DP-DyLoRA).

Symbols: R largest rank, b rank of the round, α the adapter's alpha, m×n the shape of W0.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dpmech.noise import checked_positive
from fl_integration.models import default_targets
from fl_integration.scales import Scale, check_rank, effective_scale
from fl_integration.spaces import (
    FlatSpace,
    head_parameters,
    refuse_adapters,
    write_head,
    write_tensors,
)
from fl_integration.tasks import TextModel

ADAPTER = "default"


class AdapterSpace(FlatSpace):
    """The trainable part of a classifier: adapters of rank R, their slices, and the head.

    **Guarantees**: those of `FlatSpace`; A at rank b is the first b rows of A at rank R, B its
    first b columns.

    The flat vector is, for each target in the order of the encoder's modules, A[:b] then B[:, :b],
    both row by row; then the head's weight and bias.

    Args:
        classifier: its encoder is wrapped with adapters in place; once only. Move it to its
            device first.
        rank: R, at least 1, the largest rank.
        alpha: α > 0, finite.
        targets: names of the linear layers that get an adapter; by default `default_targets`.
        generator: draws A, uniform in ±1/√n; a CPU generator.
        scale: how the scale depends on the rank, see `effective_scale`.
    Raises:
        ValueError: a bad argument, a target that the encoder has not, or adapters already there.
    """

    def __init__(
        self,
        classifier: TextModel,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        targets: Sequence[str] | None = None,
        generator: torch.Generator,
        scale: Scale = "rs",
    ) -> None:
        if rank < 1:
            raise ValueError(f"Expected rank={rank} >= 1.")
        checked_positive("alpha", alpha)
        refuse_adapters(classifier)
        effective_scale(scale, alpha=alpha, maximum=rank, rank=rank)  # refuses an unknown mode
        self.classifier, self.rank, self.alpha = classifier, rank, alpha
        self.scale: Scale = scale
        self.targets = tuple(targets or default_targets(classifier.encoder))
        self._transposed = any(
            isinstance(module, Conv1D) and name.endswith(self.targets)
            for name, module in classifier.encoder.named_modules()
        )
        _wrap(classifier, self.config(rank))
        self._layers = [m for m in classifier.encoder.modules() if isinstance(m, LoraLayer)]
        with torch.no_grad():
            for layer in self._layers:
                _draw(_weights(layer)[0], generator)
        self._stored = [p for layer in self._layers for p in _weights(layer)]
        self._stored += head_parameters(classifier)
        names = {id(p): name for name, p in classifier.named_parameters()}
        self.names = tuple(names[id(p)] for p in self._stored)
        for layer in self._layers:
            layer.scaling[ADAPTER] = self.scale_at(rank)

    def config(self, rank: int) -> LoraConfig:
        """The configuration of peft that has the scale of this space at a rank (α/r there)."""
        return LoraConfig(
            r=rank,
            lora_alpha=cast(Any, self.scale_at(rank) * rank),
            target_modules=list(self.targets),
            fan_in_fan_out=self._transposed,
            lora_dropout=0.0,
            bias="none",
            use_rslora=False,
            inference_mode=False,
        )

    def scale_at(self, rank: int) -> float:
        """What multiplies B·A at a rank."""
        return effective_scale(self.scale, alpha=self.alpha, maximum=self.rank, rank=rank)

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
        with self.use_rank(rank):
            config.save_pretrained(str(target))
            write_tensors(target / "adapter_model.safetensors", get_peft_model_state_dict(encoder))
            write_head(self.classifier, target)

    def _slices(self, rank: int) -> list[Tensor]:
        """Views of the stored tensors at a rank, in the flat order."""
        check_rank(rank, self.rank)
        pairs = 2 * len(self._layers)
        cut = [t[:rank] if i % 2 == 0 else t[:, :rank] for i, t in enumerate(self._stored[:pairs])]
        return [*cut, *self._stored[pairs:]]

    def _install(self, parameters: Sequence[nn.Parameter] | None, rank: int) -> None:
        """Put parameters into the modules, in the flat order, and set the scale."""
        given = self._stored if parameters is None else parameters
        for i, layer in enumerate(self._layers):
            layer.lora_A[ADAPTER].weight = given[2 * i]
            layer.lora_B[ADAPTER].weight = given[2 * i + 1]
            layer.scaling[ADAPTER] = self.scale_at(rank)
        head = self.classifier.head
        for name, parameter in zip(self.names, given, strict=True):
            if head is not None and name.startswith("head."):
                setattr(head, name.removeprefix("head."), parameter)


def _wrap(classifier: TextModel, config: LoraConfig) -> None:
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
