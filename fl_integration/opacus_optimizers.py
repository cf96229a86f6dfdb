"""Opacus's optimiser with noise of any law, for gradients of single examples.

Symbols: C the clip (Opacus's ``max_grad_norm``), n examples in a batch, d trained coordinates.

Where those gradients exist (hooks, functorch, ew), the clip and the sum are those of `ClippedSum`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from dpmech import Mechanism
from fl_integration.clipping import ROWS, ClippedSum
from fl_integration.noise_sampler import NoiseSampler, sampler

try:
    from opacus.optimizers import DPOptimizer
    from opacus.optimizers.optimizer import (
        _check_processed_flag,  # type: ignore[reportPrivateUsage]  # its guard of a forgotten
        _mark_as_processed,  # type: ignore[reportPrivateUsage]  # zero_grad, kept in place
    )
except ImportError as error:
    raise ImportError(
        f"Opacus's optimisers need the opacus package ({error}): pip install 'dpmech[opacus]'.",
        name="opacus",
    ) from None


@dataclass
class Given:
    """A forward pre-hook: how many examples the model was given, n, to train on."""

    axis: int = 0
    examples: int | None = None

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Note n, the length of the first tensor along the axis of examples."""
        if module.training and torch.is_grad_enabled():
            given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            known = given and given[0].ndim > self.axis
            self.examples = given[0].shape[self.axis] if known else None

    def check(self, rows: int) -> None:
        """Refuse gradients of something smaller than an example, such as a token."""
        if self.examples is not None and rows != self.examples:
            raise ValueError(
                f"Expected gradients of {rows} examples, got a batch of {self.examples}: the model "
                "folds the axis of examples into another one, so that the clip would be one of "
                "parts of examples. Keep the axis, as in (examples, tokens, features)."
            )


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an optimiser does in every step: the mechanism, C, and the draws of its noise."""

    release: Mechanism
    clip: float
    draws: NoiseSampler
    given: Given

    @classmethod
    def of(cls, release: Mechanism, *, clip: float, batch_first: bool = True) -> Step:
        """The noise of a release in units of the clip, in the units of the gradients."""
        return cls(
            release=release,
            clip=clip,
            draws=sampler(release.noise.scaled(clip)),
            given=Given(axis=0 if batch_first else 1),
        )


class LawOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus carries no types
    """Opacus's optimiser for gradients of single examples, with noise of any law.

    **Guarantees**

    * One example moves the sum by C at most, rounding included; one whose gradient is not finite
      adds nothing.
    * The noise is one draw for all parameters together, added in fp64 to the fp64 sum: once a
      logical batch, and to an empty batch as to any other. A step without a backward pass is that
      of an empty batch, for models that cannot run on one.
    * C and the noise stay what they were when the mechanism was proved: schedulers are refused.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, plan: Step, **options: Any) -> None:
        self._plan = plan
        # Opacus's own noise would be nan: no path that draws it goes unnoticed.
        super().__init__(optimizer, noise_multiplier=math.nan, max_grad_norm=plan.clip, **options)

    @property
    def release(self) -> Mechanism:
        """The mechanism of a step, its noise in units of the clip."""
        return self._plan.release

    @property
    def noise_multiplier(self) -> float:
        """Refused: the noise is a law, and none that a scheduler may change."""
        self._fixed("noise_multiplier", "noise schedulers change what every step adds")

    @noise_multiplier.setter
    def noise_multiplier(self, value: float) -> None:
        if not math.isnan(value):
            self._fixed(f"noise_multiplier={value}", "the noise is the law of make_private")

    @property
    def max_grad_norm(self) -> float:
        """C."""
        return self._plan.clip

    @max_grad_norm.setter
    def max_grad_norm(self, value: float) -> None:
        if value != self._plan.clip:
            self._fixed(f"max_grad_norm={value}", f"the clip is {self._plan.clip}")

    def _fixed(self, asked: str, why: str) -> NoReturn:
        raise ValueError(
            f"Expected no {asked} here: {why}, and {self.release.noise} is what is accounted for. "
            "Call make_private again, on the plain module, for other noise or another clip."
        )

    @property
    def grad_samples(self) -> list[Tensor]:
        """The gradients of the examples, one tensor a parameter; of none without a backward."""
        if self._is_idle:
            return [p.new_zeros((0, *p.shape)) for p in self.params]
        return cast(list[Tensor], super().grad_samples)

    @property
    def accumulated_iterations(self) -> int:
        """How many batches are in the gradients of the examples: 1 is what a step takes."""
        return 1 if self._is_idle else int(super().accumulated_iterations)

    @property
    def _is_idle(self) -> bool:
        return all(p.grad_sample is None for p in self.params)

    def clip_and_accumulate(self) -> None:
        """Clip the gradients of the examples of one batch and add them to the sum."""
        grads = self.grad_samples
        for p in self.params:
            _check_processed_flag(p.grad_sample)
        self._refuse_misuse()
        self.check_rows(grads)
        total = ClippedSum(self._checked_dim(), self._plan.clip)
        for rows in _rows(grads):
            total.add_rows(rows)
        sizes = [p.numel() for p in self.params]
        for p, part in zip(self.params, total.value.split(sizes), strict=True):
            part = part.to(p.device).view_as(p)
            p.summed_grad = part if p.summed_grad is None else p.summed_grad + part
            _mark_as_processed(p.grad_sample)

    def check_rows(self, found: Sequence[Tensor]) -> None:
        """Refuse gradients, or norms, that are not of the examples that the model was given."""
        lengths = {len(values) for values in found}
        if len(lengths) != 1:
            raise ValueError(
                f"Expected gradients of as many examples by every parameter, got {sorted(lengths)}:"
                " a layer does not see the axis of examples. Freeze it, or give it that axis."
            )
        if not self._is_idle:
            self._plan.given.check(lengths.pop())

    def _refuse_misuse(self) -> None:
        """Refuse gradients that are none of one batch's single examples."""
        if self.accumulated_iterations != 1:
            raise ValueError(
                f"Expected {self.accumulated_iterations} batches in one step to be 1: an example "
                "that is in several of them is clipped in each, and moves the sum by several "
                "clips. Use Opacus's BatchMemoryManager for large batches."
            )
        summed = [p for p in self.params if p.grad is not None and bool(p.grad.any())]
        if self._is_idle and summed:
            raise ValueError(
                f"Expected gradients of single examples, got {len(summed)} parameters with a plain "
                "gradient alone: enable the hooks of the model, and call zero_grad() first."
            )

    def add_noise(self) -> None:
        """Add one draw for all parameters to the sum."""
        for p in self.params:
            _check_processed_flag(p.summed_grad)
        _ = self._checked_dim()
        sums = [p.summed_grad.double() for p in self.params]
        noise = self._plan.draws.like(sums, generator=self.generator)
        for p, value, drawn in zip(self.params, sums, noise, strict=True):
            p.grad = (value + drawn).to(p.dtype).view_as(p)
            _mark_as_processed(p.summed_grad)

    def _checked_dim(self) -> int:
        dim = sum(p.numel() for p in self.params)
        if dim != self.release.sensitivity.dim:
            raise ValueError(
                f"Expected dim={dim} of the parameters to be {self.release.sensitivity.dim}, which "
                "is accounted for: parameters were frozen, freed or added after make_private."
            )
        return dim


def _rows(grads: Sequence[Tensor]) -> Iterator[Tensor]:
    """The gradients of some examples at a time, (examples, d), so that few are held twice."""
    n, dim = len(grads[0]), sum(g[:1].numel() for g in grads) if len(grads[0]) else 0
    count = max(1, ROWS // max(dim, 1))
    for first in range(0, n, count):
        part = [g[first : first + count] for g in grads]
        yield torch.cat([g.reshape(len(g), -1) for g in part], dim=1)
