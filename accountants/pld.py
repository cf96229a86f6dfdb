"""Accounting with privacy loss distributions, certified on both sides (mathematics.md §4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from accountants._direction import Direction
from accountants.base import Composer, Ledger, checked_delta, checked_epsilon
from dpmech import DominatingPair, Gaussian, Mechanism
from dpmech.loss import PeakedPair


@dataclass(frozen=True, kw_only=True)
class PLD(Composer):
    """Privacy-loss-distribution accountant.

    **Guarantees.** ``lower_epsilon <= truth <= epsilon`` and ``lower_delta <= truth <= delta`` for
    every ledger of mechanisms whose pairs are proved: discretisation, truncation, wrap-around and
    rounding are all bounded and pushed to the safe side. Loss curves need not be monotone.

    ``tolerance``: the relative gap between the two epsilons to aim at. The grid is refined until it
    is reached or the largest grid is; the bounds hold either way.

    >>> from dpmech import Gaussian, Mechanism
    >>> round(PLD().compose(Mechanism(noise=Gaussian(sigma=2.0)), 10).epsilon(1e-5), 2)
    7.51
    """

    ledger: Ledger = field(default_factory=Ledger)
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"Expected tolerance={self.tolerance} in (0, 1).")

    def compose(self, mechanism: Mechanism, count: int = 1) -> PLD:
        """A new accountant with ``count`` more runs; NoDominatingPair where nothing is proved."""
        mechanism.pairs()
        return PLD(ledger=self.ledger.add(mechanism, count), tolerance=self.tolerance)

    def epsilon(self, delta: float) -> float:
        """A proved upper bound on epsilon at ``delta``; inf if the infinite loss exceeds delta."""
        return self.epsilon_interval(delta)[1]

    def lower_epsilon(self, delta: float) -> float:
        """A proved lower bound on the epsilon of the dominating pairs at ``delta``."""
        return self.epsilon_interval(delta)[0]

    def epsilon_interval(self, delta: float) -> tuple[float, float]:
        """(lower, upper) bounds on epsilon at ``delta``, from one refinement."""
        checked_delta(delta)
        low = high = 0.0
        for pairs in self._directions():
            bounds = Direction(pairs).epsilon_interval(delta, self.tolerance, enough=low)
            low, high = max(low, bounds[0]), max(high, bounds[1])
        return low, high

    def delta(self, epsilon: float) -> float:
        """A proved upper bound on delta at ``epsilon``."""
        return self.delta_interval(epsilon)[1]

    def lower_delta(self, epsilon: float) -> float:
        """A proved lower bound on the delta of the dominating pairs at ``epsilon``."""
        return self.delta_interval(epsilon)[0]

    def delta_interval(self, epsilon: float) -> tuple[float, float]:
        """(lower, upper) bounds on delta at ``epsilon``, from one refinement."""
        checked_epsilon(epsilon)
        low = high = 0.0
        for pairs in self._directions():
            bounds = Direction(pairs).delta_interval(epsilon, self.tolerance, enough=low)
            low, high = max(low, bounds[0]), max(high, bounds[1])
        return low, high

    def _directions(self) -> list[tuple[tuple[DominatingPair, int], ...]]:
        """The pairs with their counts: all removals, and all additions where they differ."""
        runs = [(m.pairs(), count) for m, count in self.ledger.collected().entries]
        if not runs:
            return []
        both = any(len(pairs) == 2 for pairs, _ in runs)
        return [
            _merged(tuple((pairs[min(way, len(pairs) - 1)], count) for pairs, count in runs))
            for way in range(1 + both)
        ]


def _merged(
    pairs: tuple[tuple[DominatingPair, int], ...],
) -> tuple[tuple[DominatingPair, int], ...]:
    """The pairs with all unsampled Gaussian ones made one: their losses add to a Gaussian loss."""
    square, others = 0.0, list[tuple[DominatingPair, int]]()
    for pair, count in pairs:
        if isinstance(pair, PeakedPair) and isinstance(pair.noise, Gaussian):
            square += count * (pair.shift / pair.noise.sigma) ** 2
        else:
            others.append((pair, count))
    if square == 0:
        return tuple(others)
    # Rounded up: a larger mu dominates, by some 1e-15 of epsilon.
    mu = math.sqrt(square) * (1 + 1e-15 * len(pairs))
    return ((PeakedPair(noise=Gaussian(sigma=1.0), shift=mu), 1), *others)
