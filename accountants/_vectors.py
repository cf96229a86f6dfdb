"""Rényi bounds for Poisson-sampled vectors of independent noise (mathematics.md §6.3).

Symbols: ``alpha`` order > 1, ``q`` sampling rate, ``r`` joint likelihood ratio P/Q of a shift that
the sensitivity allows, ``S_alpha`` the largest ln E_Q[r^alpha] over all of those.

What is bounded is the moment of the *joint* ratio, E_Q[(1 - q + q r)^alpha]: all coordinates of a
record are sampled together, so the moments of single sampled coordinates must never be added.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy import special

from accountants._majorant import WHOLE_LAWS, joint_log_moments
from dpmech import Mechanism, Noise, Sensitivity
from dpmech.discrete import DiscreteNoise
from dpmech.guarantee import Guarantee
from dpmech.noise import Floats
from dpmech.spherical import Spherical
from dpmech.tabulated import Tabulated

# Orders tabulated: each whole one up to the first, then in steps of this share; in blocks, each
# ending at four times the end of the one before.
_EACH, _STEP, _BLOCK = 16, 0.06, 4
# Orders tried besides those asked for, where the bounds are the loosest.
_BELOW_2 = np.array([1.2, 1.4, 1.6, 1.8])
# The binomial sum has alpha terms: beyond this order no bound is computed (inf, which is one).
LARGEST_ORDER = 1 << 20
_EPS = float(np.finfo(np.float64).eps)


def _nodes(block: int) -> Floats:
    """Orders at which S is computed: to _EACH in block 0, then to four times the last."""
    if block == 0:
        return np.concatenate([[1.03, 1.06], np.arange(1.1, 2, 0.1), np.arange(2.0, _EACH + 1)])
    low = _EACH * _BLOCK ** (block - 1)
    steps = math.ceil(math.log(_BLOCK) / _STEP)
    return np.unique(np.round(np.geomspace(low, _BLOCK * low, steps)))[1:]


@functools.lru_cache(maxsize=256)
def _block(noise: Noise, sensitivity: Sensitivity, block: int) -> tuple[Floats, Floats]:
    orders = _nodes(block)
    return orders, joint_log_moments(noise, sensitivity, orders)


def tabulated_log_moments(noise: Noise, sensitivity: Sensitivity, orders: Floats) -> Floats:
    """Upper bounds on S at ``orders`` of shape (n,), from a table that is computed once.

    Between the orders of the table the chord is a bound: the ln of a moment is convex in the order.
    """
    at, values = _table(noise, sensitivity, float(np.max(orders)))
    return _chords(orders, np.append(1.0, at), np.append(0.0, values)) * (1 + 4 * _EPS)


def _interpolated(mechanism: Mechanism, orders: Floats) -> Floats:
    """S by straight lines of the divergence S/(alpha - 1): without the corners of chords of S."""
    at, values = _table(mechanism.noise, mechanism.sensitivity, float(np.max(orders)))
    return (orders - 1) * _chords(orders, at, values / (at - 1))


def _table(noise: Noise, sensitivity: Sensitivity, highest: float) -> tuple[Floats, Floats]:
    """Orders up to ``highest`` at least, and S there."""
    blocks = 1 + max(0, math.ceil(math.log(highest / _EACH) / math.log(_BLOCK) - 1e-9))
    tables = [_block(noise, sensitivity, block) for block in range(blocks)]
    return np.concatenate([at for at, _ in tables]), np.concatenate([s for _, s in tables])


def _chords(x: Floats, at: Floats, values: Floats) -> Floats:
    """Linear interpolation that is inf next to inf."""
    finite = np.isfinite(values)
    chords = np.interp(x, at, np.where(finite, values, 0.0))
    return np.where(np.interp(x, at, np.where(finite, 0.0, 1.0)) > 0, np.inf, chords)


def is_covered(mechanism: Mechanism) -> bool:
    """Whether this module's bounds hold for it: a Poisson-sampled vector of independent noise."""
    noise = mechanism.noise
    return (
        (has_density(noise) or isinstance(noise, WHOLE_LAWS))
        and mechanism.relation == "add-remove"
        and mechanism.sampling.kind == "poisson"
    )


def has_density(noise: Noise) -> bool:
    """Whether it draws independent coordinates from a density that falls away from 0.

    A guarantee has none, the coordinates of spherical noise depend on each other, and a tabulated
    density need not fall.
    """
    return not isinstance(noise, DiscreteNoise | Guarantee | Spherical | Tabulated)


def vector_log_moments(mechanism: Mechanism, orders: Floats, *, rough: bool = False) -> Floats:
    """Upper bounds on ln E_Q[((1-q) + q P/Q)^alpha] for all shifts allowed; ``orders`` (n,).

    ``rough``: near those, from the table alone, and not bounds.

    Of whole orders each term of the binomial expansion of the *joint* ratio takes its own bound; of
    others also the remainder of the series does, or else the chord between their whole neighbours
    is the bound, as the ln of a moment is convex in the order (0 at order 1). For the same reason
    the divergence, ln of the moment over alpha - 1, is no more than at any higher order tried.
    """
    if mechanism.sampling.rate == 1 and rough:
        return _interpolated(mechanism, orders)
    if mechanism.sampling.rate == 1:
        return joint_log_moments(mechanism.noise, mechanism.sensitivity, orders)
    tried = np.unique(np.concatenate([orders, np.floor(orders), np.ceil(orders), _BELOW_2]))
    tried = tried[tried > 1]
    divergence = np.array([_binomial(mechanism, float(a)) for a in tried]) / (tried - 1)
    least = np.minimum.accumulate(divergence[::-1])[::-1] * (tried - 1)
    whole = tried == np.floor(tried)
    chords = _chords(orders, np.append(1.0, tried[whole]), np.append(0.0, least[whole]))
    return np.minimum(least[np.searchsorted(tried, orders)], chords)


def _binomial(mechanism: Mechanism, order: float) -> float:
    """ln of a bound on 1 + sum over k >= 2 of C(order, k) (1-q)^(order-k) q^k (e^(S_k) - 1).

    With x = q r/(1-q), n = floor(order) and r the joint ratio, (1+x)^order is at most its series to
    x^n plus the smaller of x^order and C(order, n+1) x^(n+1): the integrand of the remainder,
    (1+t)^(order-n-1), has an exponent in (-1, 0). At r = 1 the series to x^(n+1) exceeds the power
    by |C(order, n+2)| x^(n+2) at most, for the same reason.
    """
    if order > LARGEST_ORDER:
        return math.inf
    rate, n = mechanism.sampling.rate, math.floor(order)
    k = np.append(np.arange(2.0, n + 1 + (n < order)), order)
    joint = tabulated_log_moments(mechanism.noise, mechanism.sensitivity, k)
    with np.errstate(divide="ignore"):
        choose = -np.log(order + 1) - special.betaln(k + 1, order - k + 1)
    powers = (order - k) * math.log1p(-rate) + k * math.log(rate)
    terms = choose + powers + joint + np.log(-np.expm1(-joint))
    if n < order:
        terms = _with_remainder(
            terms, powers[-1] + joint[-1], choose[-2] + powers[-2], (order, rate)
        )
    total = float(special.logsumexp(terms[:-1]))
    size = float(special.gammaln(order + 1) + abs(total) - order * math.log(rate))
    return float(np.logaddexp(0.0, total + 16 * _EPS * (1 + size)))


def _with_remainder(terms: Floats, power: float, last: float, at: tuple[float, float]) -> Floats:
    """``terms`` with the remainder in place of the last two; ``at`` is (order, q).

    ``power`` is ln of the one bound on the remainder, and ``last`` ln of the coefficient of the
    series' last term, which is the other.
    """
    (order, rate), n = at, math.floor(at[0])
    beyond = last + math.log((n + 1 - order) / (n + 2)) + math.log(rate) - math.log1p(-rate)
    terms[-2] = min(power, float(np.logaddexp(terms[-2], beyond)))
    return terms
