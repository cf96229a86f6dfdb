"""What Opacus's engine may be told, and the reason why the rest is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_MODES = ("hooks", "functorch", "ew", "ghost")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Opacus's options of ``make_private``, with its defaults; what has no proof is refused.

    criterion: the loss; ghost mode wraps it, and hands the wrapper back. Its reduction must be
        loss_reduction: otherwise the size of the batch enters every gradient before the clip.
    noise_generator: makes the noise repeatable, for experiments only; None for secret noise.
    """

    criterion: Any = None
    batch_first: bool = True
    loss_reduction: str = "mean"
    poisson_sampling: bool = True
    clipping: str = "flat"
    noise_generator: torch.Generator | None = None
    grad_sample_mode: str = "hooks"
    wrap_model: bool = True
    rand_on_empty: bool = False

    def __post_init__(self) -> None:
        if self.grad_sample_mode not in _MODES:
            raise ValueError(
                f"Expected grad_sample_mode={self.grad_sample_mode!r} to be one of "
                f"{', '.join(_MODES)}: the others are for several processes, whose ranks draw "
                "noise apart, or leave the clip to somebody else."
            )
        if self.clipping != "flat":
            raise ValueError(
                f"Expected clipping={self.clipping!r} to be 'flat': per layer, the joint "
                "sensitivity is not max_grad_norm, and adaptive clipping releases a quantile of "
                "the norms that would have to be accounted for."
            )
        if not self.poisson_sampling:
            raise ValueError(
                f"Expected poisson_sampling={self.poisson_sampling} to be True: no amplification "
                "is proved for batches of a shuffled pass. Leave it out."
            )
        if self.rand_on_empty:
            raise ValueError(
                f"Expected rand_on_empty={self.rand_on_empty} to be False: a random example in an "
                "empty batch is one that no data holds, and a neighbour's sum is two clips away."
            )
        self._check_reduction()

    def _check_reduction(self) -> None:
        reduction = getattr(self.criterion, "reduction", self.loss_reduction)
        if self.loss_reduction not in ("mean", "sum") or reduction != self.loss_reduction:
            raise ValueError(
                f"Expected reduction={reduction!r} of the criterion to be "
                f"loss_reduction={self.loss_reduction!r}, and mean or sum: otherwise the size of "
                "the batch scales every gradient before the clip, and one example more moves the "
                "sum by more than max_grad_norm."
            )
        if self.grad_sample_mode == "ghost" and self.criterion is None:
            raise ValueError(
                f"Expected criterion={self.criterion} to be a loss: ghost mode clips within its "
                "backward(). Give one, and train with the one that make_private returns."
            )
