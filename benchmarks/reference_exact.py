"""Finite sums, in mpmath: randomised response, and Laplace noise without sampling.

Symbols: ``c`` largest loss of one release (1/b, or the response's epsilon).
"""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
from numpy.typing import NDArray
from reference_laws import Direction, Release, parameters
from scipy import optimize

Complexes = NDArray[np.complex128]

# Most Laplace releases summed whole. Of more, only the terms with at most SPLIT continuous parts
# are: without them the integrand on the contour falls like y^-(SPLIT + 3).
LARGEST_LAPLACE, SPLIT = 20, 3
# Beyond this many, too few are atoms to matter, or the sums take too long.
LARGEST_SPLIT = 400
# Terms of the contour of what is left.
_TERMS = 1 << 17
_DECAY = 38.0


def has_exact_delta(release: Release) -> bool:
    """Whether :func:`exact_delta` knows the release."""
    name, _ = parameters(release.law)
    plain = name == "laplace" and release.rate == 1 and release.count <= LARGEST_SPLIT
    return plain or name == "randomized-response"


def exact_delta(release: Release, direction: Direction, epsilon: float) -> float:
    """delta at ``epsilon`` of ``release.count`` releases; see :func:`has_exact_delta`."""
    name, keys = parameters(release.law)
    with mp.workdps(30 + 4 * min(release.count, LARGEST_LAPLACE)):
        if name == "randomized-response":
            return float(_response(release, direction, mp.mpf(epsilon), mp.mpf(keys["epsilon"][0])))
        most = release.count if release.count <= LARGEST_LAPLACE else SPLIT
        c = 1 / mp.mpf(keys["b"][0])
        few = float(_laplace(release.count, mp.mpf(epsilon), c, most))
        return few + _many(release.count, epsilon, float(c), most)


def _response(release: Release, direction: Direction, epsilon: mp.mpf, c: mp.mpf) -> mp.mpf:
    """A binomial sum: each answer has one of two losses."""
    q, n = mp.mpf(release.rate), release.count
    true, base = (mp.exp(c) / (1 + mp.exp(c)), 1 / (1 + mp.exp(c)))
    mixed = (1 - q) * base + q * true
    p, other = (mixed, base) if direction == "remove" else (base, mixed)
    up, down = mp.log(p / other), mp.log((1 - p) / (1 - other))
    total, weight = mp.mpf(0), (1 - p) ** n
    for k in range(n + 1):
        total += weight * _hinge(k * up + (n - k) * down - epsilon)
        weight *= mp.mpf(n - k) / (k + 1) * p / (1 - p)
    return total


def _hinge(excess: mp.mpf) -> mp.mpf:
    """(1 - e^-excess)_+."""
    return -mp.expm1(-excess) if excess > 0 else mp.mpf(0)


def _laplace(n: int, epsilon: mp.mpf, c: mp.mpf, most: int) -> mp.mpf:
    """Atoms at c (mass 1/2) and -c (e^-c/2), density e^{(l-c)/2}/4 between; n of them summed.

    Only the terms with at most ``most`` continuous parts.
    """
    total = mp.mpf(0)
    for k in range(min(n, most) + 1):
        for up in range(n + 1 - k):
            down = n - k - up
            level = epsilon - (up - down) * c
            if level < k * c:
                ways = mp.binomial(n, k) * mp.binomial(n - k, up)
                mass = (mp.exp(-c) / 2) ** down * (mp.exp(-c / 2) / 4) ** k / 2**up
                total += ways * mass * _uniforms(k, level, c)
    return total


def _many(n: int, epsilon: float, c: float, most: int) -> float:
    """The other terms, by the contour; all parts of the integrand are closed forms here."""
    if n <= most:
        return 0.0

    def parts(z: Complexes) -> tuple[Complexes, Complexes]:
        # Scaled by e^{-zc}, so that nothing overflows.
        atoms = 0.5 + 0.5 * np.exp(-c - 2 * z * c)
        between = -np.expm1(-(2 * z + 1) * c) / (4 * z + 2)
        return atoms, between

    def exponent(t: float) -> float:
        lam = np.array([math.exp(t) + 0j])
        a, b = parts(lam)
        value = n * (np.log(a + b) + lam * c) - lam * epsilon - np.log(lam * (lam + 1))
        return float(value.real[0])

    t = float(optimize.minimize_scalar(exponent, bounds=(-9, 9), method="bounded").x)
    lam = math.exp(t)
    step = 2 * math.pi / (_DECAY / lam + 26 * math.sqrt(n) * c)
    z = lam + 1j * step * np.arange(_TERMS)
    a, b = parts(z)
    rest = (a + b) ** n - sum(math.comb(n, k) * a ** (n - k) * b**k for k in range(most + 1))
    turned = np.exp(z * (n * c - epsilon)) * rest / (z * (z + 1))
    return float((turned.real.sum() - turned[0].real / 2) * step / math.pi)


def _uniforms(k: int, level: mp.mpf, c: mp.mpf) -> mp.mpf:
    """∫ (1 - e^{level - u})_+ e^{u/2} h(u) du, h the k-fold convolution of the box on [-c, c]."""
    if k == 0:
        return _hinge(-level)
    total = mp.mpf(0)
    for j in range(k + 1):
        end = (k - 2 * j) * c
        if end > level or level < -k * c:
            start = max(level, -k * c)
            if end > start:
                sign = (-1) ** j * mp.binomial(k, j)
                total += sign * (
                    _power_times_exponential(k, end, start, mp.mpf(1) / 2)
                    - mp.exp(level) * _power_times_exponential(k, end, start, -mp.mpf(1) / 2)
                )
    return total


def _power_times_exponential(k: int, end: mp.mpf, start: mp.mpf, rate: mp.mpf) -> mp.mpf:
    """∫_start^end (end - u)^{k-1}/(k-1)! e^{rate u} du."""
    w = end - start
    return mp.exp(rate * end) * w**k / mp.factorial(k) * mp.hyp1f1(k, k + 1, -rate * w)
