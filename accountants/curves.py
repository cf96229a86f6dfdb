"""What the privacy curve says in other words: trade-off, advantage, Gaussian privacy.

Symbols: ``H(gamma)`` hockey-stick divergence, the larger of both directions, with
``delta(epsilon) = H(e^epsilon)``; ``fpr`` and ``fnr`` error rates of an attack; ``mu`` of Gaussian
differential privacy (Dong, Roth & Su 2022).

H is convex on [0, inf), being a supremum of lines; H(0) = 1; and reflection gives it below 1:
``H(gamma) = 1 - gamma + gamma H(1/gamma)``. All that is said between two points follows from this.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from accountants._gdp import cell_mu, cells_of, least_mu
from accountants._tradeoff import Tradeoff
from accountants.base import Accountant, checked_delta, checked_epsilon
from dpmech import Unattainable
from dpmech.noise import Floats

__all__ = [
    "Band",
    "Interval",
    "advantage",
    "best_gdp_mu",
    "best_level",
    "delta_curve",
    "epsilon_curve",
    "false_negative_rate",
    "tradeoff_curve",
]

# Cells of epsilon may be cut so often for mu, to this accuracy.
_SPLITS, _MU_ACCURACY = 100, 2e-3


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Bounds on one figure; a side that the accountant cannot bound has the trivial bound."""

    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """Bounds on a curve: at ``x[i]`` it is between ``lower[i]`` and ``upper[i]``."""

    x: Floats
    lower: Floats
    upper: Floats


def advantage(accountant: Accountant) -> Interval:
    """The largest (true positive rate - false positive rate) of a membership attack: delta(0).

    **Guarantees.** ``upper`` is a bound as good as the accountant's delta; ``lower`` is one on what
    the dominating pairs allow, 0 where the accountant proves none.

    Source: total variation is H(1); Kaissis et al. (2024) on the operational reading.

    >>> from accountants import PLD
    >>> from dpmech import Gaussian, Mechanism
    >>> round(advantage(PLD().compose(Mechanism(noise=Gaussian(sigma=1.0)))).lower, 3)
    0.383
    """
    lower, upper = accountant.delta_interval(0.0)
    return Interval(lower=lower or 0.0, upper=upper)


def delta_curve(accountant: Accountant, epsilons: ArrayLike) -> Band:
    """Bounds on delta at every epsilon (0 or above)."""
    x = _checked("epsilons", epsilons)
    return _band(x, [accountant.delta_interval(checked_epsilon(float(e))) for e in x])


def epsilon_curve(accountant: Accountant, deltas: ArrayLike) -> Band:
    """Bounds on epsilon at every delta in (0, 1)."""
    x = _checked("deltas", deltas)
    return _band(x, [accountant.epsilon_interval(checked_delta(float(d))) for d in x])


def false_negative_rate(accountant: Accountant, fpr: float) -> Interval:
    """The share of members that an attack must miss whose false positive rate is ``fpr``.

    **Guarantees.** ``lower`` holds for every attack in either direction (as well as the
    accountant's delta does). ``upper`` bounds from above the best such promise that follows from
    the privacy curve; between the epsilons that are asked, by the convexity of H.

    Raises ValueError where ``fpr`` is not in (0, 1).

    Source: Dong, Roth & Su (2022), Proposition 2.12: ``fnr = max over gamma of
    1 - H(gamma) - gamma fpr``; gamma < 1 gives the branch e^-epsilon (1 - delta - fpr).

    >>> from accountants import PLD
    >>> from dpmech import Gaussian, Mechanism
    >>> found = false_negative_rate(PLD().compose(Mechanism(noise=Gaussian(sigma=1.0))), 0.05)
    >>> round(found.lower, 3), round(found.upper, 3)  # Phi(Phi^-1(0.95) - 1)
    (0.74, 0.74)
    """
    lower, upper = Tradeoff(accountant).at(fpr)
    return Interval(lower=lower, upper=upper)


def tradeoff_curve(accountant: Accountant, fprs: ArrayLike) -> Band:
    """Bounds on :func:`false_negative_rate` at every fpr in (0, 1)."""
    x, curve = _checked("fprs", fprs), Tradeoff(accountant)
    return _band(x, [curve.at(float(fpr)) for fpr in x])


def best_level(accountant: Accountant, fpr: float, near: float) -> float:
    """ln gamma of the line under the trade-off curve that proves the most at ``fpr``.

    ``near``: where it is thought to be.
    """
    return Tradeoff(accountant, 0.9 * near, 1.1 * near).best_level(fpr)


def best_gdp_mu(accountant: Accountant, *, delta_min: float = 1e-10) -> Interval:
    """The least mu whose Gaussian curve is above the mechanism's, as far down as ``delta_min``.

    **Guarantees.** For every epsilon >= 0: delta(epsilon) <= max(delta_mu(epsilon), delta_min) with
    mu = ``upper``; no mu below ``lower`` has that. It is *not* mu-GDP in full, which means the same
    with delta_min = 0: subsampled mechanisms, and every loss with heavier tails than a Gaussian's,
    have no finite mu then.

    Raises Unattainable where more than ``delta_min`` of mass has infinite loss.

    Source: Dong, Roth & Su (2022), Corollary 2.13 for delta_mu.

    >>> from accountants import PLD
    >>> from dpmech import Gaussian, Mechanism
    >>> mu = best_gdp_mu(PLD().compose(Mechanism(noise=Gaussian(sigma=2.0))))
    >>> mu.lower <= 0.5 <= mu.upper <= 0.501
    True
    """
    end = accountant.epsilon(checked_delta(delta_min))
    if math.isinf(end):
        raise Unattainable(
            f"No finite mu: the loss is infinite with more than delta_min={delta_min}. Ask for a "
            "larger delta_min.",
            reached=math.inf,
        )
    if end == 0:
        return Interval(lower=0.0, upper=0.0)
    points = {e: accountant.delta_interval(e) for e in np.linspace(0.0, end, 9).tolist()[:-1]}
    points[end] = (None, delta_min)  # what an epsilon at delta_min means
    least, over = functools.cache(least_mu), functools.cache(cell_mu)
    lower, upper = 0.0, math.inf
    for _ in range(_SPLITS):
        lower = max(least(e, low or 0.0, delta_min) for e, (low, _) in points.items())
        upper, widest = max(over(cell, delta_min) for cell in cells_of(points))
        if upper <= lower * (1 + _MU_ACCURACY):
            break
        points[widest] = accountant.delta_interval(widest)
    return Interval(lower=lower, upper=upper)


def _checked(name: str, values: ArrayLike) -> Floats:
    """A vector with something in it."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"Expected {name} to be a list of numbers, got {values!r}.")
    return x


def _band(x: Floats, found: list[tuple[float | None, float]]) -> Band:
    lower = np.array([low or 0.0 for low, _ in found])
    return Band(x=x, lower=lower, upper=np.array([high for _, high in found]))
