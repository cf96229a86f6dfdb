"""Accounting with privacy loss distributions, certified on both sides (mathematics.md §4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from accountants._compose import Composition, Window, tilted_window
from accountants._discretise import LARGEST_GRID, bracket, fitted_step
from accountants._single import single_delta, single_epsilon
from accountants.base import Composer, Ledger, checked_delta, checked_epsilon
from dpmech import DominatingPair, Mechanism

# Share of delta that may be lost, over all releases, to loss tails cut off the grids.
_TAIL_SHARE = 1e-9
# A bound this small is as good as 0: what the pairs themselves leave unresolved.
_NOTHING = 1e-280
_ROUNDS = 5


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
            bounds = _Direction(pairs).epsilon_interval(delta, self.tolerance, enough=low)
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
            bounds = _Direction(pairs).delta_interval(epsilon, self.tolerance, enough=low)
            low, high = max(low, bounds[0]), max(high, bounds[1])
        return low, high

    def _directions(self) -> list[tuple[tuple[DominatingPair, int], ...]]:
        """The pairs with their counts: all removals, and all additions where they differ."""
        runs = [(m.pairs(), count) for m, count in self.ledger.collected().entries]
        if not runs:
            return []
        both = any(len(pairs) == 2 for pairs, _ in runs)
        return [
            tuple((pairs[min(way, len(pairs) - 1)], count) for pairs, count in runs)
            for way in range(1 + both)
        ]


@dataclass(frozen=True)
class _Direction:
    """Composition of the pairs of one direction."""

    pairs: tuple[tuple[DominatingPair, int], ...]

    @property
    def _runs(self) -> int:
        return sum(count for _, count in self.pairs)

    def _composed(self, step: float, tail: float) -> tuple[Composition, Composition]:
        """(dominated, dominating) compositions."""
        both = [(bracket(pair, step, tail), count) for pair, count in self.pairs]
        return (
            Composition(parts=tuple((below, count) for (below, _), count in both)),
            Composition(parts=tuple((above, count) for (_, above), count in both)),
        )

    def epsilon_interval(
        self, delta: float, tolerance: float, *, enough: float = 0.0
    ) -> tuple[float, float]:
        if self._runs == 1:
            single = single_epsilon(self.pairs[0][0], delta)
            if single[0] == math.inf or single[1] - single[0] <= tolerance * single[0]:
                return single
        tail = delta * _TAIL_SHARE / self._runs

        def at(step: float) -> tuple[float, float]:
            below, above = self._composed(step, tail)
            if below.infinite >= delta:
                return math.inf, math.inf
            low = _epsilon_below(below, delta)
            return low, _epsilon_above(above, delta)

        return self._refined(at, tail, tolerance, enough)

    def delta_interval(
        self, epsilon: float, tolerance: float, *, enough: float = 0.0
    ) -> tuple[float, float]:
        if self._runs == 1:
            return single_delta(self.pairs[0][0], epsilon)
        # delta is not known yet, so its tails are cut for the smallest delta worth telling apart.
        tail = 1e-60

        def at(step: float) -> tuple[float, float]:
            below, above = self._composed(step, tail)
            return _delta_below(below, epsilon), _delta_above(above, epsilon)

        return self._refined(at, tail, tolerance, enough)

    def _refined(
        self,
        at: Callable[[float], tuple[float, float]],
        tail: float,
        tolerance: float,
        enough: float,
    ) -> tuple[float, float]:
        """Refine the step until the gap is within tolerance; keep the best of all bounds.

        An upper bound not above ``enough``, what the other direction surely reaches, needs no more.
        """
        spans = [high - low for low, high in (pair.loss_range(tail) for pair, _ in self.pairs)]
        # Below 1e-12 neighbouring ratios e^l are no longer apart in doubles.
        floor = max(1.01 * max(spans) / LARGEST_GRID, 1e-12)
        step = max(min(max(spans) / 4096, 0.1), floor)
        low, high = 0.0, math.inf
        for _ in range(_ROUNDS):
            step = fitted_step(self.pairs[0][0], max(step, floor))
            try:
                bounds = at(step)
            except MemoryError:  # the window outgrew the largest grid: what is proved so far stands
                break
            low, high = max(low, bounds[0]), min(high, bounds[1])
            if (
                high <= max(enough, low + tolerance * high, _NOTHING)
                or low == math.inf
                or step <= floor
            ):
                break
            step *= _refinement(*bounds, tolerance)
        return low, high


def _windows(composition: Composition, delta: float) -> Iterator[Window]:
    """Windows to look for epsilon in: the saddle point's, or several where there is none.

    Where atoms at the largest losses outweigh delta, a strong tilt shows those atoms only, and
    rounding swamps what lies below; the best tilt is then found by trying.
    """
    tilt = composition.tilt_for_delta(delta)
    yield tilted_window(composition, tilt)
    if tilt < 1 / composition.step:
        return
    while tilt > 0.1:
        tilt /= 4
        yield tilted_window(composition, tilt)


def _epsilon_above(composition: Composition, delta: float) -> float:
    """An upper bound on epsilon at ``delta`` from a dominating composition."""
    left = delta - composition.infinite
    if left <= 0:
        return math.inf
    found = (_crossing(w, left, Window.upper_delta) for w in _windows(composition, left))
    return min(found) + composition.slack


def _epsilon_below(composition: Composition, delta: float) -> float:
    """A lower bound on epsilon at ``delta`` from a dominated composition."""
    left = delta - composition.infinite
    windows = _windows(composition, left)
    found = max(_crossing(w, left, Window.lower_delta, _resolved(w, left)) for w in windows)
    # The level found no longer exceeds delta, but a little below it everything does.
    return max(0.0, found * (1 - 1e-9) - 1e-12 - composition.slack)


def _resolved(window: Window, delta: float) -> float:
    """A level where the lower bound exceeds ``delta``; far below the saddle rounding swamps it."""
    _, mean, variance = window.composition.cumulants(window.tilt)
    for deviations in (8, 4, 2, 1, 0):
        level = mean - deviations * math.sqrt(variance)
        if level > 0 and window.lower_delta(level) > delta:
            return level
    return 0.0


def _crossing(
    window: Window, delta: float, bound: Callable[[Window, float], float], low: float = 0.0
) -> float:
    """The least level from ``low`` at which ``bound``, falling, is at most ``delta``."""
    high = max(low, window.low + window.step * len(window.mass))
    if bound(window, low) <= delta:
        return low
    if bound(window, high) > delta:
        return math.inf
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if bound(window, middle) <= delta else (middle, high)
    return high


def _delta_above(composition: Composition, epsilon: float) -> float:
    level = max(0.0, epsilon - composition.slack)
    if level >= composition.highest:
        return composition.infinite
    window = tilted_window(composition, composition.tilt_for_epsilon(level))
    return min(1.0, window.upper_delta(level) + composition.infinite)


def _delta_below(composition: Composition, epsilon: float) -> float:
    level = epsilon + composition.slack
    if level >= composition.highest:
        return composition.infinite
    window = tilted_window(composition, composition.tilt_for_epsilon(level))
    # Mass at infinite loss is a separate event: the finite part has what is left of the total.
    return window.lower_delta(level) + composition.infinite


def _refinement(low: float, high: float, tolerance: float) -> float:
    """The factor on the step: gaps shrink like its square, but trust no more than a factor 32."""
    if not (math.isfinite(high) and high > 0):
        return 0.25
    gap = (high - low) / high
    return min(0.5, max(1 / 32, 0.8 * math.sqrt(tolerance / gap)))
