"""What releases of a tabulated law cost, smooth in its table: epsilon and derivatives.

Symbols: ``theta`` ln of the density on the shells (cells of |x| for a scalar), ``m`` their masses,
``t`` shift, ``K_ab`` the chance that a point uniform in shell a is, moved by t, in shell b;
``l = theta_a - theta_b`` loss where they meet, ``q`` rate, ``T`` steps, ``S`` the loss of T - 1
releases. The adversary chooses the worst shift at every loss: the pair is the one whose curve is
the maximum over shifts, and its derivative at a loss is that of the shift which is worst there.
All of it is for searching only; what is found is proved afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dpmech.noise import Floats
from dpmech.spherical import meetings
from dpmech.tabulated import log_volumes
from optimizer_search._composition import Composed, composed
from optimizer_search.problem import SearchProblem

# scipy's sparse matrices have no types.
Matrix = Any
# Losses at which the curves of the shifts are compared.
_LEVELS = 2_001
_TINY = 1e-300


@dataclass(frozen=True, kw_only=True, eq=False)
class Meetings:
    """The shells a and b that meet at one shift.

    ``chance`` of a point in a to be in b once moved, ``back`` that of a point in b to be in a.
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    chance: Floats
    back: Floats

    @classmethod
    def at(cls, edges: Floats, shift: float, dim: int) -> Meetings:
        """Those at a shift."""
        a, b, chance, _ = meetings(edges, shift, dim)
        log_volume = log_volumes(edges, dim)
        with np.errstate(divide="ignore"):
            back = np.exp(np.log(chance) + log_volume[a] - log_volume[b])
        return cls(a=a, b=b, chance=chance, back=back)

    def atoms(self, theta: Floats, masses: Floats) -> tuple[Floats, Floats, Floats]:
        """(losses, P-masses, Q-masses)."""
        loss = theta[self.a] - theta[self.b]
        return loss, masses[self.a] * self.chance, masses[self.b] * self.back


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """A table looked at: its epsilon, and how far each shift is from the worst at each level.

    ``short``: by how much its curve is below the worst, as a share of that; (shifts, levels).
    """

    theta: Floats
    masses: Floats
    levels: Floats
    short: Floats
    composed: Composed
    slope: float

    @property
    def epsilon(self) -> float:
        return self.composed.epsilon


@dataclass(frozen=True, kw_only=True, eq=False)
class Shells:
    """Tables on the shells between ``edges``, for releases against all of the ``shifts``.

    ``costs``: the mean of the cost on each shell.
    """

    edges: Floats
    dim: int
    shifts: Sequence[float]
    problem: SearchProblem
    costs: Floats

    @cached_property
    def meetings(self) -> tuple[Meetings, ...]:
        """The meetings at each shift."""
        return tuple(Meetings.at(self.edges, t, self.dim) for t in self.shifts)

    @cached_property
    def log_volumes(self) -> Floats:
        """ln of the volumes, up to a constant."""
        return log_volumes(self.edges, self.dim)

    def masses(self, theta: Floats) -> Floats:
        """The masses of the shells, which sum to 1."""
        log_mass = theta + self.log_volumes
        masses = np.exp(log_mass - np.max(log_mass))
        return masses / np.sum(masses)

    def state(self, theta: Floats) -> State:
        """Epsilon of the releases of a table, at the worst of the shifts."""
        masses = self.masses(theta)
        atoms = [meeting.atoms(theta, masses) for meeting in self.meetings]
        levels = self._levels(atoms[-1])
        if len(atoms) == 1:
            (_, p, v), short = atoms[0], np.zeros((1, len(levels)))
        else:
            p, v, short = _worst(atoms, levels)
        found = composed(p, v, self.problem)
        slope = self._slope(found, p, v)
        return State(
            theta=theta, masses=masses, levels=levels, short=short, composed=found, slope=slope
        )

    def _levels(self, atoms: tuple[Floats, Floats, Floats]) -> Floats:
        loss, p, v = atoms
        seen = np.maximum(p, v) > 1e-4 * self.problem.delta / self.problem.steps
        reach = min(60.0, 1.05 * float(np.max(np.abs(loss[seen]), initial=1e-3)))
        return np.linspace(-reach, reach, _LEVELS)

    def _slope(self, found: Composed, p: Floats, v: Floats) -> float:
        """By how much delta falls as epsilon grows."""
        q = self.problem.sampling.rate
        u = (1 - q) * v + q * p
        there = (u > _TINY) & (v > _TINY)
        _, g = found.tails(found.epsilon - np.log(u[there] / v[there]))
        return max(math.exp(found.epsilon) * float(v[there] @ g), _TINY)

    def derivatives(self, state: State, sharpness: float) -> tuple[Floats, Matrix]:
        """(gradient, convex part of the Hessian) of epsilon in theta, at equal total mass.

        Where several shifts are nearly worst, each counts by e^(-sharpness short).
        """
        shares = np.exp(np.maximum(-sharpness * state.short, -700.0))
        shares /= np.sum(shares, axis=0)
        n, q, levels = len(state.theta), self.problem.sampling.rate, state.levels
        with np.errstate(over="ignore"):
            mixed = np.log1p(q * np.expm1(levels))
        f, g = state.composed.gradient(mixed)
        steps_f, steps_g = np.diff(f, prepend=0.0), np.diff(-g, prepend=0.0)
        width = levels[1] - levels[0]
        gradient, blocks = np.zeros(n), list[tuple[Meetings, Floats]]()
        for meeting, share in zip(self.meetings, shares, strict=True):
            if np.max(share) < 1e-6:
                continue
            loss, p, v = meeting.atoms(state.theta, state.masses)
            f_at = np.interp(loss, levels, np.cumsum(share * steps_f))
            g_at = np.interp(loss, levels, np.cumsum(share * steps_g))
            gradient += np.bincount(meeting.a, p * q * f_at, n)
            gradient += np.bincount(meeting.b, v * ((1 - q) * f_at - g_at), n)
            bend = np.interp(loss, levels, share * np.maximum(steps_f, 0.0) / width)
            blocks.append((meeting, q * p * bend))
        scale = self.problem.steps / state.slope
        return scale * gradient, scale * _laplacian(blocks, n)


def _worst(
    atoms: Sequence[tuple[Floats, Floats, Floats]], levels: Floats
) -> tuple[Floats, Floats, Floats]:
    """(P-masses, Q-masses) of cells of the worst curve, and how far below it each shift is."""
    width, n = levels[1] - levels[0], len(levels)
    p_above, v_above = np.empty((len(atoms), n)), np.empty((len(atoms), n))
    for row, (loss, p, v) in enumerate(atoms):
        cell = np.clip(np.ceil((loss - levels[0]) / width), 0, n).astype(np.int64)
        for above, masses in ((p_above, p), (v_above, v)):
            above[row] = np.cumsum(np.bincount(cell, masses, n + 1)[::-1])[::-1][1:]
    curves = p_above - np.exp(levels) * v_above
    worst, column = np.argmax(curves, axis=0), np.arange(n)
    top = curves[worst, column]
    # Beyond the trivial divergence that mass alone gives.
    size = np.maximum(top - np.maximum(0.0, -np.expm1(levels)), _TINY)
    p, v = _cells(p_above[worst, column]), _cells(v_above[worst, column])
    return *_within(p, v, levels), (top - curves) / size


def _cells(above: Floats) -> Floats:
    """Masses of the cells between levels, from those above each."""
    return np.maximum(-np.diff(np.concatenate([[1.0], above, [0.0]])), 0.0)


def _within(p: Floats, v: Floats, levels: Floats) -> tuple[Floats, Floats]:
    """The masses with losses made to lie between their levels: differences of sums are rounded."""
    width = levels[1] - levels[0]
    low = np.append(levels[0] - width, levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = np.nan_to_num(np.log(p) - np.log(v), nan=0.0, posinf=np.inf, neginf=-np.inf)
    loss = np.clip(loss, low, low + width)
    return np.where(loss < 0, v * np.exp(loss), p), np.where(loss < 0, v, p * np.exp(-loss))


def _laplacian(blocks: Sequence[tuple[Meetings, Floats]], n: int) -> Matrix:
    """The matrix of the form sum k (x_a - x_b)^2."""
    rows, columns, values = list[NDArray[np.int64]](), list[NDArray[np.int64]](), list[Floats]()
    for meeting, k in blocks:
        rows += [meeting.a, meeting.b, meeting.a, meeting.b]
        columns += [meeting.a, meeting.b, meeting.b, meeting.a]
        values += [k, k, -k, -k]
    where = (np.concatenate(rows), np.concatenate(columns))
    return sparse.coo_matrix((np.concatenate(values), where), shape=(n, n)).tocsc()
