"""The laws of the reference: densities, losses and quadrature nodes; nothing of ours is imported.

Symbols: ``f`` noise density, ``P`` the law the loss is drawn from, ``L`` its privacy loss, ``lam``
the tilt: weights proportional to P e^{lam L}. Sensitivity is 1 throughout; q is the Poisson rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Floats = NDArray[np.float64]
Direction = Literal["remove", "add"]
DIRECTIONS: tuple[Direction, ...] = ("remove", "add")
# Points whose weight is e^-NEGLIGIBLE of the largest are left out.
NEGLIGIBLE = 48.0
_GAUSS_X, _GAUSS_W = np.polynomial.legendre.leggauss(24)
# How often panels are halved towards the kinks of a density.
_HALVINGS = 30


@dataclass(frozen=True, kw_only=True)
class Release:
    """``count`` releases of ``law`` (text such as ``gaussian:sigma=2``) at Poisson ``rate``."""

    law: str
    rate: float = 1.0
    count: int = 1


Workload = tuple[Release, ...]


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Losses and tilted weights (summing to 1) of one release, and ln E_P e^{lam L}."""

    loss: Floats
    weight: Floats
    log_moment: float

    def cumulants(self) -> Floats:
        """(K, K', K'') at the tilt."""
        mean = float(self.weight @ self.loss)
        return np.array([self.log_moment, mean, float(self.weight @ (self.loss - mean) ** 2)])


def parameters(law: str) -> tuple[str, dict[str, list[float]]]:
    """``name:key=1/2,other=3`` as (name, {key: [1, 2], other: [3]})."""
    name, _, rest = law.partition(":")
    pairs = (part.split("=") for part in filter(None, rest.split(",")))
    return name, {key: [float(v) for v in value.split("/")] for key, value in pairs}


def log_density(law: str) -> Callable[[Floats], Floats]:
    """The function ln f of ``law``."""
    name, keys = parameters(law)
    if name == "gaussian":
        (s,) = keys["sigma"]
        return lambda x: -0.5 * (x / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))
    if name == "laplace":
        (b,) = keys["b"]
        return lambda x: -np.abs(x) / b - math.log(2 * b)
    if name == "gg":
        (c,), (beta,) = keys["scale"], keys["beta"]
        constant = math.log(beta / (2 * c)) - math.lgamma(1 / beta)
        return lambda x: constant - (np.abs(x) / c) ** beta
    if name == "laplace-mixture":
        b, w = np.array(keys["b"]), np.array(keys["w"])
        return lambda x: logsumexp(-np.abs(x)[:, None] / b, b=w / (2 * b * w.sum()), axis=1)
    raise ValueError(f"Unknown law {law!r}: gaussian, laplace, gg or laplace-mixture.")


def scale(law: str) -> float:
    """A length on which the density changes."""
    _, keys = parameters(law)
    return min(v for key, values in keys.items() if key not in ("w", "beta") for v in values)


def density_and_loss(
    release: Release, direction: Direction
) -> Callable[[Floats], tuple[Floats, Floats]]:
    """x -> (ln P(x), L(x)) of one release."""
    f, q = log_density(release.law), release.rate

    def both(x: Floats) -> tuple[Floats, Floats]:
        here = f(x)
        shifted = f(x - 1) - here
        if q == 1:
            return here + shifted, shifted
        # ln(1 - q + q e^l), without cancelling where l is near 0.
        small = np.minimum(shifted, 1.0)
        mixed = np.where(
            shifted < 1,
            np.log1p(q * np.expm1(small)),
            np.logaddexp(math.log1p(-q), math.log(q) + shifted),
        )
        return (here + mixed, mixed) if direction == "remove" else (here, -mixed)

    return both


def _span(
    at: Callable[[Floats], tuple[Floats, Floats]], lam: float, unit: float, depth: float
) -> Floats:
    """The (low, high) outside of which neither P nor its tilt has weight."""
    reach = 64.0 * max(unit, 1.0)
    while True:
        grid = np.unique(
            np.concatenate(
                [
                    reach * np.sinh(np.linspace(-9, 9, 6001)) / math.sinh(9),
                    1 + 40 * unit * np.linspace(-1, 1, 1601),
                    40 * unit * np.linspace(-1, 1, 1601),
                ]
            )
        )
        log_p, loss = at(grid)
        tilted = log_p + lam * loss
        kept = np.flatnonzero((log_p > log_p.max() - depth) | (tilted > tilted.max() - depth))
        if kept[0] > 0 and kept[-1] < len(grid) - 1:
            return grid[[kept[0] - 1, kept[-1] + 1]]
        reach *= 4


def _kinks(release: Release) -> list[tuple[float, float]]:
    """(place, least panel) where the integrand is rough: kinks, and the bend of a mixed loss."""
    name, keys = parameters(release.law)
    if name != "gaussian":
        return [(0.0, 0.0), (1.0, 0.0)]
    if release.rate == 1:
        return []
    variance = keys["sigma"][0] ** 2
    return [(0.5 + variance * math.log(1 / release.rate - 1), variance / 2)]


def _edges(span: Floats, kinks: list[tuple[float, float]], panels: int, halvings: int) -> Floats:
    """Panel edges: equal ones, refined geometrically towards the kinks."""
    low, high = span
    edges = [np.linspace(low, high, panels + 1)]
    for place, least in kinks:
        steps = 2.0 ** -np.arange(halvings) * (high - low) / 2
        steps = steps[steps > least / 2]
        edges.append(np.concatenate([[place], place - steps, place + steps]))
    merged = np.unique(np.concatenate(edges))
    return merged[(merged >= low) & (merged <= high)]


def gauss(edges: Floats) -> tuple[Floats, Floats]:
    """Gauss-Legendre nodes and weights on the panels between ``edges``."""
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    x = middle[:, None] + half[:, None] * _GAUSS_X
    return x.ravel(), (half[:, None] * _GAUSS_W).ravel()


def place(
    release: Release,
    direction: Direction,
    lam: float,
    panels: int,
    depth: float = NEGLIGIBLE,
    halvings: int = _HALVINGS,
) -> tuple[Floats, Floats]:
    """Nodes and weights for integrals against P and its tilt."""
    span = _span(density_and_loss(release, direction), lam, scale(release.law), depth)
    return gauss(_edges(span, _kinks(release), panels, halvings))


def nodes(release: Release, direction: Direction, lam: float, panels: int) -> Nodes:
    """One release as nodes, tilted by ``lam``."""
    x, w = place(release, direction, lam, panels)
    log_p, loss = density_and_loss(release, direction)(x)
    tilted = np.log(w) + log_p + lam * loss
    top = tilted.max()
    weight = np.exp(tilted - top)
    total = weight.sum()
    if np.max(lam * loss) < 300:  # E(e^{lam L} - 1) keeps its digits where it is tiny
        log_moment = math.log1p(float((w * np.exp(log_p)) @ np.expm1(lam * loss)))
    else:
        log_moment = top + math.log(total)
    return Nodes(loss=loss, weight=weight / total, log_moment=log_moment)
