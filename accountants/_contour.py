"""Composition of atoms by a contour integral, with bounds for everything it leaves out.

With S the composed loss, M(z) = E e^(zS) = prod_j M_j(z)^T_j and f(S) = (1 - e^(eps-S))_+,

    delta(eps) = E f(S) = (1/2 pi) int M(z) e^(-z eps) / (z (z+1)) dt,   z = tilt + i t,

for any tilt > 0. M does not decay along the line, because S has atoms, so f is smoothed first: let
X be a standard normal and ``a`` small.

* Above: composing with one more Gaussian release, of loss N(a^2/2, a^2), only adds to delta.
* Below: E f(S + a X) exceeds f(S) by no more than a (1 + 2a) phi((S - eps)/a) for a <= 1/2. Proof:
  left of eps f(u) <= (u - eps)_+; right of it f is concave but for (e^(eps-u) - 1)_+, whose mean is
  a E(z + X)_- or less at z = (S - eps)/a - a, times e^(-a z - a^2/2). Both are what is claimed.

Either multiplies the integrand by e^(-a^2 t^2/2), at a cost of about a^2 tilt in epsilon. The
trapezoidal rule with step eta then gives exactly sum_k e^(k tilt L) E f_(eps + k L), L = 2 pi/eta:
too much, never too little, and by an amount that Chernoff's bound limits. What is cut off beyond
the last frequency is bounded by the Gaussian factor. Rounding is bounded term by term.
Argument: docs/explanation/pld.md; mathematics.md §4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from accountants._atoms import Atoms, Composed
from dpmech.noise import Floats

_U = float(np.finfo(np.float64).eps) / 2
# ln of a characteristic function that is as good as 0: far below what a double resolves of 1.
_NEGLIGIBLE = -60.0
# Atoms summed at a time: neither memory nor rounding may grow with their number. Many releases
# raise sums, and their errors, to a high power, and get the slower sum.
_CHUNK, _SMALL_CHUNK, _MANY = 1024, 64, 10_000


@dataclass(frozen=True, kw_only=True)
class Line:
    """The line ``tilt`` + i t at t = 0, ``step``, …, ``count`` of them; ``smoothing`` is a.

    ``up`` and ``down``: how far Chernoff's bounds on the images move the tilt.
    """

    tilt: float
    step: float
    count: int
    smoothing: float
    up: float
    down: float

    @cached_property
    def frequencies(self) -> Floats:
        return self.step * np.arange(self.count, dtype=np.float64)

    @property
    def period(self) -> float:
        """L: how far apart in epsilon the images lie that the trapezoidal rule adds."""
        return 2 * math.pi / self.step


def log_peak(t: float) -> float:
    """ln of the largest value of (1 - e^-y) e^(-t y) over y > 0: it is at y = ln((1+t)/t)."""
    return t * math.log(t / (1 + t)) - math.log1p(t) if t > 0 else 0.0


def cut_off(line_tilt: float, smoothing: float, last: float, *, above: bool) -> float:
    """At most what the frequencies beyond ``last`` would add to the integral."""
    square = smoothing**2
    lift = line_tilt * (line_tilt + 1) if above else line_tilt**2
    size = 1 / last**2 + (0.0 if above else (1 + 2 * smoothing) * square)
    return math.exp(min(square * (lift - last**2) / 2, 700.0)) * size / (math.pi * square * last)


@dataclass(frozen=True, kw_only=True, eq=False)
class Contour:
    """The law of ``composed`` along a line; bounds E f(S) from ``above`` or from below."""

    composed: Composed
    line: Line
    above: bool

    @cached_property
    def _tilted(self) -> list[tuple[_Tilted, int]]:
        return [
            (_Tilted.of(atoms, self.line.tilt, above=self.above), count)
            for atoms, count in self.composed.parts
        ]

    @cached_property
    def _centre(self) -> float:
        return math.fsum(count * part.centre for part, count in self._tilted)

    @cached_property
    def _log_moment(self) -> float:
        return math.fsum(count * part.log_total for part, count in self._tilted)

    @cached_property
    def _rounding(self) -> float:
        """Relative error of M(tilt)."""
        return 8 * _U * sum(count * (abs(part.log_total) + 2) for part, count in self._tilted)

    @cached_property
    def _values(self) -> tuple[NDArray[np.complex128], Floats]:
        """The tilted, centred characteristic function at the frequencies, and its errors.

        Where the parts so far are negligible together, all of them are: no factor is above 1.
        """
        line, left, runs = self.line, self.line.count, 0
        log_size, phase, log_above = np.zeros(left), np.zeros(left), np.zeros(left)
        for part, count in self._tilted:
            values, error = part.transform(
                line.step, left, _SMALL_CHUNK if count > _MANY else _CHUNK
            )
            size = np.abs(values)
            with np.errstate(divide="ignore"):
                log_size[:left] += count * np.log(size)
            log_above[:left] += count * np.log(size + error)
            phase[:left] += count * np.angle(values)
            runs += count
            left = 1 + int(np.max(np.flatnonzero(log_above[:left] > _NEGLIGIBLE), initial=0))
        size = np.exp(np.minimum(log_size, 0.0))
        size[left:] = 0.0
        spread = np.maximum(np.exp(np.minimum(log_above, 700.0)) - size, 0.0)
        angle = 8 * _U * (runs + 1 + np.abs(np.maximum(log_size, -750.0)))
        return size * np.exp(1j * phase), spread + size * angle

    @cached_property
    def _kernel(self) -> NDArray[np.complex128]:
        """The transform of the smoothed f, but for its factor e^(-z epsilon)."""
        z, square = self.line.tilt + 1j * self.line.frequencies, self.line.smoothing**2
        if self.above:
            return np.exp(square * (z**2 + z) / 2) / (z * (z + 1))
        return np.exp(square * z**2 / 2) * (
            1 / (z * (z + 1)) - (1 + 2 * self.line.smoothing) * square
        )

    def log_delta(self, epsilon: float) -> float:
        """ln of the bound on E f(S) at ``epsilon``; -inf where nothing is left of it."""
        value, error = self._integral(epsilon)
        exponent = self._log_moment - self.line.tilt * epsilon
        rounding = self._rounding + 8 * _U * (1 + abs(self.line.tilt * epsilon))
        if self.above:
            return exponent + math.log(max(value, 0.0) + error) + rounding
        value -= error + math.exp(min(self._log_images(epsilon), 700.0))
        return exponent + math.log(value) - rounding if value > 0 else -math.inf

    @cached_property
    def _terms(self) -> tuple[NDArray[np.complex128], float, float]:
        """The trapezoidal rule at epsilon = centre as far as it is not negligible, and two errors.

        The first is there at any epsilon, the second for each unit of it, by the phases.
        """
        values, error = self._values
        rule = np.full(self.line.count, self.line.step / math.pi)
        rule[0] /= 2
        size, weight = np.abs(values), rule * np.abs(self._kernel)
        last = float(self.line.frequencies[-1])
        lost = cut_off(self.line.tilt, self.line.smoothing, last, above=self.above)
        fixed = float(weight @ (error + 32 * _U * size)) + lost
        turning = 16 * _U * float(weight @ (size * self.line.frequencies))
        full = 1 + int(np.max(np.flatnonzero(size), initial=0))
        return (rule * values * self._kernel)[:full], fixed, turning

    def _integral(self, epsilon: float) -> tuple[float, float]:
        """The trapezoidal sum without its factor M(tilt) e^(-tilt epsilon), and its error."""
        terms, fixed, turning = self._terms
        turn = self.line.frequencies[: len(terms)] * (epsilon - self._centre)
        value = float(terms.real @ np.cos(turn) + terms.imag @ np.sin(turn))
        return value, fixed + turning * (abs(epsilon) + abs(self._centre))

    @cached_property
    def _images(self) -> list[tuple[float, float]]:
        """(move, ln of Chernoff's bound on the images on that side at epsilon 0) for both sides."""
        line, found = self.line, list[tuple[float, float]]()
        for move in (line.up, -line.down):
            t, far = line.tilt + move, abs(move) * line.period
            image = self.composed.log_moment(t) - self._log_moment + (line.smoothing * t) ** 2 / 2
            found.append((move, image + log_peak(t) - far - math.log(-math.expm1(-far))))
        return found

    def _log_images(self, epsilon: float) -> float:
        """ln of what the images add to the trapezoidal sum, at most."""
        (up, above), (down, below) = self._images
        total = float(np.logaddexp(above - up * epsilon, below - down * epsilon))
        return total + 1e-9 + 2 * self._rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tilted:
    """The law of one part under the tilt: ``weight``, of sum 1, at ``moved`` = losses - centre.

    Each atom's weight was rounded up (``above``) or down before the sum ``e^log_total`` was taken.
    """

    centre: float
    log_total: float
    weight: Floats
    moved: Floats

    @classmethod
    def of(cls, atoms: Atoms, tilt: float, *, above: bool) -> _Tilted:
        if not len(atoms.losses):  # no finite mass: an atom of no weight
            return cls(centre=0.0, log_total=-1e5, weight=np.ones(1), moved=np.zeros(1))
        exponent = atoms.log_p + tilt * atoms.losses
        rounding = 4 * _U * (4 + np.abs(atoms.log_p) + 2 * np.abs(tilt * atoms.losses))
        exponent = exponent + rounding if above else exponent - rounding
        top = float(np.max(exponent))
        weight = np.exp(exponent - top)
        total = math.fsum(weight)
        weight = weight / total
        centre = float(weight @ atoms.losses)
        return cls(
            centre=centre,
            log_total=top + math.log(total),
            weight=weight,
            moved=atoms.losses - centre,
        )

    def transform(
        self, step: float, count: int, chunk: int
    ) -> tuple[NDArray[np.complex128], Floats]:
        """E e^(it (l - centre)) at t = 0, step, …, and its errors."""
        block = 1 << max(1, math.ceil(math.log2(count) / 2))
        # Powers: an exponential and a product (sqrt(5) u) for every binary digit. Phases: both
        # l - centre and t l were rounded. Sums: in any order in a chunk (sqrt(2) n u), then in
        # pairs.
        digits = math.log2(block) + math.log2(count / block + 1) + 4
        summed = min(len(self.weight), chunk) + 2 * math.log2(len(self.weight) / chunk + 1) + 2
        reach = step * np.arange(count, dtype=np.float64) * float(self.weight @ np.abs(self.moved))
        values = characteristic(self.weight, self.moved, step, (count, block), chunk)
        return values, _U * (5 * digits + 3 * reach + 2 * summed + 16)


def characteristic(
    weight: Floats, losses: Floats, step: float, shape: tuple[int, int], chunk: int = _CHUNK
) -> NDArray[np.complex128]:
    """sum_i w_i e^(i t l_i) at t = 0, step, …: (rows of one power) x (the block's powers).

    ``shape``: how many t, and how many of them a row has.
    """
    count, block = shape
    rows = math.ceil(count / block)

    def part(start: int) -> NDArray[np.complex128]:
        w, phase = weight[start : start + chunk], step * losses[start : start + chunk]
        return (_powers(block * phase, rows) * w) @ _powers(phase, block).T

    total = _summed_in_pairs(part(start) for start in range(0, len(weight), chunk))
    return total.ravel()[:count]


def _summed_in_pairs(terms: Iterable[NDArray[np.complex128]]) -> NDArray[np.complex128]:
    """Their sum, each of n terms in at most 2 log2(n) + 2 additions; few are kept at a time."""
    waiting: list[tuple[int, NDArray[np.complex128]]] = []
    for term in terms:
        size, total = 1, term
        while waiting and waiting[-1][0] == size:
            total = waiting.pop()[1] + total
            size *= 2
        waiting.append((size, total))
    total = waiting.pop()[1]
    while waiting:
        total = waiting.pop()[1] + total
    return total


def _powers(phase: Floats, count: int) -> NDArray[np.complex128]:
    """e^(i k phase) for k = 0 … count - 1, one row each, doubling what is there."""
    powers = np.empty((count, len(phase)), dtype=np.complex128)
    powers[0] = 1
    have = 1
    while have < count:
        more = min(have, count - have)
        np.multiply(powers[:more], np.exp(1j * (have * phase)), out=powers[have : have + more])
        have += more
    return powers
