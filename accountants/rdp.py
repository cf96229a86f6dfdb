"""Rényi accounting of any real order (mathematics.md §5).

Symbols: ``alpha`` order > 1, ``R`` Rényi divergence, ``q`` sampling rate, ``s`` sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from accountants._lmo import last_valid_order, lmo_bound, lmo_published_epsilon
from accountants._renyi import renyi_of_pair
from accountants.base import Composer, Ledger, checked_delta, checked_epsilon
from accountants.exact import gaussian_renyi, laplace_renyi, subsampled_gaussian_renyi
from dpmech import Gaussian, Laplace, Mechanism
from dpmech.loss import Direction
from dpmech.noise import Floats

__all__ = [
    "RDP",
    "last_valid_order",
    "lmo_bound",
    "lmo_published_epsilon",
    "renyi_divergence",
]

# First orders tried, as ln(alpha - 1); from there the search closes in on the best real order.
_FIRST = np.linspace(math.log(1e-3), math.log(1e6), 24)
_ROUNDS, _PER_ROUND = 3, 9
# Whole orders up to this take the binomial sum, exact but for rounding.
_LARGEST_SUM = 512


def renyi_divergence(
    mechanism: Mechanism, orders: ArrayLike, direction: Direction = "remove"
) -> Floats:
    """Upper bounds on the Rényi divergence of one run at ``orders`` > 1; inf where it diverges.

    **Guarantees.** Never below the true divergence of the dominating pair: bounds on cut tails and
    margins for rounding and quadrature are added (1e-9, relative). The quadrature's margin is what
    two of its resolutions differ by, where no closed form or binomial sum is used.
    Of a symmetric noise the removal has the larger divergence at every order, since the reflection
    x -> s - x exchanges the base pair (Mironov, Talwar & Zhang 2019, Theorem 5): the default bounds
    both directions.

    Raises NoDominatingPair where nothing is proved.

    >>> from dpmech import Gaussian, Mechanism
    >>> renyi_divergence(Mechanism(noise=Gaussian(sigma=2.0)), [2.0, 8.0]).tolist()
    [0.25, 1.0]
    """
    orders = _checked_orders(orders)
    pair, rate, noise = mechanism.base_pair(), mechanism.sampling.rate, mechanism.noise
    bound = mechanism.sensitivity.bound
    if rate == 1 and isinstance(noise, Gaussian):
        return gaussian_renyi(orders, noise.sigma / bound)
    if rate == 1 and isinstance(noise, Laplace):
        return laplace_renyi(orders, noise.b / bound)
    result = renyi_of_pair(pair, orders.ravel(), rate, direction).reshape(orders.shape)
    if isinstance(noise, Gaussian) and direction == "remove":
        whole = (orders == np.floor(orders)) & (orders <= _LARGEST_SUM)
        sums = [subsampled_gaussian_renyi(int(a), noise.sigma / bound, rate) for a in orders[whole]]
        result[whole] = np.minimum(result[whole], sums)
    return result


def _checked_orders(orders: ArrayLike) -> Floats:
    orders = np.asarray(orders, dtype=np.float64)
    if not np.all((orders > 1) & np.isfinite(orders)):
        raise ValueError(f"Expected finite orders above 1, got {orders!r}.")
    return orders


@dataclass(frozen=True, kw_only=True)
class RDP(Composer):
    """Rényi accountant: fast, and loose by some percent.

    **Guarantees.** :meth:`epsilon` and :meth:`delta` are upper bounds for both directions (see
    :func:`renyi_divergence`); the order is any real number above 1, not one of a list.
    Conversion: Canonne, Kamath & Steinke (2020), Proposition 12.

    >>> from dpmech import Gaussian, Mechanism
    >>> round(RDP().compose(Mechanism(noise=Gaussian(sigma=2.0)), 10).epsilon(1e-5), 2)
    8.08
    """

    ledger: Ledger = field(default_factory=Ledger)

    def compose(self, mechanism: Mechanism, count: int = 1) -> RDP:
        """A new accountant with ``count`` more runs; NoDominatingPair where nothing is proved."""
        mechanism.base_pair()
        return RDP(ledger=self.ledger.add(mechanism, count))

    def renyi(self, orders: ArrayLike) -> Floats:
        """Upper bounds on the Rényi divergence of the whole ledger: the sum over its runs."""
        orders = _checked_orders(orders)
        total = np.zeros_like(orders)
        for mechanism, count in self.ledger.collected().entries:
            total = total + count * renyi_divergence(mechanism, orders)
        return total * (1 + 1e-15)

    def epsilon(self, delta: float) -> float:
        """A proved upper bound on epsilon at ``delta``; inf where every order diverges."""
        log_delta = math.log(checked_delta(delta))
        if not self.ledger.entries:
            return 0.0
        return max(0.0, _least(lambda a: self._epsilon_at(a, log_delta)))

    def delta(self, epsilon: float) -> float:
        """A proved upper bound on delta at ``epsilon``."""
        checked_epsilon(epsilon)
        if not self.ledger.entries:
            return 0.0
        return math.exp(min(0.0, _least(lambda a: self._log_delta_at(a, epsilon))))

    def lower_epsilon(self, delta: float) -> None:
        """None: Rényi divergences prove no lower bound."""
        checked_delta(delta)

    def _epsilon_at(self, orders: Floats, log_delta: float) -> Floats:
        return (
            self.renyi(orders) + np.log1p(-1 / orders) - (log_delta + np.log(orders)) / (orders - 1)
        )

    def _log_delta_at(self, orders: Floats, epsilon: float) -> Floats:
        return (orders - 1) * (self.renyi(orders) - epsilon + np.log1p(-1 / orders)) - np.log(
            orders
        )


def _least(objective: Callable[[Floats], Floats]) -> float:
    """The least value found over real orders; each order's value is a bound, so the least is."""
    values = objective(1 + np.exp(_FIRST))
    if not np.any(np.isfinite(values)):
        return math.inf
    t, best = _FIRST, float(np.nanmin(values))
    for _ in range(_ROUNDS):
        centre, step = float(t[np.nanargmin(values)]), float(t[1] - t[0])
        t = np.linspace(centre - step, centre + step, _PER_ROUND)
        values = objective(1 + np.exp(t))
        best = min(best, float(np.nanmin(values)))
    return min(best, float(np.nanmin(objective(1 + np.exp(_vertex(t, values))))))


def _vertex(t: Floats, values: Floats) -> Floats:
    """Minimum of the parabola through the least value and its neighbours; shape (1,)."""
    at = int(np.clip(np.nanargmin(values), 1, len(values) - 2))
    left, middle, right = values[at - 1 : at + 2]
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if np.isfinite(bend) and bend > 0 else 0.0
    return t[at : at + 1] + (t[1] - t[0]) * float(np.clip(shift, -1, 1))
