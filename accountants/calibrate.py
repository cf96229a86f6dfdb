"""How much noise a target needs: the smallest scale found whose proved epsilon meets it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

from scipy import optimize

from accountants.base import Accountant
from accountants.pld import PLD
from accountants.prv import PRV
from accountants.rdp import RDP
from dpmech import (
    Mechanism,
    Noise,
    PrivacyPlan,
    Sampling,
    Sensitivity,
    Target,
    Unattainable,
)

AccountantName = Literal["pld", "rdp", "prv"]

# The scale found is within this relative distance of the smallest that meets the target.
_RELATIVE = 1e-5
# Tolerance of the first pass.
_COARSE = 1e-2
# Scales beyond e^±60 times the law given are no noise anybody means.
_LOG_LIMIT = 60.0


def accountant_named(name: str) -> Accountant:
    """A fresh accountant called ``pld``, ``rdp`` or ``prv``; ValueError for any other name."""
    if name == "pld":
        return PLD()
    if name == "rdp":
        return RDP()
    if name == "prv":
        return PRV()
    raise ValueError(f"Unknown accountant {name!r}; use {', '.join(get_args(AccountantName))}.")


def calibrate(
    noise: Noise,
    target: Target,
    *,
    steps: int = 1,
    sampling: Sampling | None = None,
    sensitivity: Sensitivity | None = None,
    accountant: str = "pld",
) -> PrivacyPlan:
    """Rescale ``noise`` until ``steps`` releases meet ``target``, and return the plan.

    **Guarantees.** The plan's epsilon is proved by the named accountant and is at most the
    target's: the search ends on the safe side, and the end is checked once more.

    Raises Unattainable where no scale meets the target (``reached`` is the ratio of the epsilon
    reached to the target's), NoDominatingPair where nothing is proved.

    >>> from dpmech import Gaussian
    >>> plan = calibrate(Gaussian(sigma=1.0), Target(epsilon=1.0, delta=1e-5))
    >>> plan.epsilon <= 1.0, round(plan.mechanism.noise.sigma, 3)
    (True, 3.731)
    """
    release = Mechanism(
        noise=noise,
        sensitivity=sensitivity or Sensitivity(),
        sampling=sampling or Sampling(),
    )
    fresh = accountant_named(accountant)

    def composed(log_scale: float, empty: Accountant) -> tuple[Mechanism, Accountant]:
        scaled = replace(release, noise=noise.scaled(math.exp(log_scale)))
        return scaled, empty.compose(scaled, steps)

    def excess(empty: Accountant) -> Callable[[float], float]:
        return lambda log_scale: _log_ratio(
            composed(log_scale, empty)[1].epsilon(target.delta), target.epsilon
        )

    # The first guess makes the noise as wide as the sensitivity; a coarse pass comes near the
    # answer.
    log_scale = math.log(release.sensitivity.bound / float(noise.isf(0.16)))
    if accountant == "pld":
        log_scale = smallest_safe(excess(PLD(tolerance=_COARSE)), log_scale, within=_COARSE)
    log_scale = smallest_safe(excess(fresh), log_scale, within=_RELATIVE)
    mechanism, accounted = composed(log_scale, fresh)
    lower_epsilon, epsilon = accounted.epsilon_interval(target.delta)
    return PrivacyPlan(
        target=target,
        mechanism=mechanism,
        steps=steps,
        accountant=accountant,
        epsilon=epsilon,
        lower_epsilon=lower_epsilon,
    )


def _log_ratio(epsilon: float, target: float) -> float:
    """ln(epsilon/target), kept finite so that bracketing can interpolate."""
    return min(max(math.log(max(epsilon, 1e-300) / target), -50.0), 50.0)


def smallest_safe(excess: Callable[[float], float], start: float, *, within: float) -> float:
    """An x with ``excess(x) <= 0``, ``within`` of the smallest, for an excess that falls in x.

    Raises Unattainable where no x up to 60 above ``start`` has it; its ``reached`` is e^excess.
    """
    known = functools.cache(excess)
    if known(start) > 0:
        low, high = _stepped(known, start, +1, within)
    else:
        high, low = _stepped(known, start, -1, within)
    if known(low) <= 0:
        return low  # (almost) no noise already meets the target
    if known(high) > 0:
        ratio = math.exp(known(high))
        raise Unattainable(
            f"No scale up to e^{_LOG_LIMIT:.0f} times the law given meets the target; epsilon is "
            f"still {ratio:.6g} times it there. Allow a larger delta or epsilon.",
            reached=ratio,
        )
    x = optimize.brentq(known, low, high, xtol=within / 4, rtol=1e-15) if known(high) < 0 else high
    # The root may lie a hair on the unsafe side, and the accountant's own grid may shift a little.
    step = within / 4
    while known(x) > 0:
        x, step = min(x + step, high), step * 2
    return float(x)


def _stepped(
    excess: Callable[[float], float], start: float, way: int, within: float
) -> tuple[float, float]:
    """(last x with the sign of ``start``, first beyond): steps from what the excess suggests."""
    sign = excess(start) > 0
    here, step = start, min(max(1.2 * abs(excess(start)), 2 * within), 0.7)
    while abs(here - start) < _LOG_LIMIT:
        there = here + way * step
        if (excess(there) > 0) != sign:
            return here, there
        here, step = there, step * 1.6
    return start, here
