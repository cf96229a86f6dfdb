"""One release: delta(eps) = ∫ P (1 - e^{eps - L})_+ dx, cut where L crosses eps."""

from __future__ import annotations

import functools

import numpy as np
from reference_laws import Direction, Floats, Release, density_and_loss, gauss, place
from scipy import optimize

# Bisection ends a crossing well below the rounding of the loss.
_X_TOLERANCE = 1e-15
# Where the loss exceeds a large eps there may be next to no mass: tilts show those places, too.
_DEPTH = 120.0
# Just below its largest value, a loss that peaks at a kink exceeds eps next to the kink only.
_HALVINGS = 55
_TILTS = (0.0, 1.0, 4.0, 16.0, 64.0, 256.0)


@functools.cache
def _places(release: Release, direction: Direction, lam: float, panels: int) -> Floats:
    return place(release, direction, lam, panels, _DEPTH, _HALVINGS)[0]


def _crossings(release: Release, direction: Direction, epsilon: float, x: Floats) -> Floats:
    """Where the loss crosses ``epsilon``, among neighbouring nodes."""
    at = density_and_loss(release, direction)
    excess = at(x)[1] - epsilon
    changes = np.flatnonzero(np.sign(excess[1:]) != np.sign(excess[:-1]))

    def difference(place: float) -> float:
        return float(at(np.array([place]))[1][0] - epsilon)

    found = [
        optimize.brentq(difference, x[i], x[i + 1], xtol=_X_TOLERANCE)
        for i in changes
        if excess[i] * excess[i + 1] < 0
    ]
    return np.array(found)


def single_delta(release: Release, direction: Direction, epsilon: float, panels: int) -> float:
    """delta at ``epsilon`` of one release."""
    x = np.unique(np.concatenate([_places(release, direction, t, panels) for t in _TILTS]))
    roots = _crossings(release, direction, epsilon, x)
    edges = np.unique(np.concatenate([x[::24], [x[0], x[-1], 0.0, 1.0], roots]))
    places, w = gauss(edges)
    log_p, loss = density_and_loss(release, direction)(places)
    gain = -np.expm1(np.minimum(epsilon - loss, 0.0))
    return float((w * np.exp(log_p)) @ gain)
