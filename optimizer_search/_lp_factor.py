"""Newton systems of the interior-point method, factorised once for several right-hand sides.

    [ square    coupling  -w ] [dp  ]   [b_p ]
    [ coupling' -block     0 ] [dmu ] = [b_mu]
    [ w'         0         0 ] [dlam]   [mass]

with ``square`` symmetric and banded, or small. Symbols as in ``_lp_interior``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import linalg, sparse

from dpmech.noise import Floats

# Up to here the system is factorised as a dense matrix.
_DENSE = 1_500
_RIDGES = (1e-14, 1e-11, 1e-8)
# (b_p, b_mu, mass) to (dp, dmu, dlam)
Solver = Callable[[Floats, Floats, float], tuple[Floats, Floats, float]]


def factorised(square: Any, coupling: Any, block: Any, weights: Floats) -> Solver:
    """The system's solver; all but the weights w are sparse."""
    make = _dense if len(weights) <= _DENSE else _bordered
    return make(square, coupling, block, weights)


def _dense(square: Any, coupling: Any, block: Any, weights: Floats) -> Solver:
    """The solver of a small system: mu eliminated, then p, then lam."""
    n_mu, small = coupling.toarray(), linalg.cho_factor(block.toarray(), lower=True)
    carried = linalg.cho_solve(small, n_mu.T)
    full = square.toarray() + n_mu @ carried
    scale = 1 / np.sqrt(np.diag(full))
    factor = _ridged(full * np.outer(scale, scale))

    def inverse(b: Floats) -> Floats:
        return scale * linalg.cho_solve(factor, scale * b)

    by_mass = inverse(weights)

    def solver(b_p: Floats, b_mu: Floats, mass: float) -> tuple[Floats, Floats, float]:
        x = inverse(b_p + carried.T @ b_mu)
        dlam = float((mass - weights @ x) / (weights @ by_mass))
        dp = x + dlam * by_mass
        return dp, carried @ dp - linalg.cho_solve(small, b_mu), dlam

    return solver


def _ridged(matrix: Floats) -> tuple[Floats, bool]:
    """Cholesky factor of a matrix of unit diagonal, raised as little as it takes."""
    for ridge in _RIDGES[:-1]:
        try:
            return linalg.cho_factor(matrix + ridge * np.eye(len(matrix)), lower=True)
        except linalg.LinAlgError:
            continue
    return linalg.cho_factor(matrix + _RIDGES[-1] * np.eye(len(matrix)), lower=True)


def _bordered(square: Any, coupling: Any, block: Any, weights: Floats) -> Solver:
    """The solver of a large system: banded, with mu and lam as its border."""
    from scipy.sparse.linalg import splu  # takes long to import

    n, k = coupling.shape
    scale = np.concatenate([1 / np.sqrt(square.diagonal()), 1 / np.sqrt(block.diagonal())])
    scale = np.append(scale, 1 / float(np.linalg.norm(scale[:n] * weights)))
    row = sparse.csr_array(weights[None, :])
    system = sparse.block_array(
        [[square, coupling, -row.T], [coupling.T, -block, None], [-row, None, None]]
    )
    by_scale = sparse.diags_array(scale)
    ridge = sparse.diags_array(np.append(np.full(n, _RIDGES[0]), np.zeros(k + 1)))
    factor = splu(
        (by_scale @ system @ by_scale + ridge).tocsc(),
        permc_spec="NATURAL",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )

    def solver(b_p: Floats, b_mu: Floats, mass: float) -> tuple[Floats, Floats, float]:
        x = scale * factor.solve(scale * np.concatenate([b_p, b_mu, [-mass]]))
        return x[:n], x[n : n + k], float(x[-1])

    return solver
