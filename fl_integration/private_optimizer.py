"""Differentially private training in plain PyTorch: per-example clipping and noise of any law.

Symbols: N examples, q sampling rate, n examples in a batch, C clip, d trained coordinates. The
noise is in units of C: ``noise.scaled(C)`` is added to the sum of the clipped gradients, which is
then divided by q·N, whatever n is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from accountants import Ledger
from dpmech import Mechanism, Noise
from dpmech.noise import checked_positive
from fl_integration.clipping import ClippedSum
from fl_integration.ghost import GhostGradients, refuse_mixing
from fl_integration.gradient_release import gradient_release, spent
from fl_integration.noise_sampler import sampler
from fl_integration.sampler import poisson_cohort

__all__ = [
    "ExampleGradients",
    "GhostGradients",
    "PoissonBatches",
    "PrivateOptimizer",
    "VmapGradients",
    "poisson_loader",
]


class ExampleGradients(Protocol):
    """A way to the sum of a batch's clipped gradients."""

    def clipped_sum(
        self, parameters: Sequence[nn.Parameter], batch: Sequence[Tensor], *, clip: float
    ) -> Tensor:
        """The sum of gradients of l2 norm <= ``clip``, flat, (d,) in fp64."""
        ...


@dataclass(frozen=True, kw_only=True)
class VmapGradients:
    """Clipped sums by `torch.func.vmap`: for any module that vmap can follow.

    **Guarantees**

    * No example's gradient depends on another: each is computed as a batch of one.
    * The sum is that of `ClippedSum`: norms of C at most, rounding included; an example whose
      gradient is not finite adds nothing.

    Arguments:
        model: the module. loss: (model, *batch) -> (n,), every example's own loss.
        chunk: examples whose gradients are in memory together.

    Raises:
        ValueError: for modules that keep statistics of batches.
    """

    model: nn.Module
    loss: Callable[..., Tensor]
    chunk: int = 32

    def __post_init__(self) -> None:
        refuse_mixing(self.model)

    def clipped_sum(
        self, parameters: Sequence[nn.Parameter], batch: Sequence[Tensor], *, clip: float
    ) -> Tensor:
        """The sum of the clipped gradients of a batch by ``parameters``, flat, (d,) in fp64."""
        total = ClippedSum(sum(p.numel() for p in parameters), clip)
        weights = self._named(parameters)
        gradients = vmap(
            grad(self._one), in_dims=(None, *(0 for _ in batch)), randomness="different"
        )
        for part in zip(*(x.split(self.chunk) for x in batch), strict=True):
            if len(part[0]):
                found = cast(dict[str, Tensor], gradients(weights, *part))
                total.add_rows(torch.cat([found[key].flatten(1) for key in weights], dim=1))
        return total.value.to(parameters[0].device)

    def _one(self, weights: dict[str, Tensor], *example: Tensor) -> Tensor:
        """The loss of one example, as of a batch of one."""
        batch = tuple(x.unsqueeze(0) for x in example)
        losses = cast(Tensor, functional_call(self._called, weights, batch))
        if losses.shape != (1,):
            raise ValueError(
                f"Expected the losses of a batch of one, of shape {tuple(losses.shape)}, to be "
                "(1,): one an example, as with reduction='none'."
            )
        return losses[0]

    @cached_property
    def _called(self) -> _Losses:
        return _Losses(self.model, self.loss)

    def _named(self, parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        names = {p: name for name, p in self._called.named_parameters()}
        foreign = sum(p not in names for p in parameters)
        if foreign:
            raise ValueError(
                f"Expected the optimiser's {len(parameters)} parameters to be the model's, got "
                f"{foreign} that are not: make it of model.parameters(), after moving the model."
            )
        return {names[p]: p.detach() for p in parameters}


class _Losses(nn.Module):
    """The losses of a model as a module's forward, which is what `functional_call` calls."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self._loss(self.model, *batch)


class PrivateOptimizer:
    """A `torch.optim` optimiser whose every step is a mechanism in a ledger.

    **Guarantees**

    * :meth:`epsilon` is a proved upper bound for one example added or removed, for batches that
      come from ``loader`` and are each used for one step, provided that an example's gradient does
      not depend on its company (`VmapGradients` computes each alone; `GhostGradients` checks one).
    * The noise is one draw for all parameters together, added in fp64, to an empty batch as to any
      other; what is accounted for is what is drawn.

    Arguments:
        optimizer: takes the steps; schedulers of its learning rate act on it. gradients: how the
            clipped sum is computed. loader: of `poisson_loader`: its rate is the one accounted.
        noise: the law added to the sum, in units of the clip. clip: C > 0.
        generator: makes the noise repeatable, for experiments only; None for secret noise.

    Raises:
        NoDominatingPair: where nothing is proved for the law on so many coordinates.
        ValueError: for another loader, and an optimiser that trains nothing.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        gradients: ExampleGradients,
        loader: DataLoader[Any],
        *,
        noise: Noise,
        clip: float,
        generator: torch.Generator | None = None,
    ) -> None:
        batches = loader.batch_sampler
        if not isinstance(batches, PoissonBatches):
            raise ValueError(
                f"Expected the loader's batches to be PoissonBatches, got {type(batches).__name__}:"
                " no amplification is proved for others. Make it with poisson_loader."
            )
        self._optimizer, self._gradients, self._generator = optimizer, gradients, generator
        self._clip, self._expected = checked_positive("clip", clip), batches.expected
        dim = sum(p.numel() for p in self._parameters)
        self._release = gradient_release(noise, dim=max(dim, 1), rate=batches.rate)
        self._draws, self._ledger = sampler(noise.scaled(clip)), Ledger()
        gradients.clipped_sum(self._parameters, (), clip=clip)  # refuses before any step is taken

    def step(self, *batch: Tensor) -> None:
        """One release and one step of the optimiser, for a batch of the loader.

        Arguments:
            batch: what the loss takes after the model, each (n, ...); n = 0 is a batch, too.

        Raises:
            ValueError: where parameters were frozen, freed or added since.
        """
        parameters = self._parameters
        total = self._gradients.clipped_sum(parameters, batch, clip=self._clip)
        if len(total) != self._release.sensitivity.dim:
            raise ValueError(
                f"Expected dim={len(total)} of the parameters to be "
                f"{self._release.sensitivity.dim}, which is accounted for."
            )
        (noise,) = self._draws.like([total], generator=self._generator)
        mean = (total + noise) / self._expected
        sizes = [p.numel() for p in parameters]
        for p, part in zip(parameters, mean.split(sizes), strict=True):
            p.grad = part.view_as(p).to(p.device, p.dtype)
        self._ledger = self._ledger.add(self._release)
        self._optimizer.step()

    @property
    def _parameters(self) -> list[nn.Parameter]:
        groups = self._optimizer.param_groups
        return [p for group in groups for p in group["params"] if p.requires_grad]

    @property
    def release(self) -> Mechanism:
        """The mechanism of a step, its noise in units of the clip."""
        return self._release

    @property
    def ledger(self) -> Ledger:
        """The mechanisms of the steps so far."""
        return self._ledger

    def epsilon(self, delta: float) -> float:
        """A proved upper bound on the epsilon so far at ``delta``; 0 before the first step."""
        return spent(self._ledger, delta)


class PoissonBatches(Sampler[list[int]]):
    """Batches of indices: every example is in each with probability ``rate``, independently.

    Arguments:
        examples: N >= 1. rate: q in (0, 1]. steps: batches in a pass. rng: makes them repeatable,
            for experiments only; None for draws that stay secret, which amplification needs.

    >>> len(list(PoissonBatches(100, rate=0.1, steps=3)))
    3
    """

    def __init__(
        self, examples: int, *, rate: float, steps: int, rng: np.random.Generator | None = None
    ) -> None:
        if not (examples >= 1 and steps >= 1 and 0 < rate <= 1):
            raise ValueError(
                f"Expected examples={examples} >= 1, steps={steps} >= 1 and rate={rate} in (0, 1]."
            )
        self.examples, self.rate, self.steps = examples, rate, steps
        self._rng = np.random.default_rng() if rng is None else rng

    @property
    def expected(self) -> float:
        """q·N, the denominator of every step."""
        return self.rate * self.examples

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.steps):
            yield poisson_cohort(self.examples, rate=self.rate, rng=self._rng).tolist()


def poisson_loader(
    dataset: Dataset[Any],
    *,
    rate: float,
    steps: int,
    collate: Callable[[list[Any]], Any] = default_collate,
    rng: np.random.Generator | None = None,
) -> DataLoader[Any]:
    """A loader of Poisson batches, empty ones among them.

    **Guarantees**

    * An empty batch has the form of any other, with tensors of 0 examples: it is a step like any
      other, and to skip it would tell that nobody was drawn.

    Arguments:
        dataset: with a length; its first example gives empty batches their form. rate, steps, rng:
            those of `PoissonBatches`. collate: examples to a tensor, or a list or dict of tensors.

    >>> from torch.utils.data import TensorDataset
    >>> loader = poisson_loader(TensorDataset(torch.ones(4, 3)), rate=1.0, steps=2)
    >>> [len(x) for (x,) in loader]
    [4, 4]
    """
    batches = PoissonBatches(len(cast(Any, dataset)), rate=rate, steps=steps, rng=rng)
    form = _Collate(dataset=dataset, collate=collate)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=form)


@dataclass(frozen=True, kw_only=True)
class _Collate:
    """Collates a batch, or nobody; a class, so that worker processes can be sent it."""

    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any]

    def __call__(self, examples: list[Any]) -> Any:
        return self.collate(examples) if examples else _nobody(self.collate([self.dataset[0]]))


def _nobody(batch: Any) -> Any:
    """The same with 0 examples."""
    if isinstance(batch, Tensor):
        return batch[:0]
    if isinstance(batch, Mapping):
        return {key: _nobody(value) for key, value in batch.items()}
    return [_nobody(value) for value in batch]
