"""What releases of a log-convex law cost in privacy, fast: an estimate to search with, no proof.

The line is cut into cells; a cell of masses (u, v) under the sampled law and under Q is one atom of
the loss ln(u/v), which is post-processing, so estimates are mostly a little low, by 1e-4 or less.
Only removals are looked at. What is found with these estimates is proved afterwards by the PLD
accountant.

Symbols: ``p``, ``v`` masses of the cells under the law at 0 and at s; ``s`` sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dpmech import LaplaceMixture, Noise, Unattainable
from dpmech.noise import Floats
from optimizer_search._composition import Composed, composed
from optimizer_search.problem import Budget, SearchProblem

# Cells a decade of |x| in units of s, and the decades; and cells of equal width on [0, s/2].
_PER_DECADE, _DECADES, _EVEN = 30, (-11, 7), 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimator:
    """Estimates for the releases of a problem."""

    problem: SearchProblem

    @cached_property
    def edges(self) -> Floats:
        """Edges of the cells on x < s/2, dense around 0, where log-convex laws lose most."""
        first, last = _DECADES
        y = np.geomspace(10.0**first, 10.0**last, _PER_DECADE * (last - first) + 1)
        even = np.linspace(0.0, 0.5, _EVEN + 1)
        return self.problem.sensitivity * np.unique(np.concatenate([-y, even, y[y < 0.5]]))

    def masses(self, law: Noise) -> tuple[Floats, Floats]:
        """Masses (p, v) of all cells: x -> s - x exchanges the law at 0 and the law at s."""
        if isinstance(law, LaplaceMixture):
            weights = np.asarray(law.weights)
            p, v = (part @ weights for part in self.tables(np.asarray(law.scales)))
            return p, v
        return self._swapped(lambda y: _between(law.logsf(y)))

    def tables(self, scales: Floats) -> tuple[Floats, Floats]:
        """The same of Laplace laws of these scales, one a column."""
        return self._swapped(lambda y: _laplace_between(y, scales))

    def _swapped(self, between: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
        at_0, left = np.abs(self.edges), int(np.searchsorted(self.edges, 0.0))
        p = np.concatenate([between(at_0[: left + 1]), between(at_0[left:])[1:]])
        v = between(self.problem.sensitivity - self.edges)
        return np.concatenate([p, v]), np.concatenate([v, p])

    def composed(self, law: Noise) -> Composed:
        """The composition of the problem's releases of the law."""
        return composed(*self.masses(law), self.problem)

    def fitted(self, law: Noise) -> Noise:
        """The law at the scale that the problem asks for: of the target's epsilon, or the budget.

        Raises Unattainable where there is none.
        """
        target = self.problem.target
        if isinstance(target, Budget):
            return law.scaled(self.problem.cost.factor(law, target.cost))

        def excess(log_factor: float) -> float:
            found = self.composed(law.scaled(math.exp(log_factor))).epsilon
            return math.log(max(found, 1e-9) / target.epsilon)

        return law.scaled(math.exp(falling_root(excess)))

    def value(self, fitted: Noise) -> float:
        """What the problem wants least of, for a law of the right scale."""
        if self.problem.least_cost:
            return self.problem.cost.of(fitted)
        return self.composed(fitted).epsilon


def falling_root(falling: Callable[[float], float], farthest: float = 60.0) -> float:
    """Where a falling ln of (reached / wanted) is 0; Unattainable if not within ``farthest``."""
    from scipy.optimize import brentq  # takes long to import

    near, at_near = 0.0, falling(0.0)
    far, step = near, at_near if abs(at_near) < 1 else math.copysign(1.0, at_near)
    if step == 0:
        return 0.0
    while abs(far) < farthest:
        far = near + 1.2 * step
        at_far = falling(far)
        if at_far * at_near <= 0:
            low, high = min(near, far), max(near, far)
            return float(brentq(falling, low, high, xtol=1e-9))
        near, at_near, step = far, at_far, 1.5 * step
    ratio = math.exp(min(at_near, 700.0))
    raise Unattainable(
        f"No scale within e^±{farthest:g} of the law's meets the problem; the last one tried has "
        f"{ratio:.6g} times the epsilon asked for. Ask for another epsilon or delta.",
        reached=ratio,
    )


def _between(log_tail: Floats) -> Floats:
    """Masses between neighbouring distances from the centre; of the first, from it to infinity."""
    drop = -np.abs(np.diff(log_tail))
    between = np.exp(np.maximum(log_tail[1:], log_tail[:-1])) * -np.expm1(drop)
    return np.concatenate([np.exp(log_tail[:1]), between])


def _laplace_between(y: Floats, scales: Floats) -> Floats:
    """The same of Laplace laws, one a column."""
    near, wide = np.minimum(y[1:], y[:-1]), np.abs(np.diff(y))
    between = np.exp(-near[:, None] / scales) * -np.expm1(-wide[:, None] / scales)
    return np.concatenate([np.exp(-y[:1, None] / scales), between]) / 2
