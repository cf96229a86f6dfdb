"""What any noise must cost, or lose: the best proved lower bound for a problem.

One release: the dual of a linear program. Several: what they say of one (``_few_symbols``), and a
linear program over the laws that this leaves. A law has *some* total variation y under the shift
s: the range of y is cut into parts, on each of which the limits H_gamma <= delta_gamma are those
of that part at the shift s and those of the whole range at shorter shifts (where the total
variation is not known); the least of the parts' bounds is proved. Of wide noise, k shifts in a row
are looked at as one of k s, to first order without loss. The sum of T unsampled releases
is a release, too, of sensitivity T s and variance T V. One coordinate of a vector is a scalar
release with the vector's guarantee, and its variance is the mean one for the right coordinate.

Epsilon at a budget: an epsilon at which all laws cost more than the budget is out of reach.

Laws are symmetric about 0. Source: mathematics.md §3 and §7.4. Symbols: ``s`` sensitivity, ``T``
steps, ``y`` total variation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from dpmech import Gaussian
from optimizer_search._few_lattice import TwoLimits
from optimizer_search._few_symbols import Curve, FewSymbols
from optimizer_search.problem import Bound, Budget, SearchProblem
from optimizer_search.single_release import single_release_bound

_FEW = "few-symbol post-processing of each release, and the dual of a linear program"
_SUM = "the sum of all releases, and the dual of a linear program"
# Where the range of y is cut first, as shares of the largest; and into how many parts in the end.
_FIRST = (0.0, 0.65, 0.8, 0.9, 1.0)
_PARTS = 10
# ln gamma of the limits, in units of the loss of a typical release.
_LEVELS = (0.001, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0)
# Lattice points per standard deviation, and per sensitivity; standard deviations of them.
_PER_SIZE, _FINEST, _EXTENT = 5.0, 40, 6.0
# Of noise so many sensitivities wide, several shifts are looked at as one.
_WIDE, _ROUNDING = 30.0, 1e-12
# Of an epsilon: how close costs come to the budget, the proofs spent on it, the parts of each.
_CLOSE, _MOST_PROOFS, _ROUGH_PARTS = 0.02, 6, 7
# Where it is looked for first, as a share of the Gaussian's, and how costs fall with it.
_START, _POWER, _NO_COST, _MOST_EPSILON = 0.75, 1.5, 0.05, 50.0


def best_bound(problem: SearchProblem) -> Bound | None:
    """The best proved bound on the cost, or on epsilon at a budget; None where none is known.

    **Guarantees.** No symmetric law whatever has a smaller value for the problem.

    >>> from dpmech import Target
    >>> from optimizer_search import Cost, SearchProblem
    >>> target = Target(epsilon=1.0, delta=1e-5)
    >>> bound = best_bound(SearchProblem(target=target, steps=4, cost=Cost(name="variance")))
    >>> bound.on, 10 < bound.value < 30
    ('cost', True)
    """
    if problem.dim > 1:
        return best_bound(replace(problem, dim=1))
    if problem.steps == 1:
        return single_release_bound(problem)
    return composed_bound(problem)


def composed_bound(problem: SearchProblem) -> Bound | None:
    """The bound for several releases of a scalar; None for costs that are no mean.

    **Guarantees.** No symmetric law whatever has a smaller value for the problem.
    """
    if problem.dim > 1 or problem.steps == 1 or not problem.cost.linear:
        return None
    if problem.sampling.rate < 1 and problem.sampling.kind != "poisson":
        return None
    target = problem.target
    if isinstance(target, Budget):
        value = _least_epsilon(problem, target)
        return Bound(value=value, on="epsilon", method=_FEW) if value > 0 else None
    found = [Bound(value=Parts(problem, target.epsilon).least(), on="cost", method=_FEW)]
    if problem.cost.name == "variance" and problem.sampling.rate == 1:
        found.append(_by_sum(problem))
    best = max(found, key=lambda bound: bound.value)
    return best if best.value > 0 else None


def _by_sum(problem: SearchProblem) -> Bound:
    """Of the variance V: T V is that of one release of sensitivity T s, which is T^2 that of s."""
    one = single_release_bound(replace(problem, steps=1))
    value = 0.0 if one is None else problem.steps * one.value
    return Bound(value=value, on="cost", method=_SUM)


def _least_epsilon(problem: SearchProblem, budget: Budget) -> float:
    """An epsilon (0 if none is found) at which every law is proved to cost more than the budget."""
    low, high = 0.0, math.inf
    epsilon, power = _START * _gaussian_epsilon(problem, budget), _POWER
    before: tuple[float, float] | None = None
    for _ in range(_MOST_PROOFS):
        share = max(Parts(problem, epsilon).least(_ROUGH_PARTS) / budget.cost, _NO_COST)
        low, high = (max(low, epsilon), high) if share > 1 else (low, min(high, epsilon))
        if 1 < share < 1 + _CLOSE:
            break
        if before is not None:
            slope = math.log(share / before[1]) / math.log(before[0] / epsilon)
            power = min(max(slope, _POWER / 4), 4 * _POWER)
        before = epsilon, share
        # A little less than expected: a proof that fails is worth nothing.
        epsilon *= (share / (1 + _CLOSE / 3)) ** (1 / power)
        if not low < epsilon < high:
            epsilon = math.sqrt(low * high) if low > 0 else 0.7 * high
    return low


def _gaussian_epsilon(problem: SearchProblem, budget: Budget) -> float:
    """About the epsilon of Gaussian noise at the budget, by its central limit."""
    from scipy.special import ndtri

    scale = problem.cost.factor(Gaussian(sigma=1.0), budget.cost) / problem.sensitivity
    mu = math.sqrt(problem.steps * math.expm1(min(scale**-2, 50.0)))
    mu *= problem.sampling.rate if problem.sampling.rate < 1 else 1.0
    return min(mu * mu / 2 - mu * float(ndtri(problem.delta)), _MOST_EPSILON)


@dataclass(frozen=True)
class Part:
    """A part of the range of y, between those of two curves, and what laws in it must cost."""

    left: Curve
    right: float
    bound: float


@dataclass(frozen=True)
class Parts:
    """The bounds at an epsilon, part by part."""

    problem: SearchProblem
    epsilon: float

    @cached_property
    def symbols(self) -> FewSymbols:
        """The releases, four symbols each."""
        it = self.problem
        return FewSymbols(
            steps=it.steps, rate=it.sampling.rate, epsilon=self.epsilon, delta=it.delta
        )

    @cached_property
    def _any(self) -> Curve:
        return self.symbols.curve(0.0)

    @property
    def _most(self) -> float:
        return self.symbols.most_variation

    @cached_property
    def _gammas(self) -> Sequence[float]:
        """A release that tells y apart has a typical loss of about 2 y."""
        return [math.exp(level * self._typical) for level in _LEVELS]

    @property
    def _typical(self) -> float:
        return 2 * math.atanh(min(self._most, 1 - 1e-9))

    @cached_property
    def _short(self) -> Sequence[float]:
        return [self._any.excess(gamma, self._most) for gamma in self._gammas]

    def least(self, count: int = _PARTS) -> float:
        """What any law must cost, from so many parts."""
        return min(part.bound for part in self.parts(count))

    def parts(self, count: int) -> list[Part]:
        """The whole range in so many parts: always the one of the least bound is halved."""
        edges = [share * self._most for share in _FIRST]
        parts = [self._part(left, right) for left, right in pairwise(edges)]
        while len(parts) < count:
            worst = min(parts, key=lambda part: part.bound)
            parts.remove(worst)
            parts += self._halves(worst)
        return parts

    def _halves(self, part: Part) -> Iterator[Part]:
        middle = (part.left.x + part.right) / 2
        yield self._bounded(part.left, middle)
        yield self._part(middle, part.right)

    def _part(self, left: float, right: float) -> Part:
        curve = self.symbols.curve(left, self._any) if left > 0 else self._any
        return self._bounded(curve, right)

    def _bounded(self, left: Curve, right: float) -> Part:
        it = self.problem
        # The standard deviation, in sensitivities, of Gaussian noise of this total variation.
        size = 0.4 / self._most
        k = max(1, round(size / _WIDE))
        full = [left.excess(gamma, right) for gamma in self._gammas]
        program = TwoLimits(
            gammas=[gamma**k for gamma in self._gammas],
            full=_grouped(self._gammas, full, k),
            short=_grouped(self._gammas, self._short, k),
            cost=it.cost,
            sensitivity=k * it.sensitivity,
            m=min(_FINEST, math.ceil(_PER_SIZE * k / size)),
            extent=_EXTENT * size / k + 3,
        )
        return Part(left=left, right=right, bound=program.bound)


def _grouped(gammas: Sequence[float], limits: Sequence[float], k: int) -> Sequence[float]:
    """Limits on H_{gamma^k} after k shifts of which each has the limit on H_gamma.

    P_k <= gamma P_{k-1} + delta <= ... <= gamma^k P_0 + (1 + gamma + ... + gamma^(k-1)) delta.
    """
    return [
        limit * math.fsum(gamma**j for j in range(k)) * (1 + _ROUNDING)
        for gamma, limit in zip(gammas, limits, strict=True)
    ]
