"""A clip that follows a quantile of the clients' norms, learnt from private releases alone.

Each round releases b̂, the noised share of clients whose norm is within the clip, from a sample of
its own, and moves the clip: C' = C·exp(−η(b̂ − γ)). So C is a function of releases, and public.

The noise on the vectors must grow and shrink with the clip, and the plan must not. So a round is
released in units of its clip: the clipped sum times C₀/C, in which a client weighs at most C₀ and
to which noise is added as planned, and the result times C/C₀. The mechanism is the same in every
round, whatever C is.

Symbols: C₀ the clip of the configuration, C of a round, γ the quantile, η the rate, b̂ the share.
Source: Andrew et al. (2021), "Differentially private learning with adaptive clipping", Algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dpmech.noise import Floats
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Executor, Round, loop_sum
from fl_integration.queries import AdaptiveClip

# The clip stays within these factors of the configuration's: beyond, it has run away, and the
# server's steps with it.
SMALLEST, LARGEST = 1e-3, 1e3
_LARGEST_EXPONENT = 100.0  # e^100 is far beyond LARGEST, and no overflow


def next_clip(adaptive: AdaptiveClip, clip: float, share: float, *, initial: float) -> float:
    """The clip of the next round, from this one's and the released share b̂.

    **Guarantees**: a function of what was released; within [C₀/1000, 1000·C₀] for any share.

    Arguments:
        clip: C. share: b̂, as released: it may lie outside [0, 1]. initial: C₀.

    >>> next_clip(AdaptiveClip(rate=1.0), 2.0, 0.5, initial=2.0)
    2.0
    >>> next_clip(AdaptiveClip(rate=1.0), 2.0, -1e9, initial=2.0)
    2000.0
    """
    exponent = min(-adaptive.rate * (share - adaptive.quantile), _LARGEST_EXPONENT)
    return min(max(clip * math.exp(exponent), SMALLEST * initial), LARGEST * initial)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipBits:
    """Whether each of some clients would be within the clip, were it to train: numbers for a query.

    **Guarantees**: a client's bit is a function of its own texts and of what is public, so the
    count has the sensitivity of `ScalarQuery`; a client that does not answer adds nothing.

    A sum and a count do not need the same. Rounding that depends on a client's company, as in a
    batch of many clients' texts, moves a clipped sum by as little as it moves the deltas; a bit it
    turns over, for some client is always next to the clip, and one client more or less then moves
    the count by more than its own bit. So here every client trains by itself: `loop_sum`, or an
    executor that says ``alone = True``, whose clients know of no other.

    cohort, round: who trains, from which weights. clip: C. executor: of the run.
    """

    cohort: Cohort
    round: Round
    clip: float
    executor: Executor

    def __call__(self, clients: NDArray[np.int64]) -> Floats:
        """A bit of each client (n,), in some order; NaN for no norm, or one that is not finite."""
        total = ClippedSum(len(self.round.start), None, keep_norms=True)
        train = self.executor if getattr(self.executor, "alone", False) else loop_sum
        train(self.cohort, replace(self.round, clients=clients), total)
        silent = [math.nan] * (len(clients) - len(total.norms))
        norms = np.asarray([*total.norms, *silent], dtype=np.float64)
        return np.where(np.isfinite(norms), (norms <= self.clip).astype(np.float64), np.nan)
