"""What a law on a lattice costs and how far its shifts diverge: proved for the law as it stands.

Symbols as in :mod:`optimizer_search._renyi_terms`; ``r`` factor by which masses beyond the table
fall from point to point.

A density that is constant on cells of width h = s/m: at a shift t between k h and (k + 1) h each
cell meets one neighbour on the share t/h - k of its width and the other on the rest, so the moment
(at order 1: the divergence) is linear in t there, and its maximum over 0 < t <= s is that over
t = h, 2 h, …, m h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dpmech.noise import Floats
from dpmech.tabulated import Tabulated
from optimizer_search._renyi_terms import Lattice, log_ratio, slopes
from optimizer_search.cost import Cost

_EPS = float(np.finfo(np.float64).eps)
# Beyond the table, cells whose share of its mass is below this cost nothing that doubles hold.
_NOTHING = 1e-25


@dataclass(frozen=True, kw_only=True)
class WholeLaw:
    """A law on the whole numbers: ``masses[i]`` is P(|X| = i), then falling by ``decay`` each.

    It need be neither unimodal nor a mechanism that the accountants know: its divergence from its
    own shifts by whole numbers is what :class:`optimizer_search.renyi.RenyiOptimum` says.
    """

    masses: tuple[float, ...]
    decay: float


def widened(step: float, size: int) -> float:
    """The step, more than rounding of edges can take from it: see :func:`_is_reached`."""
    return step * (1 + 16 * _EPS * (size + 2))


def law_of(lattice: Lattice, p: Floats, step: float) -> Tabulated | WholeLaw:
    """The law with the masses ``p`` and the lattice's geometric tail.

    The table's last entry is the tail's first: what follows falls by the factor ``decay`` from it.
    """
    decay = lattice.decay or 0.0
    listed = np.append(p[:-1], p[-1] * (1 - decay)) * np.append(lattice.counts[:-1], 2.0)
    masses = tuple((listed / float(lattice.counts @ p)).tolist())
    if lattice.centred:
        return WholeLaw(masses=masses, decay=decay)
    edges = tuple((step * np.arange(lattice.size + 2)).tolist())
    return Tabulated(edges=edges, masses=masses, decay=decay)


def point_costs(cost: Cost, lattice: Lattice, step: float) -> Floats:
    """Mean cost at each point (centred) or cell, and in the tail; shape (N + 1,).

    Merged, the tail costs what its first point does.
    """
    decay = lattice.decay or 0.0
    beyond = math.ceil(math.log(_NOTHING) / math.log(decay)) if decay > 0 else 1
    n = lattice.size
    places = step * np.arange(n + beyond + 1, dtype=np.float64)
    costs = cost.at(places[:-1]) if lattice.centred else cost.mean_on(places)
    shares = decay ** np.arange(beyond)
    tail = float(costs[n:] @ shares) / float(np.sum(shares))
    return np.append(costs[:n], tail)


def cost_of(cost: Cost, law: Tabulated | WholeLaw) -> float:
    """The law's own cost, tail included."""
    step = law.edges[-1] - law.edges[-2] if isinstance(law, Tabulated) else 1.0
    centred, masses = isinstance(law, WholeLaw), np.array(law.masses)
    lattice = Lattice(size=len(masses) - 1, shifts=1, centred=centred, decay=law.decay)
    masses[-1] /= 1 - law.decay
    return float(masses @ point_costs(cost, lattice, step)) / float(np.sum(masses))


def worst_divergence(
    law: Tabulated | WholeLaw, order: float, sensitivity: float, shifts: int
) -> float:
    """An upper bound on the divergence from the law's shifts by up to ``sensitivity``.

    That is ``shifts`` steps of its lattice. **Guarantees.** Every shift counts (of whole numbers:
    every whole one), the tail is summed to infinity, and rounding, also that of the edges, is
    bounded. Infinite where the edges are so placed that points ``shifts`` + 1 apart meet.
    """
    n, centred = len(law.masses), isinstance(law, WholeLaw)
    half = np.array(law.masses) / Lattice(size=n, shifts=1, centred=centred).counts[:-1]
    if law.decay == 0 or float(np.min(half)) == 0 or not _is_reached(law, sensitivity, shifts):
        return math.inf
    worst = max(_moment(half, law.decay, order, k, centred) for k in range(1, shifts + 1))
    # Lengths that are off by 4 EPS n steps make up a shift as they are off by.
    worst *= 1 + 16 * _EPS * n
    return (worst if order == 1 else math.log1p(worst) / (order - 1)) * (1 + 8 * _EPS)


def _is_reached(law: Tabulated | WholeLaw, sensitivity: float, shifts: int) -> bool:
    """Whether cells that are ``shifts`` apart, by their rounded edges, are the sensitivity apart.

    A hair less, and cells that are one more apart would meet, where the law may fall by its square.
    """
    if isinstance(law, WholeLaw):
        return sensitivity <= shifts
    edges = np.array(law.edges)
    line = np.concatenate([-edges[:0:-1], edges])
    apart = min(float(np.min(line[shifts:] - line[:-shifts])), shifts * (edges[-1] - edges[-2]))
    return sensitivity <= apart * (1 - 4 * _EPS)


def _moment(half: Floats, decay: float, order: float, k: int, centred: bool) -> float:
    """A bound from above on F_k of the masses ``half`` on one side and their tail."""
    n = len(half)
    lattice = Lattice(size=n - 1, shifts=k, centred=centred)
    masses = np.append(half, half[-1] * decay ** np.arange(1, k + 1))
    line = np.arange(lattice.first, n - 1 + k)
    a, b = masses[lattice.folded(line - k)], masses[lattice.folded(line)]
    # From the table's last point outwards all ratios are the same, on either side.
    last = half[-1] / (1 - decay)
    a = np.append(a, [last, last * decay**k])
    b = np.append(b, [last * decay**k, last])
    log_rho = log_ratio(a, b)
    rising, falling = slopes(order, log_rho)
    sizes = np.abs(a * rising) + np.abs(b * falling)
    # d psi / d ln rho = a psi_a; densities are off by 4 EPS n where the edges are.
    wrong = 16 * _EPS * (sizes * (1 + order * np.abs(log_rho)) + (n + k) * np.abs(a * rising))
    value = float(np.sum(a * rising + b * falling))
    return value + float(np.sum(wrong)) + 8 * _EPS * abs(value)
