"""How likely so many right guesses are at most, when many canaries share one run.

Symbols: m canaries, each included by a fair coin s_i; r guesses, the other canaries abstained from;
v right guesses; W their number; q = e^epsilon / (1 + e^epsilon); pmf, cdf and sf of Bin(r, q).

What the auditor sees and does is a kernel M(t|s) from the coins to the guesses t in {-1, 0, 1}^m,
r of them not 0, and (epsilon, delta)-private in every coin. Permuting canaries and swapping
included for excluded changes neither this nor P(W >= v), and both are kept by averages, so M may be
taken to depend on the number k of right guesses alone. Let b_k be its probability and
``c_k = b_k / pmf(k)``. That a guessed canary's flip costs no more than delta says
``c_k <= c_(k-1) + r d_k / (k pmf(k))`` with d_k >= 0 and ``sum d_k <= delta m / r``. Chained from l
to k, multiplied by ``pmf(l) pmf(k)`` and summed over l < v <= k, this gives

``P(W >= v) <= sf(v) + m delta max_j cdf(min(j, v) - 1) sf(max(j, v)) / (j pmf(j))``,

with sf(v) = P(Bin >= v). As pmf is log-concave, the maximum is at j = v. A kernel whose c has one
step, at v, attains it. Source of the audit: Steinke, Nasr & Jagielski (2023), §5, whose Theorem 5.2
has twice m delta times a larger maximum in its place.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special


def chance(right: int, *, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """The largest probability of ``right`` right guesses or more; 1 where it is a half or above.

    **Guarantees**: no mechanism that is (epsilon, delta)-private in every coin exceeds it, whatever
    the auditor does, if the number of guesses does not depend on the run (or delta is 0).
    """
    q = special.expit(epsilon)
    tail = float(special.bdtrc(right - 1, guesses, q)) if right else 1.0
    if tail >= 0.5:  # nothing is refuted at such odds
        return 1.0
    below = float(special.bdtr(right - 1, guesses, q))
    failures = canaries * delta / right * below * _tail_over_mass(right, guesses, epsilon)
    return min(1.0, (tail + failures) * (1 + 1e-9))  # covers the rounding


def _tail_over_mass(right: int, guesses: int, epsilon: float) -> float:
    """P(Bin >= v) / P(Bin = v) for v above the median: each alone may be too small for a float."""
    more = np.arange(guesses - right, dtype=np.float64)
    ratios = (guesses - right - more) / (right + 1 + more) * math.exp(epsilon)
    return 1.0 + float(np.cumprod(ratios).sum())


def least_epsilon(right: int, *, guesses: int, canaries: int, delta: float, alpha: float) -> float:
    """The largest epsilon at which so many right guesses have a probability of alpha at most."""

    def refuted(epsilon: float) -> bool:
        found = chance(right, guesses=guesses, canaries=canaries, epsilon=epsilon, delta=delta)
        return found <= alpha

    if right == 0 or not refuted(0.0):
        return 0.0
    # all right: q^r <= alpha, so ln(r/alpha) is too much already
    low, high = 0.0, math.log(guesses / alpha) + 1
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
