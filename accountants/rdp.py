"""Rényi accounting of any real order (mathematics.md §5, §6.3).

Symbols: ``alpha`` order > 1, ``R`` Rényi divergence of the finite losses, ``q`` sampling rate,
``s`` sensitivity, ``m`` mass of infinite loss.

Infinite loss. Of a pair (P, Q) with loss l let R = ln E_P[e^((alpha-1) l); l finite]/(alpha-1). A
composition of independent pairs has the moment of its finite loss equal to the product of theirs,
and infinite loss with probability M = 1 - prod (1 - m_j). Its delta at epsilon is
E[(1 - e^(epsilon - l))_+] <= M + E[(1 - e^(epsilon - l))_+; l finite], and the second term is
bounded by the moment as in any conversion: what is compared is (1 - e^(epsilon - l))_+ and
e^((alpha-1) l) at each finite l, which asks for no total mass of 1. So M is charged to delta, and
the rest is converted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from accountants._lmo import last_valid_order, lmo_bound, lmo_published_epsilon
from accountants._orders import least_delta, least_epsilon
from accountants._renyi import FINE, lost_mass, renyi_of_pair
from accountants._vectors import is_covered, vector_log_moments
from accountants.base import Composer, Ledger, checked_delta, checked_epsilon
from accountants.exact import gaussian_renyi, laplace_renyi, subsampled_gaussian_renyi
from dpmech import Gaussian, Laplace, Mechanism, NoDominatingPair
from dpmech.discrete import DiscreteNoise
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
# Relative gaps of the bounds with which the best order is sought, and converted.
_ROUGH, _NEAR = 2e-3, 5e-6
# Infinite mass up to this is but the tail at which noise of countably many atoms is cut.
_CUT_TAIL = 1e-290
_EPS = float(np.finfo(np.float64).eps)


def renyi_divergence(
    mechanism: Mechanism, orders: ArrayLike, direction: Direction = "remove"
) -> Floats:
    """Upper bounds on the Rényi divergence of one run at ``orders`` > 1; inf where it diverges.

    **Guarantees.** Never below the true divergence of the dominating pair, nor, for a vector of
    independent noise, below that of any change the sensitivity allows (mathematics.md §6.3): closed
    forms, or sums over cells of the loss whose rounding is bounded, too (:mod:`accountants._renyi`;
    1e-6 above the truth, relative). Infinite loss makes it infinite; what is left out of
    whole-number and staircase noise, 1e-290 at most, is not seen here (:class:`RDP` charges it to
    delta).
    Of a symmetric noise the removal has the larger divergence at every order, since the reflection
    x -> v - x exchanges the base pair (Mironov, Talwar & Zhang 2019, Theorem 5): the default bounds
    both directions. For a vector v that holds as for a scalar: independent symmetric coordinates
    have a joint density f(x) = f(-x), so the reflection keeps volumes and takes f(x) to f(x - v)
    and back. Vectors therefore get the removal's bound in either direction.

    Other relations cost what :meth:`dpmech.Mechanism.as_add_remove` says, sampled replacements
    what their own pair does. Raises NoDominatingPair where nothing is proved.

    >>> from dpmech import Gaussian, Mechanism
    >>> renyi_divergence(Mechanism(noise=Gaussian(sigma=2.0)), [2.0, 8.0]).tolist()
    [0.25, 1.0]
    """
    orders, run = _checked_orders(orders), _Run.of(mechanism, direction)
    if run.lost > _CUT_TAIL * mechanism.sensitivity.dim:
        return np.full_like(orders, np.inf)
    bounds = run.renyi(orders.ravel(), FINE).reshape(orders.shape)
    # Where sampling leaves a tail of the addition's loss loosely bounded.
    return (
        bounds if direction == "remove" else np.minimum(bounds, renyi_divergence(mechanism, orders))
    )


def _checked_orders(orders: ArrayLike) -> Floats:
    orders = np.asarray(orders, dtype=np.float64)
    if not np.all((orders > 1) & np.isfinite(orders)):
        raise ValueError(f"Expected finite orders above 1, got {orders!r}.")
    return orders


_Sums = Callable[[Floats], Floats]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """One run in one direction: ``renyi(orders, tolerance)`` bounds R, ``lost`` bounds m."""

    renyi: Callable[[Floats, float], Floats]
    lost: float = 0.0

    @classmethod
    def of(cls, mechanism: Mechanism, direction: Direction) -> _Run:
        """NoDominatingPair where nothing is proved."""
        if mechanism.relation == "replace-one" and mechanism.sampling.rate < 1:
            return cls._of_pair(mechanism.pairs()[0])
        mechanism = mechanism.as_add_remove()
        try:
            pairs = mechanism.pairs()
        except NoDominatingPair:
            if is_covered(mechanism):
                return cls(renyi=_of_vector(mechanism), lost=_lost_of_vector(mechanism))
            raise
        if direction == "add" and len(pairs) == 2:
            return cls._of_pair(pairs[-1])
        closed = _closed_form(mechanism)
        return cls(renyi=closed) if closed else cls._of_pair(pairs[0], _binomial_sums(mechanism))

    @classmethod
    def _of_pair(cls, pair: DominatingPair, sums: _Sums | None = None) -> _Run:
        def renyi(orders: Floats, tolerance: float) -> Floats:
            bounds = renyi_of_pair(pair, orders, tolerance)
            return np.minimum(bounds, sums(orders)) if sums else bounds

        return cls(renyi=renyi, lost=lost_mass(pair))


def _lost_of_vector(mechanism: Mechanism) -> float:
    """The mass that lists of whole-number masses leave out, in any coordinate."""
    if not isinstance(mechanism.noise, DiscreteNoise):
        return 0.0
    return min(1.0, mechanism.sensitivity.dim * _CUT_TAIL)


def _of_vector(mechanism: Mechanism) -> Callable[[Floats, float], Floats]:
    def renyi(orders: Floats, tolerance: float) -> Floats:
        moments = vector_log_moments(mechanism, orders, rough=tolerance >= _ROUGH)
        return moments / (orders - 1)

    return renyi


def _closed_form(mechanism: Mechanism) -> Callable[[Floats, float], Floats] | None:
    noise, bound = mechanism.noise, mechanism.sensitivity.bound
    if mechanism.sampling.rate == 1 and isinstance(noise, Gaussian):
        return lambda orders, _: gaussian_renyi(orders, noise.sigma / bound)
    if mechanism.sampling.rate == 1 and isinstance(noise, Laplace):
        return lambda orders, _: laplace_renyi(orders, noise.b / bound)
    return None


def _binomial_sums(mechanism: Mechanism) -> _Sums | None:
    """Of sampled Gaussian noise at whole orders; inf at others."""
    noise, rate = mechanism.noise, mechanism.sampling.rate
    if not isinstance(noise, Gaussian):
        return None
    sigma = noise.sigma / mechanism.sensitivity.bound

    def sums(orders: Floats) -> Floats:
        whole = (orders == np.floor(orders)) & (orders <= _LARGEST_SUM)
        result = np.full_like(orders, np.inf)
        result[whole] = [subsampled_gaussian_renyi(int(a), sigma, rate) for a in orders[whole]]
        return result

    return sums


@dataclass(frozen=True, kw_only=True, eq=False)
class _Composition:
    """All runs of a ledger in one direction, each with its count."""

    runs: Sequence[tuple[_Run, int]]

    @classmethod
    def of(cls, ledger: Ledger, direction: Direction) -> _Composition:
        entries = ledger.collected().entries
        return cls(runs=[(_Run.of(mechanism, direction), count) for mechanism, count in entries])

    def renyi(self, orders: Floats, tolerance: float = _NEAR) -> Floats:
        total, size = np.zeros_like(orders), np.zeros_like(orders)
        for run, count in self.runs:
            bound = count * run.renyi(orders, tolerance)
            total, size = total + bound, size + np.abs(bound)
        return total + 4 * _EPS * len(self.runs) * size

    def rough(self, orders: Floats) -> Floats:
        return self.renyi(orders, _ROUGH)

    @property
    def lost(self) -> float:
        """Probability of an infinite loss in any run, rounded up."""
        if any(run.lost >= 1 for run, _ in self.runs):
            return 1.0
        kept = math.fsum(count * math.log1p(-run.lost) for run, count in self.runs)
        return min(1.0, -math.expm1(kept) * (1 + 1e-12))

    def epsilon(self, delta: float) -> float:
        left = (delta - self.lost) * (1 - 4 * _EPS)
        return least_epsilon(self.renyi, left, self.rough) if left > 0 else math.inf

    def delta(self, epsilon: float) -> float:
        lost = self.lost
        if lost == 1:
            return 1.0
        return min(1.0, (least_delta(self.renyi, epsilon, self.rough) + lost) * (1 + 4 * _EPS))


@dataclass(frozen=True, kw_only=True)
class RDP(Composer):
    """Rényi accountant: fast, and loose by some percent.

    **Guarantees.** :meth:`epsilon` and :meth:`delta` are upper bounds for both directions (see
    :func:`renyi_divergence`), proved with all rounding; the order is any real number above 1, not
    one of a list. Infinite loss is charged to delta (the head of this module says why that holds).
    Unlike accountants that need a pair, this one covers vectors of independent noise of any law.
    Conversion: Canonne, Kamath & Steinke (2020), Proposition 12.

    >>> from dpmech import Gaussian, Mechanism
    >>> round(RDP().compose(Mechanism(noise=Gaussian(sigma=2.0)), 10).epsilon(1e-5), 2)
    8.08
    """

    ledger: Ledger = field(default_factory=Ledger)

    def compose(self, mechanism: Mechanism, count: int = 1) -> RDP:
        """A new accountant with ``count`` more runs; NoDominatingPair where nothing is proved."""
        if not is_covered(mechanism):
            _Run.of(mechanism, "remove")
        return RDP(ledger=self.ledger.add(mechanism, count))

    def renyi(self, orders: ArrayLike) -> Floats:
        """Upper bounds on the Rényi divergence of the whole ledger: the sum over its runs."""
        orders = _checked_orders(orders)
        total = np.zeros_like(orders)
        for mechanism, count in self.ledger.collected().entries:
            total = total + count * renyi_divergence(mechanism, orders)
        return total * (1 + 1e-15)

    def epsilon(self, delta: float) -> float:
        """A proved upper bound on epsilon at ``delta``; inf if infinite loss has that mass."""
        checked_delta(delta)
        return max((way.epsilon(delta) for way in self._ways()), default=0.0)

    def delta(self, epsilon: float) -> float:
        """A proved upper bound on delta at ``epsilon``."""
        checked_epsilon(epsilon)
        return max((way.delta(epsilon) for way in self._ways()), default=0.0)

    def lower_epsilon(self, delta: float) -> None:
        """None: Rényi divergences prove no lower bound."""
        checked_delta(delta)

    def _ways(self) -> list[_Composition]:
        """The removal, and the addition, too, where its bound need not be the smaller one.

        It is without infinite loss; of finite losses alone nothing of the kind is known.
        """
        if not self.ledger.entries:
            return []
        removal = _Composition.of(self.ledger, "remove")
        if removal.lost == 0 or not any(_has_directions(m) for m, _ in self.ledger.entries):
            return [removal]
        return [removal, _Composition.of(self.ledger, "add")]


def _has_directions(mechanism: Mechanism) -> bool:
    return mechanism.sampling.rate < 1 and mechanism.relation != "replace-one"
