"""Newton's method on ln f for the table of least epsilon at a cost (mathematics.md §7.6).

Symbols: ``theta`` ln of the density, ``m`` masses of the shells, ``c`` mean cost on them. Each step
solves the problem's quadratic model under both linear constraints (total mass, cost), is brought
back to the constraints by a power of the density, and is halved until epsilon itself has fallen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve

from dpmech.noise import Floats
from optimizer_search._shells import Shells, State

# No entry that carries mass moves by more in one step.
_LONGEST = 1.0
_SHORTEST = 1e-3
_LEAST_DAMPING, _MOST_DAMPING = 1e-12, 1e2
_ENOUGH = 3
# How sharply the worst of several shifts is preferred: another where one leads no further.
_SHARP = (100.0, 30.0, 300.0, 1000.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Descent:
    """How to go down: to which cost, whether densities must fall, and when to stop."""

    budget: float
    falling: bool
    iterations: int = 150
    least_gain: float = 1e-6
    sharpness: float = _SHARP[0]


def descend(shells: Shells, theta: Floats, how: Descent) -> State:
    """The best table reached from ``theta``."""
    theta = tempered(shells, pooled(theta, shells.masses(theta)) if how.falling else theta, how)
    state, left = shells.state(theta), how.iterations
    for sharpness in _SHARP[: 1 if len(shells.shifts) == 1 else None]:
        state, left = _down(shells, state, replace(how, iterations=left, sharpness=sharpness))
    return state


def _down(shells: Shells, state: State, how: Descent) -> tuple[State, int]:
    """The best table reached at one sharpness, and the iterations that are left."""
    damping, idle = 1e-8, 0
    for done in range(how.iterations):
        found = _step(shells, state, how, damping)
        if found is None:
            damping = max(30 * damping, 1e-6)
            if damping > _MOST_DAMPING:
                return state, how.iterations - done - 1
            continue
        idle = idle + 1 if state.epsilon - found.epsilon < how.least_gain * state.epsilon else 0
        damping, state = max(damping / 5, _LEAST_DAMPING), found
        if idle >= _ENOUGH:
            return state, how.iterations - done - 1
    return state, 0


def _step(shells: Shells, state: State, how: Descent, damping: float) -> State | None:
    """A table of less epsilon along Newton's direction; None where there is none."""
    direction = _direction(shells, state, how, damping)
    carries = state.masses > 1e-14
    step = min(1.0, _LONGEST / max(1e-12, float(np.max(np.abs(direction[carries])))))
    while step > _SHORTEST:
        theta = state.theta + step * direction
        if how.falling:
            theta = pooled(theta, state.masses)
        found = shells.state(tempered(shells, theta, how))
        if found.epsilon < state.epsilon:
            return found
        step /= 2
    return None


def _direction(shells: Shells, state: State, how: Descent, damping: float) -> Floats:
    """Newton's step for ln f under the constraints, within blocks of equal density if they fall."""
    gradient, hessian = shells.derivatives(state, how.sharpness)
    masses = state.masses
    rows = np.stack([masses, masses * shells.costs / how.budget])
    # First guess of the multipliers: least squares, weighted by the masses.
    weighted = rows / np.maximum(masses, 1e-300)
    multipliers = np.linalg.solve(weighted @ rows.T, -weighted @ gradient)
    reduced = gradient + multipliers @ rows
    blocks = _blocks(state.theta, reduced) if how.falling else np.arange(len(masses))
    gather = sparse.csc_matrix((np.ones(len(masses)), (np.arange(len(masses)), blocks)))
    diagonal = np.maximum(gather.T @ reduced, 0.0) + damping * (gather.T @ masses) + 1e-300
    curved = gather.T @ hessian @ gather + sparse.diags(diagonal)
    bordered = sparse.csc_matrix(gather.T @ rows.T)
    system = sparse.bmat([[curved, bordered], [bordered.T, None]]).tocsc()
    scale = sparse.diags(np.append(1 / np.sqrt(curved.diagonal()), [1.0, 1.0]))
    right = np.append(-(gather.T @ gradient), [0.0, 0.0])
    solution = scale @ spsolve((scale @ system @ scale).tocsc(), scale @ right)
    return np.clip(gather @ solution[:-2], -2.0, 2.0)


def _blocks(theta: Floats, gradient: Floats) -> NDArray[np.int64]:
    """Numbers of the runs of equal density, split where epsilon falls if the first part rises."""
    starts = np.flatnonzero(np.append(True, np.diff(theta) != 0))
    split = list[int]()
    for start, end in zip(starts, np.append(starts[1:], len(theta)), strict=True):
        if end - start > 1:
            partial = np.cumsum(gradient[start:end])[:-1]
            least = int(np.argmin(partial))
            if partial[least] < -1e-9:
                split.append(int(start) + least + 1)
    first = np.zeros(len(theta), dtype=np.int64)
    first[np.append(starts[1:], np.array(split, dtype=np.int64))] = 1
    return np.cumsum(first)


def pooled(theta: Floats, weights: Floats) -> Floats:
    """The nearest falling sequence, by pooling adjacent violators."""
    values, sizes, counts = list[float](), list[float](), list[int]()
    for value, weight in zip(theta, weights + 1e-30, strict=True):
        values.append(float(value))
        sizes.append(float(weight))
        counts.append(1)
        while len(values) > 1 and values[-2] < values[-1]:
            last, size, count = values.pop(), sizes.pop(), counts.pop()
            total = sizes[-1] + size
            values[-1] = (values[-1] * sizes[-1] + last * size) / total
            sizes[-1], counts[-1] = total, counts[-1] + count
    return np.repeat(values, counts)


def tempered(shells: Shells, theta: Floats, how: Descent) -> Floats:
    """The power of the density that costs the budget: it keeps densities falling.

    The mean cost falls with the power, so Newton's method is kept inside a bracket.
    """
    theta = theta - np.max(theta)
    low, high, power = 1e-3, 1e3, 1.0
    for _ in range(100):
        masses = shells.masses(power * theta)
        mean = float(masses @ shells.costs)
        if abs(mean / how.budget - 1) < 1e-13:
            break
        low, high = (power, high) if mean > how.budget else (low, power)
        slope = float(masses @ (shells.costs * theta)) - mean * float(masses @ theta)
        following = power + (how.budget - mean) / slope if slope else 0.0
        power = following if low < following < high else (low * high) ** 0.5
    # Masses sum to 1.
    return power * theta
