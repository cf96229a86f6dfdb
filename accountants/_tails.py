"""Rényi moments of the tail of a loss that rises for ever, in closed form.

Symbols: ``f`` density of the noise, ``s`` shift, ``l`` loss before sampling, ``q`` sampling rate,
``alpha`` order > 1, ``H = ln(f(x - s)^alpha f(x)^(1 - alpha))``, the log of the moment's integrand.

Such laws are exp(-(|x|/scale)^beta) with beta >= 1. Beyond s, H' is -(beta/scale^beta) x^(beta-1)
(1 + alpha ((1 - s/x)^(beta-1) - 1)); both factors rise with x, so that from where H falls it is
concave, and the integral beyond X is at most e^H(X) / -H'(X). A sampled ratio is at most c e^l
beyond X, with c = q + (1 - q) e^-l(X).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dpmech import Gaussian, GeneralizedGaussian, Laplace, LaplaceMixture, Noise
from dpmech.cells import EPS
from dpmech.loss import DominatingPair, PeakedPair, SubsampledPair
from dpmech.noise import Floats
from dpmech.relations import SubstitutionPair

# The slope's rounding: tails that matter to no digit may be a percent larger.
_SLOPE = 0.99
# A tail this much smaller (in logarithms) than the integrand before it is small enough.
_NEGLIGIBLE = 60.0
_REACH = 1.5 ** np.arange(120, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class _Tail:
    """The tail of a pair whose density is exp(-(|x|/scale)^beta), at sampling rate ``rate``."""

    base: PeakedPair
    scale: float
    beta: float
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
        power = self.beta - 1
        fall = 1 + orders[:, None] * np.expm1(power * np.log1p(-self.base.shift / x))
        log_slope = math.log(self.beta / self.scale) + power * np.log(x / self.scale)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_slope = log_slope + np.log(_SLOPE * fall)
        return np.where(fall > 0.01, height + rounding - log_slope, np.inf)


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
    power = _power_law(base.noise)
    return power and _Tail(base=base, scale=power[0], beta=power[1], rate=rate)


def _power_law(noise: Noise) -> tuple[float, float] | None:
    """(scale, beta) of a density exp(-(|x|/scale)^beta), beta >= 1."""
    if isinstance(noise, Gaussian):
        return noise.sigma * math.sqrt(2), 2.0
    if isinstance(noise, Laplace):
        return noise.b, 1.0
    if isinstance(noise, GeneralizedGaussian) and noise.beta >= 1:
        return noise.scale, noise.beta
    if isinstance(noise, LaplaceMixture) and len(noise.scales) == 1:
        return noise.scales[0], 1.0
    return None
