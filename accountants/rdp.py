"""Rényi accounting of any real order (mathematics.md §5, §6.3).

Symbols: ``alpha`` order > 1, ``R`` Rényi divergence, ``q`` sampling rate, ``s`` sensitivity.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from accountants._lmo import last_valid_order, lmo_bound, lmo_published_epsilon
from accountants._orders import least_delta, least_epsilon
from accountants._renyi import renyi_of_pair
from accountants._vectors import is_covered, vector_log_moments
from accountants.base import Composer, Ledger, checked_delta, checked_epsilon
from accountants.exact import gaussian_renyi, laplace_renyi, subsampled_gaussian_renyi
from dpmech import Gaussian, Laplace, Mechanism, NoDominatingPair
from dpmech.loss import Direction, DominatingPair
from dpmech.noise import Floats

__all__ = [
    "RDP",
    "last_valid_order",
    "lmo_bound",
    "lmo_published_epsilon",
    "renyi_divergence",
]

# Whole orders up to this take the binomial sum, exact but for rounding.
_LARGEST_SUM = 512


def renyi_divergence(
    mechanism: Mechanism, orders: ArrayLike, direction: Direction = "remove"
) -> Floats:
    """Upper bounds on the Rényi divergence of one run at ``orders`` > 1; inf where it diverges.

    **Guarantees.** Never below the true divergence of the dominating pair, nor, for a vector of
    independent noise, below that of any change the sensitivity allows (mathematics.md §6.3): bounds
    on cut tails and margins for rounding and quadrature are added (1e-9, relative). The margin for
    quadrature is what two of its resolutions differ by, where there is no closed form or sum.
    Of a symmetric noise the removal has the larger divergence at every order, since the reflection
    x -> v - x exchanges the base pair (Mironov, Talwar & Zhang 2019, Theorem 5): the default bounds
    both directions. For a vector v that holds as for a scalar: independent symmetric coordinates
    have a joint density f(x) = f(-x), so the reflection keeps volumes and takes f(x) to f(x - v)
    and back. Vectors therefore get the removal's bound in either direction.

    Other relations cost what :meth:`dpmech.Mechanism.as_add_remove` says. Raises NoDominatingPair
    where nothing is proved.

    >>> from dpmech import Gaussian, Mechanism
    >>> renyi_divergence(Mechanism(noise=Gaussian(sigma=2.0)), [2.0, 8.0]).tolist()
    [0.25, 1.0]
    """
    orders, mechanism = _checked_orders(orders), mechanism.as_add_remove()
    pair = _pair_of(mechanism)
    if pair is None:
        flat = orders.ravel()
        return (vector_log_moments(mechanism, flat) / (flat - 1)).reshape(orders.shape)
    return _of_pair(mechanism, pair, orders, direction)


def _pair_of(mechanism: Mechanism) -> DominatingPair | None:
    """The proved pair, None where only the bounds for vectors hold; else NoDominatingPair."""
    try:
        return mechanism.base_pair()
    except NoDominatingPair:
        if is_covered(mechanism):
            return None
        raise


def _of_pair(
    mechanism: Mechanism, pair: DominatingPair, orders: Floats, direction: Direction
) -> Floats:
    """The same for a mechanism with a pair: closed forms where there are any."""
    noise, rate, bound = mechanism.noise, mechanism.sampling.rate, mechanism.sensitivity.bound
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
    :func:`renyi_divergence`); the order is any real number above 1, not one of a list. Unlike
    accountants that need a pair, this one covers vectors of independent noise of any law.
    Conversion: Canonne, Kamath & Steinke (2020), Proposition 12.

    >>> from dpmech import Gaussian, Mechanism
    >>> round(RDP().compose(Mechanism(noise=Gaussian(sigma=2.0)), 10).epsilon(1e-5), 2)
    8.08
    """

    ledger: Ledger = field(default_factory=Ledger)

    def compose(self, mechanism: Mechanism, count: int = 1) -> RDP:
        """A new accountant with ``count`` more runs; NoDominatingPair where nothing is proved."""
        _pair_of(mechanism.as_add_remove())
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
        checked_delta(delta)
        return least_epsilon(self.renyi, delta) if self.ledger.entries else 0.0

    def delta(self, epsilon: float) -> float:
        """A proved upper bound on delta at ``epsilon``."""
        checked_epsilon(epsilon)
        return least_delta(self.renyi, epsilon) if self.ledger.entries else 0.0

    def lower_epsilon(self, delta: float) -> None:
        """None: Rényi divergences prove no lower bound."""
        checked_delta(delta)
