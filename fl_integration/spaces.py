"""The trainable part of a model as one flat vector, of which a round uses a slice at a public rank.

Symbols: R largest rank, b rank of the round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dpmech.files import write_atomically
from fl_integration.scales import Scale, check_rank
from fl_integration.tasks import TextModel

HEAD_FILE = "head.safetensors"
MODEL_FILE = "model.safetensors"


class FlatSpace(ABC):
    """The trainable tensors of a classifier in one order, the head last.

    **Guarantees**: `flatten` after `assign` gives back the vector to the bit in fp32; nothing
    outside the slice changes in `assign`; inside `use_rank` no gradient reaches anything but the
    slice.
    """

    classifier: TextModel
    rank: int
    alpha: float
    scale: Scale
    names: tuple[str, ...]
    _live: LiveSlice | None = None

    @abstractmethod
    def _slices(self, rank: int) -> list[Tensor]:
        """Views of the stored tensors at a rank, in the flat order."""

    @abstractmethod
    def _install(self, parameters: Sequence[nn.Parameter] | None, rank: int) -> None:
        """Let the classifier run on parameters at a rank; ``None`` for the stored ones."""

    @abstractmethod
    def scale_at(self, rank: int) -> float:
        """What multiplies the slice's own product at a rank."""

    @abstractmethod
    def export(self, folder: str | Path, rank: int) -> None:
        """Write the trained tensors at a rank, as files that others read."""

    def shapes(self, rank: int) -> tuple[torch.Size, ...]:
        """The shapes of the tensors of a slice, in the order of `names`."""
        return tuple(stored.shape for stored in self._slices(rank))

    def dim(self, rank: int) -> int:
        """The length of the flat vector at a rank."""
        return sum(shape.numel() for shape in self.shapes(rank))

    def head_slice(self, rank: int) -> slice:
        """Which part of the flat vector is the head (it wants a learning rate of its own)."""
        head = sum(parameter.numel() for parameter in head_parameters(self.classifier))
        return slice(self.dim(rank) - head, self.dim(rank))

    def index(self, rank: int) -> Tensor:
        """Where the coordinates of the slice lie in the full-size vector, (dim(rank),)."""
        parts: list[Tensor] = []
        offset = 0
        for full, small in zip(self.shapes(self.rank), self.shapes(rank), strict=True):
            places = torch.arange(offset, offset + full.numel()).view(full)
            parts.append(places[tuple(slice(n) for n in small)].reshape(-1))
            offset += full.numel()
        return torch.cat(parts)

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
    def use_rank(self, rank: int) -> Generator[LiveSlice]:
        """Let the classifier run and train on a copy of the slice at a rank.

        The stored tensors come back on leaving, whatever was trained: read the copy before, and
        `assign` it after.

        Raises:
            ValueError: a rank outside 1..R, or a slice is in use.
        """
        self._idle()
        copies = [nn.Parameter(stored.detach().clone()) for stored in self._slices(rank)]
        live = LiveSlice(self, rank, tuple(copies))
        self._live = live
        try:
            self._install(copies, rank)
            yield live
        finally:
            self._install(None, self.rank)
            self._live = None

    def write(self, vector: Tensor, tensors: Sequence[Tensor], rank: int) -> None:
        """Copy a flat vector of a rank into tensors of its shapes, in the order of `names`."""
        if vector.ndim != 1:
            raise ValueError(f"Expected a 1-D vector at rank {rank}, got {tuple(vector.shape)}.")
        parts = self.unflatten(vector, rank).values()
        with torch.no_grad():
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part)

    def _idle(self) -> None:
        """Refuse while a slice is in use."""
        if self._live is not None:
            raise ValueError(f"Expected no slice in use, got rank {self._live.rank}; leave it.")


class LiveSlice:
    """The copy of a slice that the classifier runs on inside `FlatSpace.use_rank`."""

    def __init__(self, space: FlatSpace, rank: int, parameters: tuple[nn.Parameter, ...]) -> None:
        self._space, self.rank, self.parameters = space, rank, parameters

    @property
    def scale(self) -> float:
        """What multiplies B·A at this rank."""
        return self._space.scale_at(self.rank)

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


class PlainSpace(FlatSpace):
    """Some of a classifier's own weights, the same at every rank: there is no product of adapters.

    Args:
        classifier: whose weights they are. named: what is trained, the head last.
        rank, alpha, scale: of the run; nothing here depends on them.
    """

    def __init__(
        self,
        classifier: TextModel,
        named: Sequence[tuple[str, nn.Parameter]],
        *,
        rank: int = 1,
        alpha: float = 1.0,
        scale: Scale = "fixed",
    ) -> None:
        self.classifier, self.rank, self.alpha = classifier, rank, alpha
        self.scale: Scale = scale
        self.names = tuple(name for name, _ in named)
        self._stored = [parameter for _, parameter in named]

    def scale_at(self, rank: int) -> float:
        """1: there is no product of adapters."""
        check_rank(rank, self.rank)
        return 1.0

    def _slices(self, rank: int) -> list[Tensor]:
        check_rank(rank, self.rank)
        return list(self._stored)

    def _install(self, parameters: Sequence[nn.Parameter] | None, rank: int) -> None:
        check_rank(rank, self.rank)
        for name, parameter in zip(self.names, parameters or self._stored, strict=True):
            module, _, leaf = name.rpartition(".")
            setattr(self.classifier.get_submodule(module), leaf, parameter)


class FullSpace(PlainSpace):
    """Every weight of a classifier: full fine-tuning, the reference that adapters are held against.

    There is one rank, 1. The flat vector is every parameter of the encoder in the order of its
    modules, in fp32 whatever the encoder runs in, then the head.

    Args:
        classifier: without adapters; its encoder becomes trainable, in fp32.
    Raises:
        ValueError: adapters are in it.
    """

    def __init__(self, classifier: TextModel) -> None:
        refuse_adapters(classifier)
        classifier.encoder.float().requires_grad_()
        head = {id(p) for p in head_parameters(classifier)}
        named = list(classifier.named_parameters())  # the encoder's come first
        named.sort(key=lambda pair: id(pair[1]) in head)  # stable: the head goes last
        super().__init__(classifier, named)

    def export(self, folder: str | Path, rank: int) -> None:
        """Write all weights as `model.safetensors`, under the names of `names`."""
        state = dict(zip(self.names, self._slices(rank), strict=True))
        write_tensors(Path(folder) / MODEL_FILE, state)


class HeadSpace(PlainSpace):
    """The head of a classifier alone, the same at every rank: what a head start trains.

    The encoder may carry adapters, or be trained later; here it does not move.

    Args:
        classifier: with a head of its own.
        rank, alpha, scale: of the run that the head is for.
    Raises:
        ValueError: there is no head to train.
    """

    def __init__(self, classifier: TextModel, *, rank: int, alpha: float, scale: Scale) -> None:
        if classifier.head is None:
            raise ValueError(
                f"Expected a model with a head to start, got a {type(classifier).__name__} without"
                " one; leave head_start out (--set head_start=none)."
            )
        named = [(f"head.{name}", p) for name, p in classifier.head.named_parameters()]
        super().__init__(classifier, named, rank=rank, alpha=alpha, scale=scale)

    def export(self, folder: str | Path, rank: int) -> None:
        """Write the head as `head.safetensors` (weight, bias)."""
        check_rank(rank, self.rank)
        write_head(self.classifier, Path(folder))


def head_parameters(classifier: TextModel) -> list[nn.Parameter]:
    """The parameters of a classifier's own head, if it has one."""
    return [] if classifier.head is None else list(classifier.head.parameters())


def refuse_adapters(classifier: TextModel) -> None:
    """ValueError for a classifier that has adapters already."""
    if hasattr(classifier.encoder, "peft_config"):
        raise ValueError("Expected a classifier without adapters; load a fresh model.")


def write_tensors(path: Path, state: dict[str, Tensor]) -> None:
    """Write tensors under their names, in a folder that is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    portable = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, save(portable, metadata={"format": "pt"}))


def write_head(classifier: TextModel, folder: Path) -> None:
    """Write a classifier's own head into a folder, if it has one."""
    if classifier.head is not None:
        write_tensors(folder / HEAD_FILE, classifier.head.state_dict())


def _flat(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """One flat, detached copy of tensors."""
    return torch.cat([tensor.detach().to(dtype).reshape(-1) for tensor in tensors])
