"""Differentially private training in plain PyTorch: per-example clipping and noise of any law.

Symbols: N examples, q sampling rate, n examples in a batch, C clip, d trained coordinates. The
noise is in units of C: ``noise.scaled(C)`` is added to the sum of the clipped gradients, which is
then divided by q·N, whatever n is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader

from accountants import Ledger
from dpmech import Mechanism, Noise, Sampling, Sensitivity
from dpmech.noise import checked_positive
from dpmech.release import ExactRelease
from fl_integration.clipping import ClippedSum
from fl_integration.ghost import GhostGradients, refuse_mixing
from fl_integration.gradient_release import gradient_release, spent
from fl_integration.noise_sampler import sampler, words_of
from fl_integration.poisson import PoissonBatches, poisson_loader

__all__ = [
    "ExampleGradients",
    "GhostGradients",
    "PoissonBatches",
    "PrivateOptimizer",
    "VmapGradients",
    "poisson_loader",
]


_FOR_TABLES = 1e-6  # share of delta that is left for what the tables of exact noise add


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
    * With ``exact``, the sum goes to a lattice and the noise is drawn in whole steps
      (:class:`dpmech.release.ExactRelease`): no digit of what is released depends on the data but
      through its step. The release is then in the units of the gradients, its bound a little above
      C, and what the table adds to delta is in :meth:`epsilon`.

    Arguments:
        optimizer: takes the steps; schedulers of its learning rate act on it. gradients: how the
            clipped sum is computed. loader: of `poisson_loader`: its rate is the one accounted.
        noise: the law added to the sum, in units of the clip. clip: C > 0.
        generator: makes the noise repeatable, for experiments only; None for secret noise.
        exact: noise in whole steps, drawn exactly; gaussian, or laplace with its Rényi bound.

    Raises:
        NoDominatingPair: where nothing is proved for the law on so many coordinates.
        ValueError: for another loader, and an optimiser that trains nothing.
    """

    def __init__(  # noqa: PLR0913  # each one a plug of its own
        self,
        optimizer: torch.optim.Optimizer,
        gradients: ExampleGradients,
        loader: DataLoader[Any],
        *,
        noise: Noise,
        clip: float,
        generator: torch.Generator | None = None,
        exact: bool = False,
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
        self._exact: ExactRelease | None = None
        if exact:
            bound = Sensitivity(norm="l2", bound=clip, dim=max(dim, 1))
            self._exact = ExactRelease.of(noise.scaled(clip), bound)
            self._release = self._exact.mechanism(Sampling(rate=batches.rate))
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
        mean = self._noisy(total) / self._expected
        sizes = [p.numel() for p in parameters]
        for p, part in zip(parameters, mean.split(sizes), strict=True):
            p.grad = part.view_as(p).to(p.device, p.dtype)
        self._ledger = self._ledger.add(self._release)
        self._optimizer.step()

    def _noisy(self, total: Tensor) -> Tensor:
        """The sum with one draw for all of it, (d,)."""
        if self._exact is None:
            (noise,) = self._draws.like([total], generator=self._generator)
            return total + noise
        released = self._exact.release(total.cpu().numpy(), words_of(self._generator))
        return torch.from_numpy(released).to(total.device)

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
        if self._exact is None:
            return spent(self._ledger, delta)
        found = spent(self._ledger, delta * (1 - _FOR_TABLES))
        extra = self._exact.extra_delta(found, self._ledger.runs)
        if extra > _FOR_TABLES * delta:
            raise ValueError(
                f"Expected delta={delta} above {extra / _FOR_TABLES:.3g}: the table that the exact "
                f"noise is drawn from adds {extra:.3g} to it."
            )
        return found
