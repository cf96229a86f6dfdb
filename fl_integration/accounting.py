"""The bridge from a configuration to the mechanism it runs, and the refusal of any mismatch.

The sensitivity is derived from the clip here, and nowhere typed in beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from accountants import Ledger, accountant_named
from dpmech import (
    Mechanism,
    Noise,
    PrivacyPlan,
    Sampling,
    Sensitivity,
    Unattainable,
)
from dpmech.plan import Entries
from dpmech.spherical import Spherical
from fl_integration.config import FederatedConfig
from fl_integration.extrapolate import Extrapolation
from fl_integration.proofs import check_bounded, check_has_density

RELATION = "add-remove"  # one user's whole contribution, present or absent
SLACK = 1e-6  # relative; a recomputed ε may differ from the written one by rounding


def mechanism_for(config: FederatedConfig, noise: Noise, *, clients: int, dim: int) -> Mechanism:
    """The mechanism that one round of a configuration runs.

    **Guarantees**

    * The sensitivity is the clip in l2 over all ``dim`` released coordinates, and the sampling
      rate is cohort/clients, or that of an example in a silo's step: what is accounted is what
      runs.

    Arguments:
        config: clip, cohort, silos. noise: the law of the noise on the *sum*, in its units.
        clients: N. dim: released coordinates.

    Raises:
        ValueError: without a clip, a cohort above ``clients``, a guarantee in the place of a noise.
        NoDominatingPair: for noise on the whole numbers.
    """
    check_has_density(noise)
    if config.clip is None:
        raise ValueError("Expected clip=None to be a number: noise without a clip protects no one.")
    return Mechanism(
        noise=noise,
        sensitivity=Sensitivity(norm="l2", bound=config.clip, dim=dim),
        sampling=Sampling(rate=sampling_rate(config, clients)),
        relation=RELATION,
    )


def scalar_release(noise: Noise, *, bound: float, rate: float) -> Mechanism:
    """One release of a sum of real numbers, each within ``bound``, over a Poisson sample.

    Arguments:
        noise: the law of the noise on the *sum*, in its units. rate: q.

    Raises:
        NoDominatingPair: from a law without a pair, and from one on the whole numbers.
        ValueError: for a guarantee in the place of a noise.
    """
    check_has_density(noise)
    mechanism = Mechanism(
        noise=noise,
        sensitivity=Sensitivity(norm="l2", bound=bound, dim=1),
        sampling=Sampling(rate=rate),
        relation=RELATION,
    )
    _ = mechanism.pairs()  # raises NoDominatingPair before anybody is asked
    return mechanism


def sampling_rate(config: FederatedConfig, clients: int) -> float:
    """The probability that a unit is in one release: a client in a round, an example in a step."""
    return config.rate(clients) if config.silos is None else config.silos.rate


def releases_a_round(config: FederatedConfig) -> int:
    """How often a unit is released in a round; a silo's steps are each a release."""
    return 1 if config.silos is None else config.silos.steps


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What a run really spends: the law it adds, who it samples from, the plan behind it.

    plan: the checked plan. noise: the law really added. clients: the population really sampled.
    extrapolation: set when the noise is a forecast's and not the plan's own.
    """

    config: FederatedConfig
    plan: PrivacyPlan
    noise: Noise
    clients: int
    extrapolation: Extrapolation | None = None

    @property
    def before(self) -> Ledger:
        """What the plan counts beside this run's own releases: spent earlier, on the same data."""
        if self.extrapolation is not None:
            return Ledger(self.extrapolation.earlier)
        return Ledger(self.plan.others[: self._first_asked])

    @property
    def asked(self) -> Entries:
        """What the plan holds for the run's own queries."""
        return self.plan.others[self._first_asked :]

    @property
    def _first_asked(self) -> int:
        """Where in the plan's other releases those of the run's queries begin: they come last."""
        return len(self.plan.others) - len(self.config.queries)

    @property
    def beside(self) -> tuple[Mechanism, ...]:
        """The mechanism of each of the run's queries."""
        return tuple(mechanism for mechanism, _ in self.asked)

    def of_round(self, dim: int, round: int) -> Ledger:
        """What a round that releases ``dim`` coordinates, and the queries due, spends."""
        if isinstance(self.noise, Spherical):
            dim = int(self.noise.dim)  # a slice is what remains of the whole vector's release
        mechanism = mechanism_for(self.config, self.noise, clients=self.clients, dim=dim)
        spent = Ledger().add(mechanism, releases_a_round(self.config))
        for query, beside in zip(self.config.queries, self.beside, strict=True):
            if query.due(round):
                spent = spent.add(beside)
        return spent

    def epsilon(self, ledger: Ledger) -> float:
        """The ε that a ledger costs at the plan's δ (an upper bound; inf beyond reach)."""
        if self.extrapolation is not None:
            return _forecast_epsilon(ledger, self.plan.target.delta)
        return ledger_epsilon(ledger, accountant=self.plan.accountant, delta=self.plan.target.delta)


def spending_for(
    privacy: PrivacyPlan | Extrapolation | None,
    config: FederatedConfig,
    *,
    clients: int,
    dim: int,
) -> Spending | None:
    """Check a plan against what is about to run, before anything does.

    **Guarantees**

    * A plan for another norm, clip, dimension, rate, number of rounds or neighbouring relation
      is refused, and so is a law of which nothing is proved for such a vector, and a plan whose ε
      its noise does not keep.

    Arguments:
        privacy: a plan, an extrapolation, or ``None`` without privacy. config: of the run.
        clients: N. dim: dim(R), the largest number of coordinates a round releases.

    Returns:
        what the run will spend, or ``None`` without privacy.

    Raises:
        ValueError: on a mismatch, with both values. NoDominatingPair: from the law.
    """
    if privacy is None:
        return None
    if isinstance(privacy, Extrapolation):
        if config.silos is not None:
            raise ValueError(
                f"Expected no forecast with {config.silos}: its noise does not shrink with the"
                " number of silos."
            )
        if config.queries or len(privacy.plan.others) != len(privacy.earlier):
            raise ValueError(
                f"Expected a forecast of vectors alone, got {len(config.queries)} queries and"
                f" {len(privacy.plan.others)} other releases in its plan for"
                f" {len(privacy.earlier)} of the simulation: it rescales noise on vectors only."
            )
        privacy.check(clients=clients, cohort=config.cohort)
        rate = privacy.plan.mechanism.sampling.rate
        check_plan(privacy.plan, config, rate=rate, dim=dim)
        return Spending(
            config=config,
            plan=privacy.plan,
            noise=privacy.noise,
            clients=clients,
            extrapolation=privacy,
        )
    check_plan(privacy, config, rate=sampling_rate(config, clients), dim=dim)
    return Spending(config=config, plan=privacy, noise=privacy.mechanism.noise, clients=clients)


def check_plan(plan: PrivacyPlan, config: FederatedConfig, *, rate: float, dim: int) -> None:
    """Refuse a plan that was made for something else than what will run.

    Raises:
        ValueError: naming the first thing that differs, the plan's value and the run's.
        NoDominatingPair: when nothing is proved of the plan's law for this norm and dimension.
    """
    sensitivity = plan.mechanism.sensitivity
    check_same("norm", sensitivity.norm, "l2")
    if config.clip is None or not math.isclose(sensitivity.bound, config.clip, rel_tol=1e-12):
        raise ValueError(_mismatch("sensitivity bound", sensitivity.bound, f"clip={config.clip}"))
    check_same("dim", sensitivity.dim, dim)
    if not math.isclose(plan.mechanism.sampling.rate, rate, rel_tol=1e-12):
        raise ValueError(_mismatch("sampling rate", plan.mechanism.sampling.rate, rate))
    check_same("steps", plan.steps, config.rounds * releases_a_round(config))
    check_same("relation", plan.mechanism.relation, RELATION)
    check_has_density(plan.mechanism.noise)
    check_bounded(plan.mechanism)
    _keeps_its_word(plan)


def ledger_epsilon(ledger: Ledger, *, accountant: str, delta: float) -> float:
    """The ε that a ledger costs at δ: an upper bound, and inf where the accountant cannot reach.

    Releases that differ in nothing but the dimension are accounted at the largest: a slice is what
    remains of a full-size release of the zero-padded query, so the larger one dominates, and a run
    with random ranks composes one mechanism instead of R.

    Raises:
        ValueError: for an unknown accountant. NoDominatingPair: from a mechanism in the ledger.
    """
    return _epsilon(_widened(ledger), accountant, delta)


@lru_cache(maxsize=64)  # checking a plan and reporting a run ask for the same number
def _epsilon(ledger: Ledger, accountant: str, delta: float) -> float:
    """ε of a ledger; inf is always a valid upper bound."""
    composed = accountant_named(accountant).compose_ledger(ledger)
    try:
        epsilon = composed.epsilon(delta)
    except (Unattainable, ArithmeticError, MemoryError):
        return math.inf
    return math.inf if math.isnan(epsilon) else float(epsilon)


def _widened(ledger: Ledger) -> Ledger:
    """The same releases, each at the largest dimension of those like it, equal ones gathered."""
    top: dict[Mechanism, int] = {}
    for mechanism, _ in ledger.entries:
        like = _at_dim(mechanism, 1)
        top[like] = max(top.get(like, 1), mechanism.sensitivity.dim)
    wide = Ledger()
    for mechanism, count in ledger.entries:
        wide = wide.add(_at_dim(mechanism, top[_at_dim(mechanism, 1)]), count)
    return wide.collected()


def _at_dim(mechanism: Mechanism, dim: int) -> Mechanism:
    """The same mechanism for another dimension."""
    return replace(mechanism, sensitivity=replace(mechanism.sensitivity, dim=dim))


def _forecast_epsilon(ledger: Ledger, delta: float) -> float:
    """A quick upper bound for a simulated run, whose noise may be a thousandth of the clip.

    It claims no amplification by sampling (which at such noise does not help) and uses Rényi
    accounting, whose cost does not grow with the loss; inf where even that does not reach.
    """
    bare = Ledger()
    for mechanism, count in _widened(ledger).entries:
        bare = bare.add(replace(mechanism, sampling=Sampling(rate=1.0)), count)
    try:
        return _epsilon(bare, "rdp", delta)
    except ValueError:
        return math.inf


def _keeps_its_word(plan: PrivacyPlan) -> None:
    """Refuse an edited plan: its ε must follow from its own mechanism."""
    ledger = Ledger(plan.entries)
    found = ledger_epsilon(ledger, accountant=plan.accountant, delta=plan.target.delta)
    if not found <= plan.epsilon * (1 + SLACK):
        raise ValueError(
            f"Expected the plan's noise {plan.mechanism.noise} to keep epsilon={plan.epsilon}, but"
            f" it costs {found}; calibrate a new plan."
        )


def check_same(name: str, planned: object, needed: object) -> None:
    """ValueError where a plan's value is not the one that the run needs."""
    if planned != needed:
        raise ValueError(_mismatch(name, planned, needed))


def _mismatch(name: str, planned: object, needed: object) -> str:
    return (
        f"Expected the plan's {name} to be {needed}, got {planned}: the plan was made for another"
        " run; calibrate a plan for this one."
    )
