"""What each accountant is asked: a workload to epsilon (or sigma), or Unknown.

Peers are called as their documentation shows, at their defaults unless the name says otherwise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from workloads import Workload

from accountants import PLD, calibrate
from dpmech import Gaussian, Sampling, Target

Ask = Callable[[Workload], float]
# prv-accountant wants an absolute error: 1 % of epsilon, at least this (its grid, and with it its
# time, grow like the inverse; ours aims at 0.01 %).
PRV_SHARE, PRV_LEAST = 0.01, 2e-3


class Unknown(Exception):
    """The accountant does not have this law or task."""


def _require(can: bool) -> None:
    if not can:
        raise Unknown("does not have this law or task")


def ours(work: Workload) -> float:
    if work.target is None:
        return PLD().compose_ledger(work.ledger()).epsilon(work.delta)
    (release,) = work.releases
    plan = calibrate(
        Gaussian(sigma=1.0),
        Target(epsilon=work.target, delta=work.delta),
        steps=release.count,
        sampling=Sampling(rate=release.rate),
    )
    return math.sqrt(plan.mechanism.noise.variance)


def _event(work: Workload, sigma: float | None = None) -> Any:
    """dp-accounting's event."""
    from dp_accounting import dp_event

    events = []
    for release in work.releases:
        kind = dp_event.GaussianDpEvent if release.law == "gaussian" else dp_event.LaplaceDpEvent
        event: Any = kind(sigma or release.width)
        if release.rate < 1:
            event = dp_event.PoissonSampledDpEvent(release.rate, event)
        events.append(dp_event.SelfComposedDpEvent(event, release.count))
    return events[0] if len(events) == 1 else dp_event.ComposedDpEvent(events)


def google_pld(work: Workload) -> float:
    """PLDAccountant."""
    from dp_accounting.pld import PLDAccountant

    _require(work.only("gaussian", "laplace"))
    if work.target is not None:
        return _google_sigma(PLDAccountant, work)
    return float(PLDAccountant().compose(_event(work)).get_epsilon(work.delta))


def google_rdp(work: Workload) -> float:
    """RdpAccountant."""
    from dp_accounting.rdp import RdpAccountant

    _require(work.only("gaussian", "laplace"))
    if work.target is not None:
        return _google_sigma(RdpAccountant, work)
    return float(RdpAccountant().compose(_event(work)).get_epsilon(work.delta))


def _google_sigma(accountant: Callable[[], Any], work: Workload) -> float:
    import dp_accounting

    return float(
        dp_accounting.calibrate_dp_mechanism(
            accountant,
            lambda sigma: _event(work, sigma),
            work.target,
            work.delta,
            # Its default starts at 0 and finds no bracket.
            bracket_interval=dp_accounting.LowerEndpointAndGuess(0.5, 1.0),
        )
    )


def google_buckets(work: Workload) -> float:
    """The pessimistic estimate by privacy buckets."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    _require(work.target is None and work.only("gaussian", "laplace"))
    total = pld.identity()
    for release in work.releases:
        kind = (
            pld.from_gaussian_mechanism if release.law == "gaussian" else pld.from_laplace_mechanism
        )
        one = kind(
            release.width,
            sampling_prob=release.rate,
            pessimistic_estimate=True,
            use_connect_dots=False,
        )
        total = total.compose(one.self_compose(release.count))
    return float(total.get_epsilon_for_delta(work.delta))


def microsoft(work: Workload) -> float:
    """The upper end of prv-accountant's interval."""
    import prv_accountant as prv

    _require(work.target is None and work.only("gaussian", "laplace"))
    laws: list[Any] = []
    for release in work.releases:
        if release.law == "laplace":
            _require(release.rate == 1)
            laws.append(prv.LaplaceMechanism(mu=1 / release.width))
        elif release.rate < 1:
            laws.append(prv.PoissonSubsampledGaussianMechanism(release.rate, release.width))
        else:
            laws.append(prv.GaussianMechanism(noise_multiplier=release.width))
    counts = [release.count for release in work.releases]
    accountant = prv.PRVAccountant(
        prvs=laws,
        max_self_compositions=counts,
        eps_error=max(PRV_SHARE * work.truth, PRV_LEAST),
        delta_error=work.delta / 1000,
    )
    return float(accountant.compute_epsilon(work.delta, counts)[2])


def _opacus(mechanism: str, work: Workload) -> float:
    from opacus.accountants import create_accountant
    from opacus.accountants.utils import get_noise_multiplier

    _require(work.only("gaussian"))
    if work.target is not None:
        (release,) = work.releases
        return float(
            get_noise_multiplier(
                target_epsilon=work.target,
                target_delta=work.delta,
                sample_rate=release.rate,
                steps=release.count,
                accountant=mechanism,
            )
        )
    accountant = create_accountant(mechanism)
    accountant.history = [(r.width, r.rate, r.count) for r in work.releases]
    return float(accountant.get_epsilon(delta=work.delta))


def opacus_rdp(work: Workload) -> float:
    """RDPAccountant of Opacus."""
    return _opacus("rdp", work)


def opacus_prv(work: Workload) -> float:
    """PRVAccountant of Opacus (error 0.01 in epsilon)."""
    return _opacus("prv", work)


# Name -> (the module it needs, what is asked).
PEERS: dict[str, tuple[str, Ask]] = {
    "dp-accounting PLD": ("dp_accounting", google_pld),
    "dp-accounting buckets": ("dp_accounting", google_buckets),
    "dp-accounting RDP": ("dp_accounting", google_rdp),
    "prv-accountant": ("prv_accountant", microsoft),
    "Opacus RDP": ("opacus", opacus_rdp),
    "Opacus PRV": ("opacus", opacus_prv),
}


def installed(module: str) -> bool:
    """Whether the module is there; it is imported, so that no call pays for that."""
    if find_spec(module) is None:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        __import__(module)
        if module == "opacus":
            __import__("opacus.accountants")
        if module == "dp_accounting":
            __import__("dp_accounting.pld")
            __import__("dp_accounting.rdp")
    return True
