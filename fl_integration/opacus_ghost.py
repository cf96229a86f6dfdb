"""Opacus's ghost mode with noise of any law, and its two-pass loss with the checks it lacks.

Symbols: C the clip (Opacus's ``max_grad_norm``), n examples in a batch.

Clip and sum happen inside a backward pass, in the model's own precision: they are Opacus's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fl_integration.opacus_optimizers import LawOptimizer

try:
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import (
        DPLossFastGradientClipping,
        DPTensorFastGradientClipping,
    )
except ImportError as error:
    raise ImportError(
        f"Opacus's ghost mode needs the opacus package ({error}): pip install 'dpmech[opacus]'.",
        name="opacus",
    ) from None

# Ghost norms and the weighted backward pass are computed in the model's own precision; this share
# of C is left unused for what they round.
GHOST_MARGIN = 1e-3


class GhostLawOptimizer(LawOptimizer, DPOptimizerFastGradientClipping):  # type: ignore[misc]  # the same
    """Opacus's optimiser of ghost mode, with noise of any law.

    **Guarantees**

    * Those of `LawOptimizer` about the noise.
    * A step takes only gradients that `GhostLoss` clipped, as it left them, and none that is not
      finite: a plain loss in its place, or a second one on top, is refused.
    """

    def clip_and_accumulate(self) -> None:
        """Nothing: `GhostLoss` has clipped."""

    @property
    def accumulated_iterations(self) -> int:
        """1: a second loss takes the place of the first."""
        return 1

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Clear the gradients; a step that follows is that of an empty batch."""
        super().zero_grad(set_to_none)
        for p in self.params:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self.seal()

    def check_rows(self, found: Sequence[Tensor]) -> None:
        """Refuse norms that are not of the examples that the model was given."""
        self._plan.given.check(len(found[0]))

    def seal(self) -> None:
        """Remember the gradients as they are: clipped or zero, and nothing else."""
        self._sealed = [(p.grad, p.grad._version) for p in self.params]

    def accumulate(self) -> None:
        """Add the clipped gradients of one batch to the sum."""
        sealed, self._sealed = getattr(self, "_sealed", None), None
        now = [p.grad for p in self.params]
        if sealed is None or any(
            grad is not kept or grad._version != version
            for grad, (kept, version) in zip(now, sealed, strict=True)
        ):
            raise ValueError(
                f"Expected the gradients of {len(now)} parameters as backward() of the criterion "
                "that make_private returned left them, unscaled: others are not clipped."
            )
        super().accumulate()


class GhostCriterion(DPLossFastGradientClipping):  # type: ignore[misc]  # opacus carries no types
    """Opacus's wrapper of a criterion, whose loss is a `GhostLoss`: one number an example."""

    def __call__(self, *args: Any, **kwargs: Any) -> GhostLoss:
        each = super().__call__(*args, **kwargs).loss_per_sample
        if each.ndim > 1:  # a criterion that reduces does so within an example, too
            each = each.flatten(1)
            each = each.mean(1) if self.loss_reduction == "mean" else each.sum(1)
        return GhostLoss(self.module, self.optimizer, each, self.loss_reduction)


class GhostLoss(DPTensorFastGradientClipping):  # type: ignore[misc]  # opacus carries no types
    """The losses of a batch, (n,); backward() leaves the sum of the clipped gradients.

    **Guarantees**

    * An example whose gradient is not finite has weight 0. Where it spoils the others all the same,
      because something within the model is not finite, the step is refused.
    """

    def backward(self) -> None:
        """One pass for the norms, one with every example's weight."""
        losses: Tensor = self.loss_per_sample
        with warnings.catch_warnings():  # hooks on a first layer fire all the same
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            self._forget_norms()
            whole = losses.mean() if self.loss_reduction == "mean" else losses.sum()
            whole.backward(retain_graph=True)
            self.optimizer.zero_grad()
            self._weighted(self._weights(losses), losses)
        self._refuse_spoilt()
        self.optimizer.seal()

    def _forget_norms(self) -> None:
        """Those of the last batch, which Opacus would take for this one's where it finds none."""
        for p in self.module.trainable_parameters:
            if hasattr(p, "_norm_sample"):
                del p._norm_sample

    def _weighted(self, weights: Tensor, losses: Tensor) -> None:
        self.module.disable_hooks()
        try:
            torch.where(weights > 0, weights * losses, 0.0).sum().backward()
        finally:
            self.module.enable_hooks()

    def _weights(self, losses: Tensor) -> Tensor:
        """What every example's loss is multiplied with, (n,)."""
        if self.module.max_grad_norm > self.optimizer.max_grad_norm:
            raise ValueError(
                f"Expected the module's max_grad_norm={self.module.max_grad_norm} to be the "
                f"optimiser's {self.optimizer.max_grad_norm} at most."
            )
        unknown = [p for p in self.module.trainable_parameters if not hasattr(p, "_norm_sample")]
        if unknown:
            raise ValueError(
                f"Expected norms for every trained parameter, got none for {len(unknown)}, one of "
                f"shape {tuple(unknown[0].shape)}: enable the hooks of the model, freeze what a "
                "batch does not use, and use hooks mode for layers on inputs of four axes."
            )
        weights: Tensor = self.module.get_clipping_coef().to(losses.device)
        self.optimizer.check_rows([weights])
        if weights.shape != losses.shape:
            raise ValueError(
                f"Expected one loss for each of {len(weights)} examples, got losses of shape "
                f"{tuple(losses.shape)}; for sequences give the criterion shape=logits.shape."
            )
        return torch.nan_to_num(weights, nan=0.0)

    def _refuse_spoilt(self) -> None:
        for p in self.optimizer.params:
            if not bool(torch.isfinite(p.grad).all()):
                raise ValueError(
                    f"Expected finite gradients of a parameter of shape {tuple(p.shape)}: an "
                    "example's loss is no number, and ghost mode cannot leave one example out. "
                    "Use grad_sample_mode='hooks', where it adds nothing."
                )
