"""What T releases within (epsilon, delta) say of one: how far each may be told apart.

For a symmetric law X and a shift t let Q = law of X, P = law of X + t, and let r(b) = sup P(A) over
Q(A) = b be the release's power curve: concave, rising, r(b) <= b + y with y the total variation of
P and Q, and sup_b r(b) - gamma b = H_gamma(P || Q). x -> t - x exchanges P and Q, so r is its own
mirror image in the antidiagonal, where it has the point B = ((1 - y)/2, (1 + y)/2). A pair whose
power curve lies nowhere higher is post-processing of the release (Blackwell 1953), also after
sampling, ((1 - q) Q + q P, Q), and composition.

So if y >= x and r(b) >= a at a place b left of B (for gamma >= 1 the others do not matter), the
pair of four symbols with masses (a, i+, i-, b) and, in reverse, (b, i-, i+, a), where
i+ - i- = max(x - (a - b), 0) or less, is post-processing: as long as i+/i- <= a/b, its curve is the
hull of (b, a) and a point not above ((1 - x)/2, (1 + x)/2). If T releases of it exceed delta at
epsilon, so do those of X. Hence upper bounds on r at some places, and between two of them, b and c,
by concavity: the line from the origin through (b, r(b)), the one from B through (c, r(c)), and
r(c). The line from B is highest for the least y. Places that may be right of B are left out.

T releases of four symbols are compared by the *sum* of whole-numbered scores, post-processing once
more: whatever the scores, the hockey-stick divergence of the sum's two laws is at most delta_T. Its
masses are convolution powers, by an FFT of exponentially tilted masses.

Symbols: ``T`` steps, ``q`` rate, ``a b x y`` as above, ``i`` masses of the inner symbols.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from dpmech.noise import Floats

Ints = NDArray[np.int64]
_EPS = float(np.finfo(np.float64).eps)
# Relative error of masses, for the rounding of T ln Z and of exponents below 700.
_RELATIVE = 1e-9
# Units of the scores per standard deviation of the sum, and the largest score.
_PER_DEVIATION, _TOP = 50.0, 80
# -ln of the tilted mass that the FFT may wrap around.
_WRAPPED = 40.0
_HALVINGS, _WARM_HALVINGS, _TILT_HALVINGS = 18, 11, 40
# Least excess a - b looked for; and how much of a known excess may be lost.
_LEAST, _WARM = 1e-10, 0.1
_SMALL, _EVEN = 40, 60


@dataclass(frozen=True, kw_only=True, eq=False)
class FewSymbols:
    """Releases of pairs of four symbols at ``rate``: ``steps`` of them within (epsilon, delta)."""

    steps: int
    rate: float
    epsilon: float
    delta: float

    def exceeded(self, a: Floats, b: Floats, x: float) -> NDArray[np.bool_]:
        """Whether the pairs' releases are proved to exceed delta at epsilon; shapes (n,)."""
        p = pair(a, b, x)
        q = p[::-1]
        sampled = (1 - self.rate) * q + self.rate * p
        scores = self._scores(sampled, q)
        return self._divergence(sampled, q, scores) > self.delta

    def _scores(self, sampled: Floats, q: Floats) -> Floats:
        """Whole numbers near the losses in some unit: any are valid, these tell apart well."""
        loss = np.minimum(_losses(sampled, q), self.epsilon)
        deviation = np.sqrt(self.steps * np.sum(sampled * loss**2, axis=0))
        unit = np.maximum(deviation / _PER_DEVIATION, np.max(np.abs(loss), axis=0) / _TOP)
        return np.rint(loss / np.maximum(unit, 1e-300))

    def _divergence(self, sampled: Floats, q: Floats, scores: Floats) -> Floats:
        """A lower bound on H_{e^epsilon} of the laws of the scores' sum."""
        goal = self._goal(sampled, q, scores)
        up, down = (_Tilted.of(masses, scores, goal) for masses in (sampled, q))
        sizes = np.maximum(up.sizes(self.steps), down.sizes(self.steps))
        total = np.zeros(len(goal))
        for size in np.unique(sizes):
            these = np.flatnonzero(sizes == size)
            near = np.arange(-(size // 4), size // 2)
            n = np.floor(goal[these] * self.steps)[:, None] + near
            more, less = (side.only(these).power(self.steps, n, int(size)) for side in (up, down))
            likely = more.least(_RELATIVE) - math.exp(self.epsilon) * less.most(_RELATIVE)
            total[these] = np.sum(np.maximum(likely, 0.0), axis=1)
        return total

    def _goal(self, sampled: Floats, q: Floats, scores: Floats) -> Floats:
        """Mean score a step of the sums that matter: that of a loss of epsilon in all."""
        loss = _losses(sampled, q)
        # Or that of most outcomes, where these lose more.
        goal = np.maximum(self.epsilon / self.steps, np.sum(sampled * loss, axis=0))
        goal = np.minimum(goal, 0.999 * np.max(loss, axis=0))
        likely = _Tilted.of(sampled, loss, goal).masses
        return np.sum(likely * scores, axis=0)

    @cached_property
    def most_variation(self) -> float:
        """The largest total variation that one release may have, from above."""
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            y = (low + high) / 2
            edge = np.array([(1 - y) / 2])
            low, high = (low, y) if self.exceeded(1 - edge, edge, y)[0] else (y, high)
        return high

    def curve(self, x: float, before: Curve | None = None) -> Curve:
        """r_x from above at some places, given that of a smaller x at the same places or none."""
        if before is None:
            b = _places((1 - x) / 2)
            most = np.minimum(b + self.most_variation, 1 - b) - b
            low, halvings = np.minimum(_LEAST, most), _HALVINGS
        else:
            kept = before.b < (1 - x) / 2
            b = np.append(before.b[kept], (1 - x) / 2)
            most = np.append(before.a[kept] - b[:-1], x)
            low, halvings = _WARM * most, _WARM_HALVINGS
        return Curve(x=x, b=b, a=b + self._excess(b, x, (low, most), halvings))

    def _excess(self, b: Floats, x: float, bracket: tuple[Floats, Floats], halvings: int) -> Floats:
        """Excesses a - b that are exceeded (or the most there are), halving in the logarithm."""
        low, high = (np.log(np.maximum(side, 1e-300)) for side in bracket)
        kept = ~self.exceeded(b + bracket[1], b, x)
        for _ in range(halvings):
            middle = (low + high) / 2
            over = self.exceeded(b + np.exp(middle), b, x)
            low, high = np.where(over, low, middle), np.where(over, middle, high)
        return np.where(kept, bracket[1], np.exp(high) * (1 + 4 * _EPS))


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Upper bounds ``a`` on r at places ``b`` for all laws of total variation ``x`` or above."""

    x: float
    b: Floats
    a: Floats

    def excess(self, gamma: float, y: float) -> float:
        """An upper bound on H_gamma of all such laws whose total variation is ``y`` at most."""
        lines = self._lines(y)
        left, right = self.b[:-1], self.b[1:]
        places = [left, right]
        for (m, c), (n, d) in combinations(lines, 2):
            with np.errstate(divide="ignore", invalid="ignore"):
                met = (d - c) / (m - n)
            places.append(np.clip(np.where(np.isfinite(met), met, left), left, right))
        first = float(self.b[0])
        best = min(float(self.a[0]), first + y) if first < (1 - y) / 2 else first + y
        for b in places:
            top = np.min([m * b + c for m, c in lines], axis=0)
            best = max(best, float(np.max(top - gamma * b)))
        return min(best + 16 * _EPS, y)

    def _lines(self, y: float) -> list[tuple[Floats, Floats]]:
        """(slope, value at 0) of lines above r on each cell between places."""
        left, right, low, high = self.b[:-1], self.b[1:], self.a[:-1], self.a[1:]
        zero = np.zeros_like(left)
        # A place beyond B says nothing: its set and the mirrored one may overlap.
        inside = right < (1 - y) / 2
        corner, top = (1 - self.x) / 2, (1 + self.x) / 2
        slope = np.where(inside, (top - high) / np.where(inside, corner - right, 1.0), 1.0)
        return [
            (low / left, zero),
            (zero + 1.0, zero + y),
            (np.where(inside, 0.0, 1.0), np.where(inside, high, y)),
            (slope, np.where(inside, high - slope * right, y)),
        ]


def pair(a: Floats, b: Floats, x: float) -> Floats:
    """Masses (4, n) of the symbols under P; those under Q are the same in reverse."""
    rest = np.maximum(1 - a - b, 0.0)
    # Less told is post-processing, too: the inner symbols tell no more than the outer ones.
    told = np.clip(x - (a - b), 0.0, rest * (a - b) / (a + b))
    return np.stack([a, (rest + told) / 2, (rest - told) / 2, b])


def _losses(sampled: Floats, q: Floats) -> Floats:
    """ln(sampled/q), 0 where there is no mass."""
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = np.log(sampled) - np.log(q)
    return np.where(sampled > 0, loss, 0.0)


def _places(last: float) -> Floats:
    """Places b: dense from a tenth of the last on, where the constraints that matter are."""
    small = np.geomspace(1e-6, 0.1 * last, _SMALL)[:-1]
    return np.concatenate([small, np.linspace(0.1 * last, last, _EVEN)])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Masses:
    """Masses ``tilted * exp(back)``, each tilted one up to the error ``wrong``."""

    tilted: Floats
    wrong: float
    back: Floats

    def least(self, relative: float) -> Floats:
        """From below."""
        return np.maximum(self.tilted - self.wrong, 0.0) * self._factor * (1 - relative)

    def most(self, relative: float) -> Floats:
        """From above."""
        return (np.maximum(self.tilted, 0.0) + self.wrong) * self._factor * (1 + relative)

    @property
    def _factor(self) -> Floats:
        # Where it is capped, the error alone makes the mass from above larger than 1.
        return np.exp(np.minimum(self.back, 600.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tilted:
    """Masses (4, n) of scores, tilted so that their mean is about ``goal``, shape (n,).

    They are those given times ``exp(tilt * score - log_total)``.
    """

    masses: Floats
    scores: Floats
    goal: Floats
    tilt: Floats
    log_total: Floats

    @classmethod
    def of(cls, masses: Floats, scores: Floats, goal: Floats) -> _Tilted:
        """Tilt masses."""
        top = 500.0 / np.maximum(np.max(np.abs(scores), axis=0), 1e-300)
        low, high = -0.1 * top, top
        for _ in range(_TILT_HALVINGS):
            middle = (low + high) / 2
            weights = masses * np.exp(middle * scores)
            below = np.sum(weights * scores, axis=0) < goal * np.sum(weights, axis=0)
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        weights = masses * np.exp(low * scores)
        total = np.sum(weights, axis=0)
        return cls(
            masses=weights / total, scores=scores, goal=goal, tilt=low, log_total=np.log(total)
        )

    def only(self, these: Ints) -> _Tilted:
        """Some of the pairs."""
        return _Tilted(
            masses=self.masses[:, these],
            scores=self.scores[:, these],
            goal=self.goal[these],
            tilt=self.tilt[these],
            log_total=self.log_total[these],
        )

    def sizes(self, steps: int) -> Ints:
        """Powers of 2 so large that what wraps around has a mass below e^-40 (Bernstein)."""
        mean = np.sum(self.masses * self.scores, axis=0)
        var = steps * np.sum(self.masses * (self.scores - mean) ** 2, axis=0)
        jump = np.max(np.abs(self.scores - mean), axis=0) / 3
        half = _WRAPPED * jump + np.sqrt((_WRAPPED * jump) ** 2 + 2 * _WRAPPED * var)
        half += steps * np.abs(mean - self.goal)
        return 2 ** np.ceil(np.log2(2 * half + 8)).astype(np.int64)

    def power(self, steps: int, n: Floats, size: int) -> _Masses:
        """Masses of the sum of ``steps`` scores at the places ``n``."""
        index = np.arange(len(n))
        table = np.zeros((len(n), size))
        for mass, score in zip(self.masses, self.scores, strict=True):
            table[index, score.astype(np.int64) % size] += mass
        table = np.fft.irfft(_power(np.fft.rfft(table, axis=1), steps), size, axis=1)
        tilted = np.take_along_axis(table, n.astype(np.int64) % size, axis=1)
        wrong = 8 * _EPS * steps * math.log2(size) + 4 * math.exp(-_WRAPPED)
        back = steps * self.log_total[:, None] - self.tilt[:, None] * n
        return _Masses(tilted=tilted, wrong=wrong, back=back)


def _power(base: NDArray[np.complex128], exponent: int) -> NDArray[np.complex128]:
    """By squaring: numpy's own power of complex numbers takes several times as long."""
    result = base if exponent & 1 else np.ones_like(base)
    while exponent := exponent >> 1:
        base = base * base
        if exponent & 1:
            result = result * base
    return result
