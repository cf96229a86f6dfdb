"""Where to integrate: the saddle point of the composed loss, and a line through it.

At the saddle the integrand e^(K(t) - t eps) / (t (t+1)) is least along the real axis. Whatever tilt
and line are chosen, the bounds hold (see :mod:`accountants._contour`): this module only makes them
tight and cheap, so that estimates do here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from accountants._atoms import Composed, Emphasis
from accountants._contour import Line, cut_off, log_peak

# Shares of the gap in ln delta that the cells, the smoothing, the images and the cut-off may take.
CELLS, _SMOOTHING, _IMAGES, _CUT_OFF = 0.45, 0.45, 0.02, 0.02
# Single losses above so many epsilon are far above it.
_FAR = 1.25
_LARGEST_SMOOTHING = 0.5  # what the lower bound's proof allows
_LOG_TILTS = (-40.0, 60.0)


@dataclass(frozen=True, kw_only=True)
class Saddle:
    """``tilt`` > 0, the ``epsilon`` whose saddle it is, and the estimate of ln delta there.

    ``log_share`` is ln delta but for M(tilt) e^(-tilt epsilon), and ``hidden`` how much less it is
    known to be than estimated: where the loss has several humps, most of the tilted mass may lie
    below epsilon and cancel.
    """

    tilt: float
    epsilon: float
    log_delta: float
    log_share: float
    hidden: float = 0.0

    @classmethod
    def at(cls, composed: Composed, tilt: float, epsilon: float | None = None) -> Saddle:
        k, k1, k2 = composed.cumulants(tilt)
        epsilon = k1 - 1 / tilt - 1 / (1 + tilt) if epsilon is None else epsilon
        bend = max(k2, 0.0) + 1 / tilt**2 + 1 / (1 + tilt) ** 2
        log_share = -math.log(tilt * (1 + tilt)) - math.log(2 * math.pi * bend) / 2
        return cls(
            tilt=tilt,
            epsilon=epsilon,
            log_delta=k - tilt * epsilon + log_share,
            log_share=log_share,
        )

    @property
    def emphasis(self) -> Emphasis:
        """What matters of a single release."""
        if self.epsilon <= 0:
            return Emphasis(tilt=self.tilt, hidden=self.hidden)
        # Delta falls as steeply as this, on average from epsilon 0.
        mean = -self.log_delta / self.epsilon
        return Emphasis(
            tilt=self.tilt,
            far=_FAR * self.epsilon,
            hidden=self.hidden,
            steep=2 * max(self.tilt, mean),
        )

    def known(self, log_delta: float) -> Saddle:
        """The same with what is known of delta in place of the estimate."""
        less = max(0.0, self.log_delta - log_delta)
        return replace(self, log_delta=log_delta, log_share=self.log_share - less, hidden=less)


def saddle_for_delta(
    composed: Composed, log_delta: float, steepest: float, near: float = 1.0
) -> Saddle:
    """The saddle whose delta is about the one given, or the first with tilt epsilon >= steepest.

    Where atoms at the highest loss outweigh delta there is no saddle: epsilon is then that loss but
    for 1/tilt. ``near``: a tilt not far from the answer.
    """

    def miss(log_tilt: float) -> float:
        saddle = Saddle.at(composed, math.exp(log_tilt))
        if saddle.epsilon * saddle.tilt >= steepest:
            return -1.0
        return saddle.log_delta - log_delta

    return Saddle.at(composed, math.exp(_root(miss, math.log(near))))


def saddle_for_epsilon(
    composed: Composed, epsilon: float, steepest: float, near: float = 1.0
) -> Saddle:
    """The saddle of ``epsilon``."""

    def miss(log_tilt: float) -> float:
        saddle = Saddle.at(composed, math.exp(log_tilt))
        if saddle.epsilon * saddle.tilt >= steepest:
            return -1.0
        return epsilon - saddle.epsilon

    return Saddle.at(composed, math.exp(_root(miss, math.log(near))), epsilon)


def _root(falling: Callable[[float], float], start: float) -> float:
    """Where a function that falls from positive to negative is about zero."""
    from scipy.optimize import brentq  # takes long to import

    low = high = start
    at_low = at_high = falling(start)
    step = 0.35
    while at_high > 0 and high < _LOG_TILTS[1]:
        low, at_low, high = high, at_high, high + step
        at_high, step = falling(high), 2 * step
    while at_low <= 0 and low > _LOG_TILTS[0]:
        high, at_high, low = low, at_low, low - step
        at_low, step = falling(low), 2 * step
    if at_low <= 0 or at_high > 0:
        return high if at_high > 0 else low
    return float(brentq(falling, low, high, xtol=0.02))


def line_through(saddle: Saddle, composed: Composed, gap: float) -> Line:
    """A line through the saddle on which bounds on ln delta are about ``gap`` apart."""
    tilt = saddle.tilt
    smoothing = min(_LARGEST_SMOOTHING, math.sqrt(_SMOOTHING * gap / (tilt * (tilt + 1.5))))
    images = saddle.log_share + math.log(_IMAGES * gap)
    period, up, down = _period(saddle, composed, images)
    goal = saddle.log_share + math.log(_CUT_OFF * gap)
    last = 2.0 / smoothing
    while math.log(cut_off(tilt, smoothing, last, above=False)) > goal:
        last *= 1.1
    step = 2 * math.pi / period
    return Line(
        tilt=tilt,
        step=step,
        count=math.ceil(last / step) + 2,
        smoothing=smoothing,
        up=up,
        down=down,
    )


def _period(saddle: Saddle, composed: Composed, goal: float) -> tuple[float, float, float]:
    """The least distance of the images at which they add e^goal or less, and the two moves."""
    tilt = saddle.tilt
    base = composed.log_moment(tilt)
    width = 1 / math.sqrt(max(composed.cumulants(tilt)[2], 0.0) + 1 / tilt**2)

    def distance(move: float) -> float:
        t = tilt + move
        excess = composed.log_moment(t) - base - move * saddle.epsilon + log_peak(t)
        return (excess - goal) / abs(move)

    ups = width * np.geomspace(0.5, 32, 12)
    downs = np.minimum(tilt, width * np.geomspace(0.5, 32, 12))
    up = min((distance(m), m) for m in ups)
    down = min((distance(-m), m) for m in np.unique(downs))
    return max(up[0], down[0], 1 / width), float(up[1]), float(down[1])
