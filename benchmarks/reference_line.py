"""The integrand on a vertical line, by the trapezoidal rule (see reference.py).

Symbols: ``lam`` the line's real part, ``y`` the imaginary part, ``K`` as in reference.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from reference_laws import Direction, Floats, Nodes, Workload, nodes

Complexes = NDArray[np.complex128]

_BLOCK = 256
# Terms this small, relative to the sum, end the line.
_SMALL_TERM = 1e-14
# exp(-DECAY) is how much of the neighbouring periods is let in.
DECAY = 38.0
_MOST_PANELS = 512
_MOST_TERMS = 1 << 15


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Resolution: panels in x, a factor on the step in y, and the most terms."""

    panels: int = 64
    finer: float = 1.0
    terms: int = 1 << 13

    def finer_still(self) -> Effort:
        """Other panels and another step, so that the two share no node; the same end."""
        return replace(self, panels=2 * self.panels, finer=1.37 * self.finer, terms=2 * self.terms)

    def exhausted(self) -> bool:
        return self.panels >= _MOST_PANELS or self.terms >= _MOST_TERMS


@dataclass(frozen=True, kw_only=True)
class Line:
    """The integrand at z = lam + i y, without its factor e^{-z eps}; ``centre`` is the tilted mean.

    ``terms`` are exp(sum T (K(z) - K(lam)) - i y centre) / (z (z + 1)), the first of them halved.
    """

    lam: float
    y: Floats
    terms: Complexes
    log_moment: float
    centre: float

    def delta(self, epsilon: float) -> float:
        """The value at ``epsilon`` (best near the saddle point's)."""
        turned = np.exp(-1j * self.y * (epsilon - self.centre))
        total = float((self.terms * turned).real.sum()) * (self.y[1] - self.y[0]) / math.pi
        return math.exp(self.log_moment - self.lam * epsilon) * total

    def cut(self, epsilon: float) -> float:
        """A bound on what lies beyond the last term, relative to the value at ``epsilon``."""
        last = float(np.max(np.abs(self.terms[-_BLOCK // 4 :])))
        total = (self.terms * np.exp(-1j * self.y * (epsilon - self.centre))).real.sum()
        return last * len(self.terms) / max(abs(float(total)), 1e-300)


def _all_nodes(
    workload: Workload, direction: Direction, lam: float, panels: int
) -> list[tuple[Nodes, int]]:
    return [(nodes(r, direction, lam, panels), r.count) for r in workload]


def cumulants(workload: Workload, direction: Direction, lam: float) -> Floats:
    """(K, K', K'') of the whole workload."""
    each = _all_nodes(workload, direction, lam, 48)
    return np.sum([count * n.cumulants() for n, count in each], axis=0)


def line(workload: Workload, direction: Direction, lam: float, effort: Effort) -> Line:
    """The integrand on Re z = ``lam``."""
    parts = _all_nodes(workload, direction, lam, effort.panels)
    k = np.sum([count * n.cumulants() for n, count in parts], axis=0)
    period = DECAY / lam + 26 * math.sqrt(k[2])
    step = 2 * math.pi / (period * effort.finer)
    terms: list[Complexes] = []
    total = 0.0
    for start in range(0, effort.terms, _BLOCK):
        y = step * np.arange(start, start + _BLOCK)
        block = _terms(parts, lam, y, float(k[1]))
        terms.append(block)
        total = max(total, float(np.abs(block).sum()))
        if np.abs(block).max() * (start + _BLOCK) < _SMALL_TERM * total:
            break
    joined = np.concatenate(terms)
    joined[0] /= 2
    return Line(
        lam=lam,
        y=step * np.arange(len(joined)),
        terms=joined,
        log_moment=float(k[0]),
        centre=float(k[1]),
    )


def _terms(parts: list[tuple[Nodes, int]], lam: float, y: Floats, centre: float) -> Complexes:
    exponent = np.zeros(len(y), dtype=np.complex128)
    for part, count in parts:
        phase = np.outer(y, part.loss)
        # e^{i phase} - 1, exact where the phase is tiny: T may be a thousand million.
        turned = -2 * np.sin(phase / 2) ** 2 @ part.weight + 1j * (np.sin(phase) @ part.weight)
        exponent += count * _log1p(turned)
    z = lam + 1j * y
    return np.exp(exponent - 1j * y * centre) / (z * (z + 1))


def _log1p(w: Complexes) -> Complexes:
    """ln(1 + w), accurate for small w."""
    with np.errstate(divide="ignore"):
        modulus = 0.5 * np.log1p(w.real * (2 + w.real) + w.imag**2)
    return modulus + 1j * np.arctan2(w.imag, 1 + w.real)
