"""Pairs of two neighbours, from below: their outcomes merged into cells, whatever the law.

Symbols: ``P``, ``Q`` the outcome's laws under the two neighbours, ``l`` loss ln dP/dQ, ``t`` shift,
``C`` bound on a contribution, ``q`` sampling rate; on a line ``r``, ``r'`` distances of the outcome
from the centres of Q and P, ``u`` cosine of the angle to the shift.

Merging outcomes is post-processing, so the pair of the cells' masses costs no more than the two
neighbours do: no shape of the density is assumed. In every pair here a reflection exchanges P and
Q. Cells are made of one half only; their mirror images have the masses exchanged, and a cell that
is not used is merged with its mirror image, which has loss 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import special

from accountants._atoms import cut
from accountants._audit_laws import RandomDirection
from dpmech.cells import interval_mass
from dpmech.discrete import DiscreteNoise
from dpmech.loss import AtomicPair, PeakedPair
from dpmech.noise import Floats, Noise
from dpmech.relations import PoissonSubstitutionPair
from dpmech.tabulated import Tabulated

# Cells whose masses are known less well than this are merged with their mirror image.
_KNOWN = 1e-9
_PIECES, _MOST_CELLS = 16.0, 4_000
_TAIL = 1e-18
_LOG_LEAST = -600.0  # ln of masses that doubles hold well
# Cells of the size and of the angle of noise on a line, and levels that its losses are rounded to.
_SIZES, _ANGLES, _LEVELS = 1_000, 300, 600

LogMasses = tuple[Floats, Floats]  # ln of masses, and their relative errors
Moved = Callable[[float], LogMasses]


def shift_pair(noise: Noise, shift: float) -> AtomicPair:
    """The noise about ``shift`` against the noise about 0: this shift alone, of any symmetric law.

    **Guarantees.** Its hockey-stick curve is nowhere above that of the two neighbours. A smaller
    shift may cost more where the density does not fall.
    """
    edges = _finer(PeakedPair(noise=noise, shift=shift).edges(_TAIL))
    if isinstance(noise, Tabulated):
        own = _own_edges(noise)
        edges = np.unique(np.concatenate([edges, own, own + shift]))
        edges = edges[(edges >= shift / 2) & (edges <= noise.support)]
    p = interval_mass(noise, edges[:-1] - shift, edges[1:] - shift)
    q = interval_mass(noise, edges[:-1], edges[1:])
    return _merged(p, q, _beyond(noise, shift))


def replaced_pair(noise: Noise, bound: float, rate: float) -> AtomicPair:
    """A record of contribution C replaced by one of -C, sampled at ``rate``; others contribute 0.

    The sample is a Poisson one or a batch of fixed size: the record is drawn or not, and in its
    place come records that contribute nothing. So P is (1-q) f + q f(. - C), and Q has -C for C.
    """
    whole = isinstance(noise, DiscreteNoise)
    cells = _whole_numbers(noise, bound) if whole else _line(noise, bound, rate)
    still, error = cells(0.0)

    def mixed(way: int) -> LogMasses:
        moved, wrong = cells(way * bound)
        mass = np.logaddexp(math.log1p(-rate) + still, math.log(rate) + moved)
        return mass, error + wrong

    return _merged(mixed(-1), mixed(1), rate * _beyond(noise, bound))


def _line(noise: Noise, bound: float, rate: float) -> Moved:
    """The masses of cells on x > 0 of a law with a density, all moved by the argument."""
    edges = _finer(PoissonSubstitutionPair(noise=noise, bound=bound, rate=rate).edges(_TAIL))
    return lambda by: interval_mass(noise, edges[:-1] + by, edges[1:] + by)


def _whole_numbers(noise: DiscreteNoise, bound: float) -> Moved:
    """The masses of 1, 2, … under a law on the whole numbers, all moved by the argument."""
    k = np.arange(1.0, float(noise.isf(_TAIL)) + bound + 1)
    return lambda by: (noise.logpdf(k + by), np.full(len(k), _KNOWN / 4))


def _finer(edges: Floats) -> Floats:
    return cut(edges, np.full(max(len(edges) - 1, 0), _PIECES))


def _own_edges(noise: Tabulated) -> Floats:
    """Where the density of the table and of its tail jumps, on both sides."""
    ends, width = noise.edges, noise.edges[-1] - noise.edges[-2]
    more = _MOST_CELLS if noise.decay > 0 else 0
    half = np.append(ends, ends[-1] + width * np.arange(1, more + 1))
    return np.concatenate([-half[:0:-1], half])


def _beyond(noise: Noise, shift: float) -> float:
    """P-mass beyond the support of Q."""
    if math.isinf(noise.support):
        return 0.0
    return float(noise.sf(noise.support - shift)) * (1 - _KNOWN)


def _merged(p: LogMasses, q: LogMasses, infinite: float) -> AtomicPair:
    """The pair of the cells of one half, by their masses under P and Q, and of their images."""
    (log_p, p_error), (log_q, q_error) = p, q
    # A difference of tails that rounds to nothing is no proof that there is no mass.
    known = (np.minimum(log_p, log_q) > _LOG_LEAST) & (p_error + q_error <= _KNOWN)
    log_p, log_q = log_p[known], log_q[known]
    return _mirrored(log_p - log_q, np.exp(log_p), np.exp(log_q), infinite)


def _mirrored(losses: Floats, p: Floats, q: Floats, infinite: float) -> AtomicPair:
    """Atoms with their mirror images; what mass is left has loss 0."""
    total = math.fsum(p) + math.fsum(q) + infinite
    share = min(1.0, 1 / total) if total > 0 else 1.0  # of all masses, which lowers the curve
    rest = np.array([1 - total] if total < 1 else [])
    masses = np.concatenate([share * q, rest, share * p])
    pair = AtomicPair.from_cells(
        np.concatenate([-losses, 0 * rest, losses]),
        masses,
        share * infinite,
        np.full(len(masses), 4 * _KNOWN),
    )
    return replace(pair, loss_error=4 * _KNOWN)


@functools.lru_cache(maxsize=16)
def line_pair(law: RandomDirection, shift: float) -> AtomicPair:
    """Noise on a random line of R^d about a centre ``shift`` away and about 0, from below.

    **Guarantees.** Its hockey-stick curve is nowhere above that of the two neighbours. The density
    at distance r is g(r)/(A r^(d-1)), with g that of |z| and A the area of the unit sphere: of an
    outcome at r' from the centre of P and r from that of Q the loss is
    l = (d-1) ln(r/r') + ln g(r') - ln g(r), and r^2 = t^2 + r'^2 + 2 t r' u. Under P the size r'
    and the cosine u are independent, u with density proportional to (1-u^2)^((d-3)/2), so that a
    cell of both has an exact P-mass p. On r' in [a, b] and u >= u_0 the loss is at least

        (d-1)/2 ln min(1 + 2 t u_0 w + t^2 w^2; 1/b <= w <= 1/a) + ln g(b) - ln g(min r),

    as g falls: call this l_0. The cell's Q-mass is E_P[e^-l] <= p e^-l_0. Where l_0 > 0 the cell
    is in the half r > r'; taking p e^-l_0 for its Q-mass only lowers (p - e^epsilon Q)_+.
    """
    a, b, size_mass = _sizes(law.size)
    u, angle_mass = _angles(int(law.dim))
    p = (size_mass[:, None] * angle_mass).ravel()
    least = _least_loss(law, shift, (a[:, None], b[:, None]), u).ravel()
    upper = least > 0
    losses, p = least[upper], p[upper]
    if not len(losses):
        return _mirrored(losses, losses, losses, 0.0)
    # Levels even in P-mass; a loss rounded down to its level raises the Q-mass again.
    order = np.argsort(losses)
    share = np.cumsum(p[order]) / np.sum(p)
    starts = np.unique(np.searchsorted(share, np.linspace(0, 1, _LEVELS + 1)[:-1]))
    level = np.minimum(losses[order][starts], -_LOG_LEAST)
    mass = np.add.reduceat(p[order], starts)
    return _mirrored(level, mass, mass * np.exp(-level), 0.0)


def _sizes(size: Noise) -> tuple[Floats, Floats, Floats]:
    """(a, b, P(a < |z| <= b)) of cells of the size, without the smallest and the largest ones."""
    tails = np.concatenate([np.geomspace(1e-15, 0.05, 200), np.linspace(0.05, 0.5, _SIZES)[1:-1]])
    edges = np.unique(np.append(size.isf(tails), float(size.isf(0.5 - 1e-9))))
    a, b = edges[:-1], edges[1:]
    return a, b, 2 * np.exp(interval_mass(size, a, b)[0]) * (1 - _KNOWN)


def _angles(dim: int) -> tuple[Floats, Floats]:
    """(u_0, P(u_0 <= u < u_1)) of cells of the cosine: (1 + u)/2 is Beta((d-1)/2, (d-1)/2)."""
    reach = min(1.0, 9 / math.sqrt(dim))
    edges = np.linspace(-reach, reach, _ANGLES + 1)
    half = (dim - 1) / 2
    below = special.betainc(half, half, (1 + edges) / 2)
    # Each value is good to some ulps of 1: what their difference may have too much is taken off.
    return edges[:-1], np.maximum(np.diff(below) - 1e-13, 0.0)


def _least_loss(
    law: RandomDirection, shift: float, size: tuple[Floats, Floats], u: Floats
) -> Floats:
    """l_0 of each cell."""
    a, b = size
    w = np.clip(-u / shift, 1 / b, 1 / a)
    near = np.clip(-shift * u, a, b)
    closest = np.sqrt(np.maximum(shift**2 + near**2 + 2 * shift * near * u, 0.0))
    turned = np.log(np.maximum((1 + shift * w * u) ** 2 + (shift * w) ** 2 * (1 - u**2), 1e-300))
    falls = law.size.logpdf(b) - law.size.logpdf(closest)
    return (law.dim - 1) / 2 * turned + falls - 1e-9
