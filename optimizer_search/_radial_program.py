"""One release of a vector: the falling spherical density of least cost, by a linear program.

Symbols: ``f_a`` density on shell a, ``V_ab`` volume of the points in shell a about one centre and
in shell b about the other, ``gamma = e^epsilon``; all volumes over that of the whole ball.

Minimise the cost subject to sum_ab u_ab + (what P has beyond the shells) <= delta, u_ab >= 0,
u_ab >= V_ab (f_a - gamma f_b), f_a >= f_(a+1). As f falls only b > a matters. Variables are scaled
by the decay to be expected, e^-epsilon per sensitivity, and u by delta: solvers' tolerances are
absolute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dpmech import Unattainable
from dpmech.noise import Floats
from dpmech.spherical import beyond, meetings
from dpmech.tabulated import TabulatedSpherical
from optimizer_search._shells import Matrix

# Shells with less mass at the end are left out: nothing there is told apart from 0.
_NOTHING = 1e-9
_SMALLEST = 1e-250


@dataclass(frozen=True, kw_only=True, eq=False)
class RadialProgram:
    """The program on the shells between ``edges``, for the shift ``s`` in R^dim.

    ``costs``: mean cost on each shell.
    """

    edges: Floats
    s: float
    dim: int
    costs: Floats

    def solved(self, epsilon: float, delta: float) -> TabulatedSpherical:
        """The law of least cost; Unattainable where no law on these shells meets the target."""
        from scipy import optimize

        scale = self._scale(epsilon)
        rows, limits = self._constraints(epsilon, delta, scale)
        n, more = len(scale), rows.shape[1] - len(scale)
        masses = self._volumes * scale
        found = optimize.linprog(
            np.append(self.costs * masses, np.zeros(more)),
            A_ub=rows,
            b_ub=limits,
            A_eq=sparse.csr_matrix(np.append(masses, np.zeros(more))[None, :]),
            b_eq=[1.0],
            bounds=(0, None),
            method="highs-ipm",
        )
        if found.x is None:
            raise Unattainable(
                f"No falling law on {n} shells up to {self.edges[-1]:.6g} meets "
                f"epsilon={epsilon:.6g} at delta={delta:.3g}: {found.message}",
                reached=math.inf,
            )
        return self._law(np.asarray(found.x[:n]) * scale, delta)

    @property
    def _volumes(self) -> Floats:
        r = self.edges / self.edges[-1]
        return np.diff(r**self.dim)

    def _scale(self, epsilon: float) -> Floats:
        """The decay to be expected of densities of about 1 in all."""
        middle = (self.edges[1:] + self.edges[:-1]) / 2
        falls = np.exp(-epsilon * np.floor(middle / self.s + 0.5))
        falls = np.maximum(falls, _SMALLEST)
        return falls / float(self._volumes @ falls)

    def _constraints(self, epsilon: float, delta: float, scale: Floats) -> tuple[Matrix, Floats]:
        """(rows, limits) of the inequalities for (f over its scale, u over its own)."""
        a, b, volume = self._pairs()
        n, m = len(scale), len(a)
        i, j = np.arange(m), np.arange(n - 1)
        ratio = np.exp(epsilon + np.log(scale[b]) - np.log(scale[a]))
        excess = _matrix((i, i, i), (a, b, n + i), (1.0, -ratio, -1.0), (m, n + m))
        lost = self._volumes * beyond(self.edges, self.s, self.dim)
        spent = np.append(lost * scale, volume * scale[a])[None, :] / delta
        falling = _matrix((j, j), (j, j + 1), (-1.0, scale[1:] / scale[:-1]), (n - 1, n + m))
        rows = sparse.vstack([excess, sparse.csr_matrix(spent), falling]).tocsr()
        return rows, np.concatenate([np.zeros(m), [1.0], np.zeros(n - 1)])

    def _pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        """Shells a < b that meet, and the volume in which they do."""
        a, b, chance, _ = meetings(self.edges, self.s, self.dim)
        kept = b > a
        return a[kept], b[kept], (chance * self._volumes[a])[kept]

    def _law(self, density: Floats, delta: float) -> TabulatedSpherical:
        """The law of these densities, made to fall exactly, without an end of next to nothing.

        Inwards no density is below the next: the innermost shells of many dimensions have volumes
        that the program cannot see, and may come out empty.
        """
        density = np.maximum.accumulate(np.maximum(density, 0.0)[::-1])[::-1]
        masses = density * self._volumes
        outside = np.cumsum(masses[::-1])[::-1]
        kept = int(np.sum(outside > _NOTHING * delta))
        return TabulatedSpherical(
            edges=tuple(self.edges[: kept + 1]), masses=tuple(masses[:kept]), dim=self.dim
        )


def _matrix(
    rows: tuple[NDArray[np.int64], ...],
    columns: tuple[NDArray[np.int64], ...],
    values: tuple[float | Floats, ...],
    shape: tuple[int, int],
) -> Matrix:
    full = [np.broadcast_to(v, r.shape) for v, r in zip(values, rows, strict=True)]
    where = (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_matrix((np.concatenate(full), where), shape=shape)
