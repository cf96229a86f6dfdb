"""Lower bounds on what any law must cost, from weights on events: no solver is trusted.

A law X rounded at random to the two nearest points of the lattice h·Z, so that the point's mean is
X, commutes with shifts by multiples of h, so the lattice law keeps every constraint
H_gamma(law moved by t || law) <= delta that X keeps at such shifts t: rounding is post-processing.
For lattice masses p and any g_t(x) >= 0, with mu_t = max_x g_t(x),

    sum_x g_t(x) (p(x - t) - gamma p(x)) <= mu_t H_gamma <= mu_t delta,

so with phi(x) = c(x) + sum_t (g_t(x + t) - gamma g_t(x)), averaged over x and -x (symmetric laws
lose nothing, H being convex), E c >= min_x phi(x) - delta sum_t mu_t. Off the lattice
phi is interpolated, and c lies below its own chord by the cell's chord gap at most. Beyond all
events phi is c, which rises. Both minima are over *all* points, not those a solver looked at.

For P(|X| > b), a jump that chords lose a cell of, X goes to the cell (jh, (j + 1)h] that it lies
in: post-processing that commutes with the same shifts. The cell costs 1 if all of it lies beyond b,
so with b a multiple of h nothing is lost but an atom at -b. Atoms may be taken to lie at 0: moved
by almost any t, and so by some t next to any |t| <= s, the atoms of X, of mass a, meet none, and

    H_gamma = a + H_gamma(the rest of X moved by t || the rest of X),

of which the second part is lower semicontinuous in t: delta - a at most, at every |t| <= s. Any law
of mass a in place of the atoms adds a at most, H being subadditive; atoms at 0 cost nothing.

Symbols: ``h`` lattice step, ``m = s/h`` points a sensitivity, ``t`` shift in steps, ``x`` landing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dpmech.noise import Floats
from optimizer_search._renyi_bound import decimal
from optimizer_search.cost import Cost

Ints = NDArray[np.int64]
_EPS = float(np.finfo(np.float64).eps)
# Places inside a cell at which a convex cost is compared with its chord.
_PLACES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Events:
    """Weights on landings ``x`` of the lattice after shifts ``t``, of one constraint.

    Shapes (n,) each; ``t`` >= 1. Weights below 0 count as 0; of the same event they add up.
    """

    gamma: float
    delta: float
    t: Ints
    x: Ints
    weight: Floats

    @property
    def reach(self) -> int:
        """The farthest lattice point that is a landing or its source."""
        return int(max(np.max(np.abs(self.x)), np.max(np.abs(self.x - self.t)), 1))

    def price(self) -> float:
        """delta times the sum over shifts of the largest weight."""
        weight = np.maximum(self.weight, 0.0)
        low = int(np.min(self.x))
        table = sparse.coo_array((weight, (self.t, self.x - low))).tocsr()
        top = table.max(axis=1).toarray()
        return self.delta * math.fsum(top.ravel()) * (1 + 8 * _EPS)

    def moments(self, points: int, *, centred: bool) -> tuple[Floats, Floats]:
        """What the events add to phi at x >= 0, shape (points,), and a bound on its rounding."""
        weight = np.maximum(self.weight, 0.0)
        source = folded(self.x - self.t, centred=centred)
        landing = folded(self.x, centred=centred)
        gain = np.bincount(source, weight, points)
        loss = self.gamma * np.bincount(landing, weight, points)
        terms = np.bincount(source, minlength=points) + np.bincount(landing, minlength=points)
        return gain - loss, (terms + 4) * _EPS * (gain + loss)


def certified_bound(
    events: list[Events], cost: Cost, sensitivity: float, m: int, *, centred: bool = True
) -> float:
    """A lower bound on E c(|X|) of every law within the events' constraints, h = sensitivity/m.

    ``centred``: the events' landings are points; otherwise they are cells (of usefulness only).

    **Guarantees.** True whatever the weights are; rounding is bounded and subtracted.

    Raises ValueError where an event's shift is not one of 1 … m steps.
    """
    for e in events:
        if not (len(e.t) and 1 <= np.min(e.t) <= np.max(e.t) <= m):
            raise ValueError(f"Expected shifts of 1 to m={m} steps, got {e.t}.")
    step = sensitivity / m
    points = max((e.reach for e in events), default=1) + 2
    value = lattice_cost(cost, step, points) if centred else cell_cost(cost, sensitivity, m, points)
    count = counts(points, centred=centred)
    phi, wrong = count * value, 4 * _EPS * np.abs(value)
    for e in events:
        added, error = e.moments(points, centred=centred)
        phi, wrong = phi + added, wrong + error
    level = (phi - wrong - 8 * _EPS * np.abs(phi)) / count
    if centred:
        level = np.minimum(level[:-1], level[1:]) - chord_gaps(cost, step, points)
    price = math.fsum(e.price() for e in events)
    least = float(np.min(level))
    return least - price - 8 * _EPS * (abs(least) + price)


def folded(x: Ints, *, centred: bool) -> Ints:
    """The point, or cell, on x >= 0 for each: cells j and -1 - j mirror each other."""
    return np.abs(x) if centred else np.maximum(x, -1 - x)


def counts(points: int, *, centred: bool) -> Floats:
    """How many points, or cells, of the line fold to each; shape (points,)."""
    count = np.full(points, 2.0)
    count[0] = 1.0 if centred else 2.0
    return count


def cell_cost(cost: Cost, sensitivity: float, m: int, points: int) -> Floats:
    """Least costs of usefulness on the cells (jh, (j + 1)h]: 0 where one holds the parameter.

    The parameter and the sensitivity are the decimal numbers they are written as.

    Raises ValueError for another cost.
    """
    if cost.name != "usefulness":
        raise ValueError(f"Expected the cost usefulness on cells, got {cost}: use points.")
    first = math.ceil(decimal(cost.parameter or 0.0) * m / decimal(sensitivity))
    return (np.arange(points) >= first).astype(np.float64)


def lattice_cost(cost: Cost, step: float, points: int) -> Floats:
    """Costs at the lattice points whose interpolation is c (convex), or nowhere above it."""
    x: Floats = step * np.arange(points, dtype=np.float64)
    if cost.is_convex:
        return cost.at(x)
    # A cost that only rises: that of the point before.
    return np.append(np.zeros(2), cost.at(x[1:-1]))[:points]


def chord_gaps(cost: Cost, step: float, points: int) -> Floats:
    """By how much c may lie below its chord on each cell between neighbouring points."""
    if cost.name == "variance":
        return np.full(points - 1, step**2 / 4 * (1 + 8 * _EPS))
    if cost.name != "convex":
        return np.zeros(points - 1)
    x: Floats = step * np.arange(points, dtype=np.float64)
    fine = np.linspace(0.0, 1.0, _PLACES + 1)
    inside = cost.at(x[:-1, None] + step * fine)
    chord = inside[:, :1] + (inside[:, -1:] - inside[:, :1]) * fine
    # Between places, c is below its chord by a quarter of the change of slopes around at most.
    after = cost.at(x[1:] + step * fine[1])[:, None]
    slopes = np.diff(np.concatenate([inside, after], axis=1), axis=1)
    before = np.append(0.0, slopes[:-1, -2])[:, None]
    bend = np.max(np.diff(np.concatenate([before, slopes], axis=1), axis=1), axis=1)
    return np.max(chord - inside, axis=1) + np.maximum(bend, 0.0)
