"""Upper bounds for an audit: by PLD, by Rényi divergences where no pair is proved, at delta 0.

Symbols: ``s`` bound on the norm of a change, ``d`` dimension, ``q`` sampling rate.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from accountants.base import Accountant, Ledger
from accountants.exact import staircase_pure_epsilon
from accountants.pld import PLD
from accountants.rdp import RDP
from dpmech import Laplace, Mechanism, NoDominatingPair, Staircase, Unattainable
from dpmech.discrete import DiscreteLaplace
from dpmech.guarantee import ApproximateDP, Guarantee, RandomizedResponse
from dpmech.logconcave import Logistic
from dpmech.noise import Noise

_ROUNDING = 1e-12
_FAR, _TINY = 1.5, 1e-40


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Proved upper bounds: ``epsilon`` at the claim's delta, ``delta`` at the claim's epsilon.

    ``by`` names the accountant; ``refusal`` says why there is none.
    """

    epsilon: float = math.inf
    delta: float = 1.0
    by: str = ""
    refusal: str = ""

    def covers(self, epsilon: float, delta: float) -> bool:
        """Whether the bounds prove the claim."""
        return self.epsilon <= epsilon or self.delta <= delta


def proved_bounds(ledger: Ledger, epsilon: float, delta: float, tolerance: float) -> Proof:
    """The best bounds there are; a refusal is a result, not an error."""
    refusal, found = "", Proof()
    accountants: tuple[tuple[str, Accountant], ...] = (
        ("pld", PLD(tolerance=tolerance)),
        ("rdp", RDP()),
    )
    for name, empty in accountants:
        try:
            found = _proof(name, empty.compose_ledger(ledger), epsilon, delta)
        except NoDominatingPair as error:
            refusal = refusal or error.reason
        if math.isfinite(found.epsilon) or found.delta < 1:
            return found
    return found if found.by else Proof(refusal=refusal.rstrip("."))


def _proof(name: str, accountant: Accountant, epsilon: float, delta: float) -> Proof:
    ledger = accountant.ledger
    upper = pure_epsilon(ledger) if delta == 0 else epsilons(accountant, delta)[1]
    return Proof(epsilon=upper, delta=deltas(accountant, epsilon, delta)[1], by=name)


@functools.lru_cache(maxsize=8)  # a release that is its own worst neighbour is asked for twice
def epsilons(accountant: Accountant, delta: float) -> tuple[float, float]:
    """(lower, upper) bounds on epsilon at ``delta``; the trivial ones where there are no others."""
    try:
        low, high = accountant.epsilon_interval(delta)
    except Unattainable:
        return 0.0, math.inf
    return low or 0.0, high


@functools.lru_cache(maxsize=8)
def deltas(accountant: Accountant, epsilon: float, delta: float) -> tuple[float, float]:
    """(lower, upper) bounds on delta at ``epsilon``, likewise.

    A claim of ``delta`` far above what is true needs no more than that its true delta is tiny,
    which is not computed: the tails get long.
    """
    far = delta > 0 and epsilon > _FAR * epsilons(accountant, delta)[1]
    if far and epsilons(accountant, _TINY)[1] <= epsilon:
        return 0.0, _TINY
    try:
        low, high = accountant.delta_interval(epsilon)
    except Unattainable:
        return 0.0, 1.0
    return low or 0.0, high


def pure_epsilon(ledger: Ledger) -> float:
    """An epsilon at delta 0 for everything in ``ledger``; inf where none is known."""
    return math.fsum(count * _sampled_pure(mechanism) for mechanism, count in ledger.entries)


def _sampled_pure(mechanism: Mechanism) -> float:
    """ln(1 + q (e^epsilon - 1)): the likelihood ratio of a sampled release, either way round."""
    whole, rate = _pure(mechanism), mechanism.sampling.rate
    if rate == 1 or whole > 700.0:
        return whole
    return math.log1p(rate * math.expm1(whole)) * (1 + _ROUNDING)


def _pure(mechanism: Mechanism) -> float:
    """The largest loss of a release that is not sampled."""
    noise, sensitivity = mechanism.noise, mechanism.sensitivity
    twice = mechanism.relation == "replace-one" and not isinstance(noise, Guarantee)
    times = 2 if twice else 1
    if isinstance(noise, Laplace):  # by the l1 norm of the change
        return times * sensitivity.dim * sensitivity.spread(sensitivity.dim) / noise.b
    return _scalar_pure(noise, times * sensitivity.bound) if sensitivity.dim == 1 else math.inf


@functools.singledispatch
def _scalar_pure(noise: Noise, s: float) -> float:
    """The loss at its peak, where it has one, or what is known of the law."""
    peak = noise.loss_peak(s)
    if math.isinf(peak) or math.isfinite(noise.support):
        return math.inf
    return float(noise.logpdf(peak - s) - noise.logpdf(peak)) * (1 + _ROUNDING)


@_scalar_pure.register
def _(noise: Staircase, s: float) -> float:
    return staircase_pure_epsilon(noise, s)


@_scalar_pure.register
def _(noise: Logistic, s: float) -> float:
    return s / noise.scale


@_scalar_pure.register
def _(noise: DiscreteLaplace, s: float) -> float:
    return s / noise.b


@_scalar_pure.register
def _(noise: RandomizedResponse, s: float) -> float:
    del s
    return noise.epsilon


@_scalar_pure.register
def _(noise: ApproximateDP, s: float) -> float:
    del s
    return noise.epsilon if noise.delta == 0 else math.inf
