"""The published Rényi bound of the LMO family, where it holds and as it was used.

The bound treats the random scale U as public; the exact divergence (``renyi_divergence``) is below
it. Source: mathematics.md §2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from accountants.base import checked_delta
from dpmech import LMO
from dpmech.noise import Floats, checked_positive

# The orders of the published search.
PUBLISHED_ORDERS = range(2, 129)


def lmo_bound(law: LMO, orders: ArrayLike, sensitivity: float = 1.0) -> Floats:
    """The published Rényi bound at real ``orders`` > 1, +inf where the transform of U diverges.

    **Guarantees.** Never below the exact divergence of one unsampled scalar release.
    Source: arXiv 2405.18776 and 2009.09451; mathematics.md §2.

    >>> from dpmech import LMO_PRESETS
    >>> lmo_bound(LMO_PRESETS["0.3"], [20.0, 21.0]).round(3).tolist()
    [0.305, inf]
    """
    orders = np.asarray(orders, dtype=np.float64)
    if not np.all((orders > 1) & np.isfinite(orders)):
        raise ValueError(f"Expected finite orders above 1, got {orders!r}.")
    shift = checked_positive("sensitivity", sensitivity) / law.size
    up = np.log(orders) + law.log_moment_generating((orders - 1) * shift)
    down = np.log(orders - 1) + law.log_moment_generating(-orders * shift)
    rounded = np.logaddexp(up, down) - np.log(2 * orders - 1)
    return np.maximum(0.0, rounded) / (orders - 1)


def last_valid_order(law: LMO, sensitivity: float = 1.0) -> int | None:
    """The largest whole order at which the bound is finite; None where every order is valid.

    >>> from dpmech import LMO_PRESETS
    >>> last_valid_order(LMO_PRESETS["0.3"])
    20
    """
    shift = checked_positive("sensitivity", sensitivity) / law.size
    steepest = max(law.a1 * law.theta, law.a3 / law.rate)
    if steepest == 0:
        return None
    # a1 theta (alpha - 1) s < 1 and a3 (alpha - 1) s < rate, both strict.
    order = math.floor(1 + 1 / (steepest * shift)) + 1
    while order > 1 and not math.isfinite(float(law.log_moment_generating((order - 1) * shift))):
        order -= 1
    return order


def lmo_published_epsilon(
    law: LMO,
    delta: float,
    orders: Iterable[int] = PUBLISHED_ORDERS,
    *,
    check_domain: bool = True,
) -> tuple[float, int]:
    """(epsilon, its order) of one release with sensitivity 1 by the published bound and conversion.

    With ``check_domain=False`` the closed form is evaluated wherever its logarithm exists, as in
    the published search: beyond the last valid order that is **not** a bound on anything, and is
    here only to show what the difference is worth.

    >>> from dpmech import LMO_PRESETS
    >>> epsilon, order = lmo_published_epsilon(LMO_PRESETS["0.3"], 1e-10, check_domain=False)
    >>> round(epsilon, 4), order
    (0.2932, 128)
    """
    log_delta = math.log(checked_delta(delta))
    a = np.asarray(list(orders), dtype=np.float64)
    renyi = lmo_bound(law, a) if check_domain else _unchecked_bound(law, a)
    epsilon = renyi + np.log1p(-1 / a) - (log_delta + np.log(a)) / (a - 1)
    if np.all(np.isnan(epsilon)):
        return math.inf, int(a[0])
    at = int(np.nanargmin(epsilon))
    return float(epsilon[at]), int(a[at])


def _unchecked_bound(law: LMO, orders: Floats) -> Floats:
    """The closed form with whatever signs its factors have; nan where it has no logarithm."""
    t = (orders - 1) / law.size
    gamma, exponential = 1 - law.a1 * law.theta * t, 1 - law.a3 * t / law.rate
    uniform = LMO(a1=0, a3=0, a4=law.a4, low=law.low, high=law.high) if law.a4 else None
    with np.errstate(invalid="ignore", divide="ignore"):
        sign = np.sign(gamma) ** law.k * np.sign(exponential)
        size = -law.k * np.log(np.abs(gamma)) - np.log(np.abs(exponential))
        if uniform is not None:
            size = size + uniform.log_moment_generating(t)
        down = np.log((orders - 1) / orders) + law.log_moment_generating(-orders / law.size)
        mean = size + np.log(sign + np.exp(down - size)) + np.log(orders / (2 * orders - 1))
    return mean / (orders - 1)
