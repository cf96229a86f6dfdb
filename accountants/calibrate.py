"""How much noise, sampling or repetition a goal allows: the least private still proved to meet it.

Every search ends on the safe side and its end is checked once more, by the accountant that
:func:`accountant_named` gives to whoever checks the plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from accountants._search import SLOPE, Safe, largest_count, safe_point
from accountants.base import Accountant, Ledger
from accountants.goals import DeltaAt, Goal, excess, met_target, pinned, proved_interval
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
from dpmech.plan import Entries, checked_others
from dpmech.spherical import Spherical

__all__ = [
    "AccountantName",
    "accountant_named",
    "calibrate",
    "calibrate_rate",
    "calibrate_scale",
    "calibrate_steps",
    "stages",
]

AccountantName = Literal["pld", "rdp", "prv"]

# Plans are proved with this relative gap in epsilon, and scales searched to _RELATIVE of the least
# that is proved: together they stay within 1e-5 of the optimum.
_PROOF = 5e-6
_RELATIVE = 4e-6
_NO_SCALE, _NO_RATE = "No scale up to e^60 times the law given", "No sampling rate down to e^-60"
# Gaps of the first passes, which come near the answer for little.
_PASSES = (1e-2, 1e-4)


def accountant_named(name: str) -> Accountant:
    """A fresh accountant called ``pld``, ``rdp`` or ``prv``; ValueError for any other name.

    ``pld`` is finer than ``PLD()``: plans are calibrated, and checked, with a gap of 5e-6.
    """
    if name == "pld":
        return PLD(tolerance=_PROOF)
    if name == "rdp":
        return RDP()
    if name == "prv":
        return PRV()
    raise ValueError(f"Unknown accountant {name!r}; use {', '.join(get_args(AccountantName))}.")


def calibrate(
    noise: Noise,
    target: Goal,
    *,
    steps: int = 1,
    sampling: Sampling | None = None,
    sensitivity: Sensitivity | None = None,
    accountant: str = "pld",
) -> PrivacyPlan:
    """Rescale ``noise`` until ``steps`` releases meet ``target``, and return the plan.

    **Guarantees.** Those of :func:`calibrate_scale`, for one record added or removed; it also
    knows of releases beside this one.

    Raises Unattainable where no scale meets the target (``reached`` is the ratio of the epsilon
    reached to the target's), NoDominatingPair where nothing is proved.

    >>> from dpmech import Gaussian
    >>> plan = calibrate(Gaussian(sigma=1.0), Target(epsilon=1.0, delta=1e-5))
    >>> plan.epsilon <= 1.0, round(plan.mechanism.noise.sigma, 5)
    (True, 3.73064)
    """
    release = Mechanism(
        noise=noise,
        sensitivity=sensitivity or Sensitivity(),
        sampling=sampling or Sampling(),
    )
    return calibrate_scale(release, target, steps=steps, accountant=accountant)


def calibrate_scale(
    release: Mechanism,
    goal: Goal,
    *,
    steps: int = 1,
    accountant: str = "pld",
    others: Sequence[tuple[Mechanism, int]] = (),
) -> PrivacyPlan:
    """The least multiple of the release's noise with which ``steps`` of it meet the goal.

    ``others`` are releases that run beside it on samples of their own, each with how often; their
    noise stays as it is.

    **Guarantees.** The plan's epsilon is proved by the named accountant, for the others as well,
    and the goal is met by that accountant: the search ends on the safe side, and the end is checked
    once more. With ``pld`` the scale is within 1e-5 (relative) of the least that is private enough
    (within 5e-6 in epsilon, where the others leave the scale little to say).

    Raises Unattainable where no scale meets the goal, as where the others alone exceed it;
    NoDominatingPair where nothing is proved.

    >>> from accountants.goals import Advantage
    >>> from dpmech import Gaussian
    >>> goal = Advantage(bound=0.1, delta=1e-5)
    >>> plan = calibrate_scale(Mechanism(noise=Gaussian(sigma=1.0)), goal)
    >>> round(plan.mechanism.noise.sigma, 4)  # 1/sigma = 2 Phi^-1(0.55)
    3.979
    """

    def scaled(log_scale: float) -> Mechanism:
        return replace(release, noise=release.noise.scaled(math.exp(log_scale)))

    beside = _beside(accountant_named(accountant), checked_others(release, others), goal)
    # The first guess makes the noise as wide as the sensitivity.
    x = math.log(release.sensitivity.bound / _width(release.noise))
    found, met = _searched(
        goal, beside, x, lambda rest, x: rest.compose(scaled(x), steps), _NO_SCALE
    )
    return _plan(((scaled(found), steps), *others), goal, met, accountant)


def _beside(empty: Accountant, others: Entries, goal: Goal) -> Accountant:
    """An accountant of the other releases; Unattainable where they leave nothing of the goal."""
    alone = empty.compose_ledger(Ledger(others))
    if not others or excess(pinned(goal, alone), alone) <= 0:
        return alone
    epsilon = proved_interval(alone, goal.delta)[1]
    raise Unattainable(
        f"The other releases alone cost epsilon={epsilon:.6g} at delta={goal.delta:g}, which is "
        f"beyond {goal}. Give them more noise, a smaller sample or fewer runs.",
        reached=math.exp(excess(pinned(goal, alone), alone)),
    )


def _width(noise: Noise) -> float:
    """How wide the noise is, roughly; 1 where it is narrower than the whole numbers it is on."""
    if isinstance(noise, Spherical):
        return math.sqrt(noise.variance)
    return float(noise.isf(0.16)) or 1.0


def calibrate_rate(
    release: Mechanism, goal: Goal, *, steps: int = 1, accountant: str = "pld"
) -> PrivacyPlan:
    """The largest sampling rate at which ``steps`` of the release meet the goal (1 where all do).

    **Guarantees.** Those of :func:`calibrate_scale`, for the rate; the kind of sampling stays.

    Raises Unattainable where no rate meets the goal, NoDominatingPair where nothing is proved.

    >>> from dpmech import Gaussian
    >>> goal = Target(epsilon=2.0, delta=1e-5)
    >>> plan = calibrate_rate(Mechanism(noise=Gaussian(sigma=1.0)), goal, steps=1000)
    >>> round(plan.mechanism.sampling.rate, 5)
    0.01086
    """

    def sampled(minus_log_rate: float) -> Mechanism:
        rate = math.exp(-max(minus_log_rate, 0.0))
        return replace(release, sampling=replace(release.sampling, rate=rate))

    empty = accountant_named(accountant)
    found, met = _searched(
        goal, empty, 1.0, lambda empty, x: empty.compose(sampled(x), steps), _NO_RATE
    )
    return _plan(((sampled(found), steps),), goal, met, accountant)


def calibrate_steps(release: Mechanism, goal: Goal, *, accountant: str = "pld") -> PrivacyPlan:
    """The largest number of releases that meets the goal.

    **Guarantees.** The plan's epsilon is proved by the named accountant, and the goal is met by it;
    one release more is not proved to meet it (unless the number is 10^12, beyond which nothing is
    told apart).

    Raises Unattainable where one release is too many, NoDominatingPair where nothing is proved.

    >>> from dpmech import Gaussian
    >>> release = Mechanism(noise=Gaussian(sigma=10.0))
    >>> calibrate_steps(release, Target(epsilon=1.0, delta=1e-5)).steps  # (10/3.7306)^2
    7
    """
    count, met, last = 1, pinned(goal), None
    for empty in stages(accountant_named(accountant)):
        if last is not None:
            met = pinned(goal, last.compose(release, max(count, 1)))
        count = largest_count(_counted(met, empty, release), max(count, 1))
        last = empty
    if last is None or count == 0:
        raise _too_much(met, accountant_named(accountant).compose(release))
    return _plan(((release, count),), goal, met, accountant)


def stages(proof: Accountant) -> tuple[Accountant, ...]:
    """Cheaper accountants to come near with, and at last the one that proves."""
    if not isinstance(proof, PLD):
        return (proof, proof, proof)  # a goal may be pinned better where the last pass ended
    rough = (gap for gap in _PASSES if gap > proof.tolerance)
    return (*(PLD(tolerance=gap).compose_ledger(proof.ledger) for gap in rough), proof)


def _searched(
    goal: Goal,
    finest: Accountant,
    start: float,
    composed: Callable[[Accountant, float], Accountant],
    nowhere: str,
) -> tuple[float, Target | DeltaAt]:
    """The least safe x, and the simple goal that it was held to, by ever finer accountants."""
    found, met, last = Safe(start, SLOPE), pinned(goal), None
    *rough, proof = stages(finest)
    for empty in (*rough, proof):
        if last is not None and empty is proof:  # pinned best where the other passes ended
            met = pinned(goal, composed(last, found.x))
        try:
            found = safe_point(
                lambda x, met=met, empty=empty: excess(met, composed(empty, x)),
                found,
                within=_within(empty),
                nowhere=nowhere,
            )
        except Unattainable:
            # Where the releases beside leave less than a rough pass can tell, a finer one may.
            if empty is proof or not finest.ledger.entries:
                raise
        else:
            last = empty
    return found.x, met


def _counted(
    met: Target | DeltaAt, empty: Accountant, release: Mechanism
) -> Callable[[int], float]:
    return lambda n: excess(met, empty.compose(release, n))


def _too_much(met: Target | DeltaAt, once: Accountant) -> Unattainable:
    ratio = math.exp(excess(met, once))
    return Unattainable(
        f"A single release does not meet the target: its loss is {ratio:.6g} times it. Use more "
        "noise, or a larger epsilon or delta.",
        reached=ratio,
    )


def _within(accountant: Accountant) -> float:
    """How near to the least safe value a search by an accountant is worth taking."""
    return max(accountant.tolerance, _RELATIVE) if isinstance(accountant, PLD) else _RELATIVE


def _plan(entries: Entries, goal: Goal, met: Target | DeltaAt, accountant: str) -> PrivacyPlan:
    """The plan of the main release and the others; ValueError where it misses the goal after all.

    The others are composed first, as they were in the search.
    """
    (release, steps), *others = entries
    done = accountant_named(accountant).compose_ledger(Ledger((*others, (release, steps))))
    if excess(met, done) > 0:
        raise ValueError(f"Expected {steps} releases of {release.noise} to meet {goal}.")
    lower, epsilon = proved_interval(done, goal.delta)
    if isinstance(goal, Target):  # met, whatever rounding adds to the epsilon asked for in turn
        epsilon = min(epsilon, goal.epsilon)
    return PrivacyPlan(
        target=met_target(goal, epsilon),
        mechanism=release,
        steps=steps,
        accountant=accountant,
        epsilon=epsilon,
        lower_epsilon=lower,
        others=tuple(others),
    )
