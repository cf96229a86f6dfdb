"""Ledgers as the event trees of dp-accounting, and back.

There a noise multiplier is the scale of the noise in units of the bound on one record's
contribution, and the relation belongs to the accountant, not to the event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accountants.base import Ledger
from dpmech import Gaussian, Laplace, Mechanism, NoDominatingPair, Noise, Sampling, Sensitivity
from dpmech.discrete import DiscreteLaplace
from dpmech.guarantee import RandomizedResponse

__all__ = ["from_dp_event", "neighboring_relation", "to_dp_event"]

_RELATIONS = {
    "add-remove": "ADD_OR_REMOVE_ONE",
    "replace-one": "REPLACE_ONE",
    "zero-out": "REPLACE_SPECIAL",
}


def dp_accounting_package() -> Any:
    """The dp_accounting package; ValueError naming the extra where it is not installed."""
    try:
        import dp_accounting
    except ImportError as error:
        raise ValueError(
            f"Events need the dp-accounting package ({error}): pip install 'dpmech[peers]'."
        ) from None
    return dp_accounting


def neighboring_relation(relation: str) -> Any:
    """dp-accounting's member for one of our relations."""
    if relation not in _RELATIONS:
        raise ValueError(f"Expected relation={relation!r} to be one of {', '.join(_RELATIONS)}.")
    return dp_accounting_package().NeighboringRelation[_RELATIONS[relation]]


def to_dp_event(release: Mechanism | Ledger) -> Any:
    """The ``DpEvent`` of a mechanism, or of a ledger: its runs, composed.

    **Guarantees.** The event describes the same release under the relation of
    :func:`neighboring_relation`; where dp-accounting has none, NoDominatingPair names the law or
    the sampling instead of anything that comes near.

    Raises ValueError where dp-accounting is not installed.
    """
    kinds = dp_accounting_package().dp_event
    if isinstance(release, Ledger):
        events = [_self_composed(kinds, to_dp_event(m), n) for m, n in release.entries]
        return events[0] if len(events) == 1 else kinds.ComposedDpEvent(events)
    release.pairs()  # what has no proof is not handed on as if it had
    event = _event_of_noise(kinds, release)
    if release.sampling.rate == 1:
        return event
    if release.sampling.kind != "poisson":
        # Its accountants take the multiplier of that event for one of the change between
        # neighbours, which is twice the contribution.
        raise NoDominatingPair(
            f"dp-accounting has no event with a settled meaning for a {release.sampling.kind} "
            f"sample at rate={release.sampling.rate:g}.",
            "Use accountant='pld', or kind='poisson'.",
        )
    return kinds.PoissonSampledDpEvent(release.sampling.rate, event)


def _self_composed(kinds: Any, event: Any, count: int) -> Any:
    return event if count == 1 else kinds.SelfComposedDpEvent(event, count)


def _event_of_noise(kinds: Any, release: Mechanism) -> Any:
    noise, bound = release.noise, release.sensitivity.bound
    if isinstance(noise, Gaussian):
        return kinds.GaussianDpEvent(noise.sigma / bound)
    if isinstance(noise, Laplace):
        return kinds.LaplaceDpEvent(noise.b / bound)
    if isinstance(noise, DiscreteLaplace):
        return kinds.DiscreteLaplaceDpEvent(1 / noise.b, int(bound))
    if isinstance(noise, RandomizedResponse) and release.relation == "replace-one":
        return kinds.RandomizedResponseDpEvent(*_noise_parameter(noise))
    raise NoDominatingPair(
        f"dp-accounting has no event for {noise.name} noise under relation={release.relation!r}.",
        "Use our own accountants, or gaussian or laplace noise.",
    )


def _noise_parameter(noise: RandomizedResponse) -> tuple[float, int]:
    """(p, k): with probability p the answer is uniform among all k."""
    lost = noise.values * float(noise.atoms()[1][0])
    return lost, int(noise.values)


def from_dp_event(event: Any, *, relation: str = "add-remove") -> Ledger:
    """The ledger of a tree of Gaussian, Laplace, discrete Laplace and Poisson-sampled events.

    The sensitivity is 1, and the noise is as wide as its multiplier. Compositions are unrolled in
    order; an event that does nothing is left out.

    **Guarantees.** Any other event raises NoDominatingPair with its name; so does a composition
    inside a sample, whose parts share the records drawn.
    """
    kinds = dp_accounting_package().dp_event
    neighboring_relation(relation)
    name = type(event).__name__
    if isinstance(event, kinds.NoOpDpEvent):
        return Ledger()
    if isinstance(event, kinds.ComposedDpEvent):
        return _joined([(from_dp_event(e, relation=relation), 1) for e in event.events])
    if isinstance(event, kinds.SelfComposedDpEvent):
        return _joined([(from_dp_event(event.event, relation=relation), event.count)])
    if isinstance(event, kinds.PoissonSampledDpEvent):
        return _sampled(event, from_dp_event(event.event, relation=relation))
    if name in _RELEASES:
        return Ledger().add(replace(_RELEASES[name](event), relation=relation))
    raise NoDominatingPair(
        f"No release is known here for the event {name}.",
        f"Use {', '.join(_RELEASES)}, and their compositions and Poisson samples.",
    )


def _scalar(noise: Noise, bound: float = 1.0) -> Mechanism:
    return Mechanism(noise=noise, sensitivity=Sensitivity(bound=bound))


_RELEASES: dict[str, Callable[[Any], Mechanism]] = {
    "GaussianDpEvent": lambda event: _scalar(Gaussian(sigma=event.noise_multiplier)),
    "LaplaceDpEvent": lambda event: _scalar(Laplace(b=event.noise_multiplier)),
    "DiscreteLaplaceDpEvent": lambda event: _scalar(
        DiscreteLaplace(b=1 / event.noise_parameter), float(event.sensitivity)
    ),
}


def _joined(parts: list[tuple[Ledger, int]]) -> Ledger:
    ledger = Ledger()
    for part, times in parts:
        # A composition that is repeated repeats its runs, in an order that does not matter.
        for mechanism, count in part.entries:
            ledger = ledger.add(mechanism, count * times)
    return ledger


def _sampled(event: Any, inner: Ledger) -> Ledger:
    rate = event.sampling_probability
    if inner.runs != 1:
        raise NoDominatingPair(
            f"No pair is proved for {inner.runs} releases of one sample at rate={rate}.",
            "Sample anew for every release: compose sampled events, not sample a composed one.",
        )
    mechanism = inner.entries[0][0]
    return Ledger().add(replace(mechanism, sampling=Sampling(rate=rate * mechanism.sampling.rate)))
