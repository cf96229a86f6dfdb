"""Rényi moments of the tail of a loss that rises for ever, in closed form.

Symbols: ``f`` density of the noise, ``s`` shift, ``l`` loss before sampling, ``q`` sampling rate,
``alpha`` order > 1, ``H = ln(f(x - s)^alpha f(x)^(1 - alpha))``, the log of the moment's integrand.

With the score g = (ln f)' < 0, H' = g(x) (1 + alpha (g(x - s)/g(x) - 1)). Where H falls and is
concave from there on, the integral beyond X is at most e^H(X) / -H'(X). That is so beyond s for

* exp(-(|x|/scale)^beta) with beta >= 1: both factors of H' grow in size with x,
* the offset Gaussian, where H is a parabola, as for the flipped Huber law beyond s + alpha,
* the logistic law, where H'' is -(alpha sech^2((x - s)/2b) - (alpha - 1) sech^2(x/2b)) / 2b^2 and
  sech falls.

A sampled ratio is at most c e^l beyond X, with c = q + (1 - q) e^-l(X).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dpmech import Gaussian, GeneralizedGaussian, Laplace, LaplaceMixture, Noise
from dpmech.cells import EPS
from dpmech.logconcave import FlippedHuber, Logistic, OffsetGaussian
from dpmech.loss import DominatingPair, PeakedPair, SubsampledPair
from dpmech.noise import Floats
from dpmech.relations import SubstitutionPair

# The slope's rounding: tails that matter to no digit may be a percent larger.
_SLOPE = 0.99
_STEEP = 1e299  # a score beyond this may have been cut off
# A tail this much smaller (in logarithms) than the integrand before it is small enough.
_NEGLIGIBLE = 60.0
_REACH = 1.5 ** np.arange(120, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class _Tail:
    """A pair's tail at sampling rate ``rate``: beyond ``start``, H is concave where it falls."""

    base: PeakedPair
    start: float
    rate: float

    def log_integrand(self, orders: Floats, x: Floats) -> tuple[Floats, Floats]:
        """(alpha ln c + H(x), a bound on its rounding): shape (orders, places)."""
        log_p, log_q = self.base.noise.logpdf(x - self.base.shift), self.base.noise.logpdf(x)
        log_c = (
            np.logaddexp(np.log(self.rate), math.log1p(-self.rate) + log_q - log_p)
            if self.rate < 1
            else 0.0
        )
        size = np.abs(log_p) + np.abs(log_q)
        alpha = orders[:, None]
        return log_q + alpha * (log_p - log_q + log_c), 32 * EPS * alpha * (1 + size)

    def log_beyond(self, orders: Floats, x: Floats) -> Floats:
        """ln of a bound on the moment beyond each x; inf where H still rises."""
        height, rounding = self.log_integrand(orders, x)
        here = -self.base.noise.score(x)
        with np.errstate(divide="ignore", invalid="ignore"):
            fall = 1 - orders[:, None] * (1 + self.base.noise.score(x - self.base.shift) / here)
            fall -= 32 * EPS * orders[:, None]
            log_slope = np.log(_SLOPE * fall) + np.log(here)
        known = (fall > 0.01) & (x > self.start) & (here < _STEEP)
        return np.where(known, height + rounding - log_slope, np.inf)


def is_known(pair: DominatingPair) -> bool:
    """Whether the pair has a tail of this kind."""
    return _tail_of(pair) is not None


def log_tail(pair: DominatingPair, orders: Floats, x: float) -> Floats:
    """ln of a bound on E_Q[r^alpha] beyond ``x``, per order; inf where there is none."""
    tail = _tail_of(pair)
    if tail is None:
        return np.full(len(orders), np.inf)
    return tail.log_beyond(orders, np.array([x]))[:, 0]


def end_of_cells(pair: DominatingPair, orders: Floats) -> Floats:
    """Places up to one beyond which the moment is negligible at all ``orders``."""
    tail = _tail_of(pair)
    if tail is None:
        return np.empty(0)
    x = tail.base.shift + _far(tail.base.noise) * _REACH
    seen = np.maximum.accumulate(tail.log_integrand(orders, x)[0], axis=1)
    enough = np.all(tail.log_beyond(orders, x) <= seen - _NEGLIGIBLE, axis=0)
    return x[: 1 + int(np.argmax(enough))] if np.any(enough) else x


@lru_cache(maxsize=64)
def _far(noise: Noise) -> float:
    return float(noise.isf(1e-60))


def _tail_of(pair: DominatingPair) -> _Tail | None:
    """None for a pair without this tail."""
    base, rate = pair, 1.0
    if isinstance(pair, SubstitutionPair) or (
        isinstance(pair, SubsampledPair) and pair.direction == "remove"
    ):
        base, rate = pair.base, pair.rate
    if not isinstance(base, PeakedPair):
        return None
    if not _has_tail(base.noise):
        return None
    bend = base.noise.alpha if isinstance(base.noise, FlippedHuber) else 0.0
    return _Tail(base=base, start=base.shift + bend, rate=rate)


def _has_tail(noise: Noise) -> bool:
    """Whether the law is one of those above."""
    if isinstance(noise, GeneralizedGaussian):
        return noise.beta >= 1
    if isinstance(noise, LaplaceMixture):
        return len(noise.scales) == 1
    return isinstance(noise, Gaussian | Laplace | OffsetGaussian | FlippedHuber | Logistic)
