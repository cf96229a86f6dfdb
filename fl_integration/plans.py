"""What a request may cost, as plans: the main one, what is released beside it, and before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from accountants.calibrate import calibrate_scale
from dpmech import Gaussian, Noise, PrivacyPlan, Target
from dpmech.plan import Entries
from fl_integration.accounting import mechanism_for, releases_a_round
from fl_integration.config import FederatedConfig
from fl_integration.extrapolate import Extrapolation, extrapolate
from fl_integration.options import HeadStart
from fl_integration.proofs import accountant_for, check_bounded
from fl_integration.sampler import head_start_seed
from fl_integration.scalars import entries_of, scalar_mechanism
from fl_integration.spaces import FlatSpace
from fl_integration.systems import released_dim

if TYPE_CHECKING:
    from fl_integration.train import TrainRequest


@dataclass(frozen=True, kw_only=True)
class Plans:
    """The plan of a run, and of the head start before it; ``None`` without privacy."""

    main: PrivacyPlan | Extrapolation | None = None
    head_start: PrivacyPlan | Extrapolation | None = None


def default_delta(users: int) -> float:
    """δ = 1/(10·users), one tenth of what would let a release of one whole record pass.

    >>> default_delta(1000)
    0.0001
    """
    if users < 1:
        raise ValueError(f"Expected users={users} >= 1.")
    return 1.0 / (10 * users)


def plan_for(
    config: FederatedConfig,
    noise: Noise,
    target: Target,
    *,
    clients: int,
    dim: int,
    others: Entries = (),
) -> PrivacyPlan:
    """Calibrate a noise family for a configuration: its clip, its rate and its rounds.

    By PLD where the law has a dominating pair on such a vector; independent coordinates of another
    law are accounted by their joint Rényi moments (mathematics.md §6.3).

    Arguments:
        config: clip, cohort, rounds. noise: the family. target: (ε, δ). clients: N.
        dim: the most coordinates that a round releases. others: what is released beside.

    Raises:
        ValueError: without a clip. NoDominatingPair, Unattainable: from the calibration.
    """
    release = mechanism_for(config, noise, clients=clients, dim=dim)
    check_bounded(release)
    return calibrate_scale(
        release,
        target,
        steps=config.rounds * releases_a_round(config),
        accountant=accountant_for(release, *(other for other, _ in others)),
        others=others,
    )


def probe_of(config: FederatedConfig, start: HeadStart, *, clients: int) -> FederatedConfig:
    """The configuration of a head start: the head alone, at rates and with noise of its own."""
    return replace(
        config,
        system="probe",
        rank_probabilities=None,
        rounds=start.rounds,
        cohort=start.cohort or float(clients),
        clip=start.clip,
        local_lr=1.0,  # so that the clip is one of gradients
        head_multiplier=1.0,
        server_rule="sgd",
        server_lr=start.lr,
        momentum=start.momentum,
        average=start.average,
        broadcast=None,
        adaptive=None,
        scalars=(),
        head_start=None,
        noise_seed=head_start_seed(config.noise_seed),
    )


def plans_for(request: TrainRequest, space: FlatSpace, *, clients: int) -> Plans:
    """The plans that a request asks for: given or calibrated, for these clients or a forecast.

    **Guarantees**: every plan is proved for all that it comes with: the main one for the head start
    and the scalars, too.

    Raises:
        ValueError: a head start together with a finished plan.
    """
    config, dim = request.config, released_dim(space, request.config.system)
    if request.epsilon is None and request.plan is None:
        return Plans()
    if config.head_start is not None and request.plan is not None:
        raise ValueError(
            f"Expected an epsilon with {config.head_start}, got a finished plan: both phases are"
            " calibrated together; write --set head_start=none."
        )
    if request.epsilon is None:  # then there is a plan
        return Plans(
            main=request.plan and _forecast(request, request.plan, config, clients=clients)
        )
    users = _users(request, clients)
    delta = default_delta(users) if request.delta is None else request.delta
    target = Target(epsilon=request.epsilon, delta=delta)
    first = start = None
    if config.head_start is not None:
        probe = probe_of(config, config.head_start, clients=clients)
        share = replace(target, epsilon=target.epsilon * config.head_start.share)
        head = released_dim(space, "probe")
        at = _at(request, probe, clients)
        first = plan_for(at, Gaussian(sigma=1.0), share, clients=users, dim=head)
        start = _forecast(request, first, probe, clients=clients)
    beside = _scalars(request, target, clients=clients)
    at = _at(request, config, clients)
    if request.population_cohort:  # instead of the simulation's rate
        at = replace(at, cohort=request.population_cohort)
    main = plan_for(
        at,
        request.noise,
        target,
        clients=users,
        dim=dim,
        others=(*(() if first is None else first.entries), *beside),
    )
    earlier = start.simulated if isinstance(start, Extrapolation) else ()
    forecast = _forecast(request, main, config, clients=clients, earlier=earlier)
    return Plans(main=forecast, head_start=start)


def _users(request: TrainRequest, clients: int) -> int:
    """How many units the guarantee is about."""
    if request.config.silos is not None:
        return sum(request.config.silos.sizes)
    return request.population or clients


def _at(request: TrainRequest, config: FederatedConfig, clients: int) -> FederatedConfig:
    """The configuration of a phase at the size that the plan is for, drawn at its own rate."""
    users = request.population
    return config if users is None else replace(config, cohort=config.rate(clients) * users)


def _forecast(
    request: TrainRequest,
    plan: PrivacyPlan,
    config: FederatedConfig,
    *,
    clients: int,
    earlier: Entries = (),
) -> PrivacyPlan | Extrapolation:
    """The plan itself, or what it forecasts for a population."""
    if request.population is None:
        return plan
    return extrapolate(
        plan,
        population=request.population,
        simulated_clients=clients,
        simulated_cohort=config.cohort,
        earlier=earlier,
    )


def _scalars(request: TrainRequest, target: Target, *, clients: int) -> Entries:
    """What the run's queries release, each with noise for its part of the scalars' share of ε."""
    config = request.config
    noises: list[Noise] = []
    for query in config.queries:
        part = target.epsilon * request.scalar_share / len(config.queries)
        found = calibrate_scale(
            scalar_mechanism(query, request.scalar_noise, clients=clients),
            replace(target, epsilon=part),
            steps=query.count(config.rounds),
        )
        noises.append(found.mechanism.noise)
    return entries_of(config.queries, noises, clients=clients, rounds=config.rounds)
