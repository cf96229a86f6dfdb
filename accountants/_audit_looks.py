"""Tests of draws against a law, each with a proved level and the error of scale that it catches.

Symbols: ``n`` draws, ``F`` distribution function, ``t`` argument of the transform E e^(-t|X|). No
test relies on n being large: the largest gap to F has the bound of Dvoretzky, Kiefer, Wolfowitz and
Massart (1990), means of bounded numbers have Bennett's, and counts are binomial.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from dpmech.discrete import DiscreteNoise
from dpmech.noise import Floats, Noise

# Of faulty samplers, the share that the power figures promise to catch.
_CAUGHT = 0.95
# Probabilities of |X| being beyond, where the tails and the transform are looked at.
_TAILS = np.array([0.99, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
_SCALES = np.array([0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1, 0.03, 0.01])
_FEWEST = 20.0  # draws expected in a tail or a cell
_CELLS, _VALUES = 64, 200
_NODES, _QUADRATURE = 8_000, 1e-5
_WIDEST = 3.0  # ln of the largest error of scale that is looked for


@dataclass(frozen=True, kw_only=True)
class SamplerTest:
    """One test: ``p_value`` bounds how likely a faithful sampler does as badly in any of its looks.

    ``found`` is its worst look in words. ``power``: the least relative error of the scale, either
    way, that it catches 19 times in 20; None where it looks at something else than scale.
    """

    name: str
    found: str
    p_value: float
    power: float | None = None


Look = Callable[[Noise, Floats, float], SamplerTest]


def looks_for(law: Noise, *, doubles: bool) -> tuple[Look, ...]:
    """The tests of a law, each of (law, draws, level); ``doubles``: draws in double precision."""
    looks: tuple[Look, ...] = (
        _distribution,
        _transform,
        _tails,
        _cells,
        _symmetry,
        _independence,
    )
    # Whole numbers and narrower types repeat by themselves.
    return looks if isinstance(law, DiscreteNoise) or not doubles else (*looks, _repeats)


def _distribution(law: Noise, x: Floats, level: float) -> SamplerTest:
    """The largest gap between the share of draws below a place and F."""
    n, x = len(x), np.sort(x)
    above = np.arange(1, n + 1) / n - (1 - law.sf(x))
    below = law.sf(-x) - np.arange(n) / n  # P(X < x), by symmetry
    gap = max(0.0, float(np.max(above)), float(np.max(below)))
    allowed = math.sqrt(math.log(2 / level) / (2 * n))
    seen = allowed + math.sqrt(math.log(1 / (1 - _CAUGHT)) / (2 * n))
    at = law.isf(np.linspace(0.01, 0.5, 50) - 1e-9)

    def caught(wrong: Noise, factor: float) -> bool:
        del factor
        return float(np.max(np.abs(wrong.sf(at) - law.sf(at)))) >= seen

    return SamplerTest(
        name="distribution",
        found=f"their distribution function is off by {gap:.3g}",
        p_value=min(1.0, 2 * math.exp(-2 * n * gap**2)),
        power=_power(law, caught),
    )


def _transform(law: Noise, x: Floats, level: float) -> SamplerTest:
    """The mean of e^(-t|X|) at ten t, by Bennett's inequality."""
    n, size = len(x), np.abs(x)
    t = 1 / np.maximum(law.isf(_SCALES / 2), 1.0 if isinstance(law, DiscreteNoise) else 0.0)
    mean, variance = _moments(law, t)
    got = np.array([np.mean(np.exp(-at * size)) for at in t])
    off = np.maximum(np.abs(got - mean) - _QUADRATURE, 0.0)
    reach = np.where(got > mean, 1 - mean, mean)  # how far one number may be from the mean
    u = off * reach / variance
    bound = 2 * np.exp(-n * variance / reach**2 * ((1 + u) * np.log1p(u) - u))
    allowed = _bernstein(variance, n, math.log(2 * len(t) / level)) + _QUADRATURE

    def caught(wrong: Noise, factor: float) -> bool:
        whole = isinstance(law, DiscreteNoise)  # which no factor scales
        other, spread = _moments(wrong, t) if whole else _moments(law, factor * t)
        seen = allowed + _bernstein(spread, n, math.log(1 / (1 - _CAUGHT)))
        return bool(np.any(np.abs(other - mean) >= seen))

    worst = int(np.argmin(bound))
    return SamplerTest(
        name="transform",
        found=f"E e^(-{t[worst]:.3g} |X|) is {got[worst]:.4g} instead of {mean[worst]:.4g}",
        p_value=min(1.0, len(t) * float(bound[worst])),
        power=_power(law, caught),
    )


def _bernstein(variance: Floats, n: int, log_odds: float) -> Floats:
    """A deviation of the mean of n numbers in [0, 1] of probability e^-log_odds at most."""
    return np.sqrt(2 * variance * log_odds / n) + log_odds / (3 * n)


def _moments(law: Noise, t: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of e^(-t|X|)."""
    mean = _laplace_transform(law, t)
    return mean, np.maximum(_laplace_transform(law, 2 * t) - mean**2, 1e-12)


def _laplace_transform(law: Noise, t: Floats) -> Floats:
    """E e^(-t|X|), of a density 1 - int t e^(-tx) P(|X| > x) dx."""
    if isinstance(law, DiscreteNoise):
        k = np.arange(float(law.isf(1e-16)) + 1)
        return (np.exp(-t[:, None] * k) @ law.pdf(k)) * 2 - float(law.pdf(0.0))
    x, step, tail = _tail_rule(law)
    return 1 - 2 * (t[:, None] * np.exp(-t[:, None] * x)) @ (tail * x) * step


@functools.lru_cache(maxsize=4)
def _tail_rule(law: Noise) -> tuple[Floats, float, Floats]:
    """Places, even in ln x, their distance there, and P(X > x)."""
    end = min(float(law.isf(1e-12)), law.support)
    u = np.linspace(math.log(float(law.isf(0.25)) * 1e-9), math.log(end), _NODES)
    return np.exp(u), u[1] - u[0], law.sf(np.exp(u))


def _tails(law: Noise, x: Floats, level: float) -> SamplerTest:
    """How many draws lie beyond quantiles of |X|, as far out as twenty are expected."""
    n, size = len(x), np.abs(x)
    at = np.unique(law.isf(_TAILS[_TAILS * n >= _FEWEST] / 2))

    def beyond(other: Noise) -> Floats:
        return 2 * other.sf(at)

    counts = n - np.searchsorted(np.sort(size), at, side="right")
    return _counted("tails", (law, beyond), (counts, n), level, [f"beyond ±{a:.4g}" for a in at])


def _cells(law: Noise, x: Floats, level: float) -> SamplerTest:
    """How many draws lie in each of many cells: every value of its own, where values are whole."""
    n = len(x)
    if isinstance(law, DiscreteNoise):
        far = min(float(law.isf(min(0.4, _FEWEST / n))), _VALUES / 2)
        edges = np.arange(-far - 1, far + 1) + 0.5
    else:
        half = law.isf(np.arange(_CELLS / 2, 0, -1) / _CELLS)
        edges = np.unique(np.concatenate([-half, half]))
    names = [f"in ({a:.4g}, {b:.4g}]" for a, b in pairwise(edges)]

    def inside(other: Noise) -> Floats:
        return -np.diff(other.sf(edges))

    counts = np.diff(np.searchsorted(np.sort(x), edges, side="right"))
    return _counted("cells", (law, inside), (counts, n), level, names)


def _symmetry(law: Noise, x: Floats, level: float) -> SamplerTest:
    """How many of the draws that are not 0 are positive."""
    del level
    signed, positive = int(np.sum(x != 0)), int(np.sum(x > 0))
    p_value = float(_binomial_p(np.array(positive), np.array(signed), np.array(0.5)))
    found = f"{positive} of {signed} that are not 0 are positive"
    return SamplerTest(name="symmetry", found=found, p_value=p_value)


def _independence(law: Noise, x: Floats, level: float) -> SamplerTest:
    """How often two draws agree in sign and size: neighbours, and ones half of them apart."""
    del level
    half = len(x) // 2
    pairs = {
        "neighbours": (x[0 : 2 * half : 2], x[1 : 2 * half : 2]),
        "draws half of them apart": (x[:half], x[half : 2 * half]),
    }
    median = float(law.isf(0.25))
    large = 2 * float(law.sf(median))
    signed = 2 * float(law.sf(0.0)) ** 2
    counts, names = list[float](), list[str]()
    for name, (a, b) in pairs.items():
        counts += [np.sum(a * b > 0), np.sum((np.abs(a) > median) == (np.abs(b) > median))]
        names += [f"of {name}, have one sign", f"of {name}, are both large or both small"]
    expected = np.array([signed, large**2 + (1 - large) ** 2] * 2)
    p_values = _binomial_p(np.array(counts), np.full(4, half), expected)
    worst = int(np.argmin(p_values))
    found = f"{names[worst]} {counts[worst] / half:.4g} instead of {expected[worst]:.4g}"
    return SamplerTest(
        name="independence", found=found, p_value=min(1.0, 4 * float(p_values[worst]))
    )


def _repeats(law: Noise, x: Floats, level: float) -> SamplerTest:
    """How many draws equal another one: a density has none, doubles a 2^-52 of all pairs."""
    del law, level
    n, count = len(x), int(np.sum(np.diff(np.sort(x)) == 0))
    p_value = 1.0 if count == 0 else min(1.0, n**2 / 2 * 2.0**-52 / count)  # Markov
    return SamplerTest(name="repeats", found=f"{count} equal another one", p_value=p_value)


def _counted(
    name: str,
    expected: tuple[Noise, Callable[[Noise], Floats]],
    seen: tuple[ArrayLike, int],
    level: float,
    places: list[str],
) -> SamplerTest:
    """A test of counts; ``expected`` is the law, and the chances of the places under any law."""
    (law, chances), (counts, n) = expected, (np.asarray(seen[0]), seen[1])
    p = np.clip(chances(law), 0.0, 1.0)
    p_values = _binomial_p(counts, np.full(len(p), n), p)
    worst, each = int(np.argmin(p_values)), level / len(p) / 2
    fewest = np.floor(special.bdtrik(each, n, p)) - 1
    most = np.ceil(special.bdtrik(1 - each, n, p)) + 2

    def caught(wrong: Noise, factor: float) -> bool:
        del factor
        q = np.clip(chances(wrong), 1e-300, 1.0)
        few = np.where(fewest >= 0, special.bdtr(np.maximum(fewest, 0), n, q), 0.0)
        many = np.where(most <= n, special.bdtrc(np.minimum(most, n) - 1, n, q), 0.0)
        return bool(np.any(few + many >= _CAUGHT))

    return SamplerTest(
        name=name,
        found=f"{int(counts[worst])} lie {places[worst]} instead of {n * p[worst]:.1f}",
        p_value=min(1.0, len(p) * float(p_values[worst])),
        power=_power(law, caught),
    )


def _binomial_p(counts: ArrayLike, trials: ArrayLike, p: Floats) -> Floats:
    """Two-sided p-values of binomial counts: twice the smaller tail."""
    k = np.asarray(counts, dtype=np.float64)
    few = special.bdtr(k, trials, p)
    many = np.where(k > 0, special.bdtrc(np.maximum(k - 1, 0), trials, p), 1.0)
    return np.minimum(1.0, 2 * np.minimum(few, many))


def _power(law: Noise, caught: Callable[[Noise, float], bool]) -> float | None:
    """The least e^h - 1 such that scales off by e^h and by e^-h are caught; None where none is."""

    def both(h: float) -> bool:
        return all(caught(law.scaled(c), c) for c in (math.exp(h), math.exp(-h)))

    try:
        if not both(_WIDEST):
            return None
    except ValueError:  # a law that has no scale
        return None
    low, high = math.log(1e-6), math.log(_WIDEST)
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (low, middle) if both(math.exp(middle)) else (middle, high)
    return math.expm1(math.exp(high))
