"""The loop, attacked: what its own rounds lose is below what the ledger says, until it is broken.

Every bug is planted here, by a patch of the loop; the regimes (few clients, one round, a large
delta) are those in which some thousand runs can show it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor

from accountants import PLD, Ledger
from accountants.empirical import EmpiricalBound, distinguish
from dpmech import Gaussian, Laplace, Mechanism, PrivacyPlan, Sampling, Sensitivity, Target
from dpmech.noise import Floats
from fl_integration.accounting import ledger_epsilon
from fl_integration.audit import audit_training, audit_training_once, canary_sum
from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum, clip_flat
from fl_integration.cohort import Cohort, Executor, Round, loop_sum, merged_sum
from fl_integration.config import FederatedConfig
from fl_integration.data import FederatedData
from fl_integration.models import load_model
from fl_integration.run import Run
from fl_integration.server import noisy_mean
from fl_integration.spaces import FlatSpace
from fl_integration.systems import released_dim, space_for
from fl_integration.vmapped import vmap_sum
from fl_integration.zeroth_order import ZerothOrderConfig, ZerothOrderRun, direction

federate_module = import_module("fl_integration.federate")
zeroth_order_module = import_module("fl_integration.zeroth_order")

Released = Callable[..., tuple[Tensor, tuple[float, ...]]]


def nothing(cohort: Cohort, round: Round, total: ClippedSum) -> None:
    """Nobody else sends anything: the auditor knows the others, and could subtract them."""


def settings(**changes: object) -> FederatedConfig:
    """One round with everybody in it, C = 1, steps so large that every delta is clipped."""
    plain = FederatedConfig(
        system="lora", rank=2, rounds=1, cohort=3, clip=1.0, local_lr=1e7, momentum=0.0
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def planned(
    config: FederatedConfig, *, dim: int, clients: int, sigma: float, delta: float
) -> PrivacyPlan:
    """A plan with the epsilon that follows from its noise."""
    mechanism = Mechanism(
        noise=Gaussian(sigma=sigma),
        sensitivity=Sensitivity(norm="l2", bound=1.0, dim=dim),
        sampling=Sampling(rate=config.cohort / clients),
    )
    ledger = Ledger().add(mechanism, config.rounds)
    epsilon = ledger_epsilon(ledger, accountant="pld", delta=delta)
    return PrivacyPlan(
        target=Target(epsilon=epsilon, delta=delta),
        mechanism=mechanism,
        steps=config.rounds,
        accountant="pld",
        epsilon=epsilon,
    )


def prepared(
    data: FederatedData,
    config: FederatedConfig,
    executor: Executor,
    *,
    clients: int = 3,
    sigma: float = 1.0,
    delta: float = 0.05,
) -> Run:
    space = space_for(load_model("tiny", labels=3, seed=0)[0], config)
    start = torch.randn(space.dim(config.rank), generator=torch.Generator().manual_seed(1))
    space.assign(start, config.rank)  # from zero, only the head has a gradient
    some = replace(data, clients=data.clients[:clients])
    dim = released_dim(space, config.system)
    plan = planned(config, dim=dim, clients=clients, sigma=sigma, delta=delta)
    return Run.prepare(space, Tokens(some, load_model("tiny", labels=3)[1]), config, plan, executor)


# In every mode the bound is below the ledger's epsilon, and says something

MODES: dict[str, Callable[[FederatedData], Run]] = {
    "loop": lambda data: prepared(data, settings(), loop_sum),
    "merged": lambda data: prepared(data, settings(), merged_sum),
    "vmap": lambda data: prepared(data, settings(), vmap_sum),
    "two ranks": lambda data: prepared(
        data, settings(system="dylora", rounds=2), canary_sum(nothing, [0]), sigma=1.5
    ),
    "momentum": lambda data: prepared(
        data, settings(system="rolora", rounds=2, momentum=0.9), canary_sum(nothing, [0]), sigma=1.5
    ),
    "adam": lambda data: prepared(
        data, settings(server_rule="adam", momentum=0.9), canary_sum(nothing, [0])
    ),
    "sampled": lambda data: prepared(
        data, settings(system="probe", cohort=2.4), canary_sum(nothing, [0])
    ),
    "examples": lambda data: prepared(
        data, settings(system="probe", unit="example", max_texts=1), merged_sum
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_loop_loses_no_more_than_its_ledger_says(
    federated_data: FederatedData, mode: str
) -> None:
    run = MODES[mode](federated_data)
    found = audit_training(run, client=0, runs=400 if run.config.rounds == 1 else 300, seed=1)
    assert 0.1 * found.epsilon < found.bound.epsilon <= found.epsilon
    assert not found.refuted


def canaries_of(data: FederatedData, sigma: float) -> tuple[Run, list[int]]:
    """180 clients, every one a canary with coordinates of its own."""
    many, clients = replace(data, clients=data.clients * 3), list(range(180))
    config = settings(cohort=180, rounds=1)
    executor = canary_sum(nothing, clients)
    return prepared(many, config, executor, clients=180, sigma=sigma, delta=1e-5), clients


def test_one_training_with_many_canaries_says_something_too(federated_data: FederatedData) -> None:
    run, clients = canaries_of(federated_data, 0.5)
    found = audit_training_once(run, clients=clients, guesses=60, seed=1)
    assert 1.0 < found.bound.epsilon < found.epsilon


def test_one_training_refutes_noise_that_is_far_too_small(
    federated_data: FederatedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, clients = canaries_of(federated_data, 2.0)
    monkeypatch.setattr(federate_module, "noisy_mean", noise_times(1 / 8))
    assert audit_training_once(run, clients=clients, guesses=120, seed=1).refuted


# Planted bugs


def noise_times(factor: float) -> Released:
    return lambda total, *, noise, rng, denominator: noisy_mean(
        total, noise=noise.scaled(factor), rng=rng, denominator=denominator
    )


def per_tensor(space: FlatSpace) -> Callable[[ClippedSum, Tensor], None]:
    sizes = [shape.numel() for shape in space.shapes(space.rank)]

    def add_rows(total: ClippedSum, rows: Tensor) -> None:
        for row in rows:
            parts = [clip_flat(part, total.bound) for part in row.split(sizes)]
            total.absorb(torch.cat(parts))

    return add_rows


def realised_mean(released: Released) -> Released:
    def wrong(run: Run, round: Round, *rest: object) -> tuple[Tensor, tuple[float, ...]]:
        mean, norms = released(run, round, *rest)
        return mean * run.config.cohort / max(1, len(round.clients)), norms

    return wrong


def skipped_when_empty(released: Released) -> Released:
    def wrong(run: Run, round: Round, *rest: object) -> tuple[Tensor, tuple[float, ...]]:
        mean, norms = released(run, round, *rest)
        return (mean if len(round.clients) else torch.zeros_like(mean)), norms

    return wrong


def ranks_of_clients(released: Released) -> Released:
    """Every client fills a slice of its own rank; a coordinate is averaged over who fills it."""
    del released

    def wrong(
        run: Run, round: Round, clip: float, intend: Callable[[], None]
    ) -> tuple[Tensor, tuple[float, ...]]:
        space, rng = run.cohort.space, run.cohort.randomness.noise(round.index)
        total, counts = torch.zeros(len(round.start)).double(), torch.zeros(len(round.start))
        for client in round.clients:
            part = space.index(int(rng.integers(1, space.rank + 1)))
            one = ClippedSum(len(total), clip)
            run.executor(run.cohort, replace(round, clients=np.asarray([client])), one)
            total[part] += one.value[part]
            counts[part] += 1
        intend()
        assert run.spending is not None
        noise = run.spending.noise.sample((len(total),), rng)
        return (total + torch.from_numpy(noise)) * (counts > 0) / counts.clamp(min=1), ()

    return wrong


def with_replacement(clients: int, *, rate: float, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.integers(clients, size=round(rate * clients)))


Plant = Callable[[Run, pytest.MonkeyPatch], None]


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A mode, the bug that is planted in it, and the runs that show it."""

    run: Callable[[FederatedData], Run]
    plant: Plant
    runs: int


def patched(name: str, bug: Callable[[Released], Released]) -> Plant:
    """A function of the loop that is replaced by a wrong one."""
    return lambda run, patch: patch.setattr(
        federate_module, name, bug(getattr(federate_module, name))
    )


BROKEN = {
    "every tensor clipped by itself": Broken(
        run=MODES["loop"],
        plant=lambda run, patch: patch.setattr(
            ClippedSum, "add_rows", per_tensor(run.cohort.space)
        ),
        runs=400,
    ),
    "a third of the noise": Broken(
        run=MODES["vmap"], plant=patched("noisy_mean", lambda _: noise_times(1 / 3)), runs=400
    ),
    "the mean of the realised cohort": Broken(
        run=MODES["examples"], plant=patched("released", realised_mean), runs=400
    ),
    "ranks drawn by clients": Broken(
        run=lambda data: prepared(
            data,
            settings(system="dylora", rank_probabilities=(0.0, 1.0)),
            canary_sum(nothing, [0]),
            sigma=4.0,
        ),
        plant=patched("released", ranks_of_clients),
        runs=400,
    ),
    "an empty round skipped": Broken(
        run=lambda data: prepared(
            data,
            settings(system="probe", cohort=1.6),
            canary_sum(nothing, [0]),
            clients=2,
            sigma=4.0,
            delta=0.01,
        ),
        plant=patched("released", skipped_when_empty),
        runs=700,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_loop_is_refuted(
    federated_data: FederatedData, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    broken = BROKEN[name]
    run = broken.run(federated_data)
    broken.plant(run, monkeypatch)
    assert audit_training(run, client=0, runs=broken.runs, seed=1).refuted


# Zeroth order: a step releases one number


def zeroth_order(*, canary: bool) -> ZerothOrderRun:
    """Two records, of which the first pulls as hard as it can, or not at all."""

    def losses(theta: Tensor, rows: np.ndarray) -> Tensor:
        return 1e6 * canary * theta[0] * torch.from_numpy(rows == 0)

    config = ZerothOrderConfig(rate=1.0, steps=1, clip=1.0, lr=0.1, noise_seed=0)
    return ZerothOrderRun.checked(losses, torch.zeros(3), 2, config, (Laplace(b=0.5), 1e-6))


def attacked(runs: int) -> EmpiricalBound:
    sign = float(torch.sign(direction(zeroth_order(canary=False).config, 0, dim=3)[0]))

    def drawn(canary: bool) -> Callable[[np.random.Generator], float]:
        run = zeroth_order(canary=canary)

        def one(rng: np.random.Generator) -> float:
            config = replace(run.config, noise_seed=int(rng.integers(2**62)))
            return sign * replace(run, config=config).released(run.start, 0, 1)[1][0]

        return one

    return distinguish(drawn(False), drawn(True), runs=runs, delta=1e-6, seed=1)


def test_a_zeroth_order_step_loses_no_more_than_its_ledger_says() -> None:
    claim = PLD().compose_ledger(zeroth_order(canary=True).ledger()).epsilon(1e-6)
    assert 1.0 < attacked(2000).epsilon <= claim == pytest.approx(2.0, rel=1e-3)


def two_thirds(law: Laplace, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    return rng.laplace(scale=law.b * 2 / 3, size=shape)


def thrice(right: Callable[..., Floats]) -> Callable[..., Floats]:
    return lambda *args, **options: 3 * right(*args, **options)


BUGS: dict[str, tuple[object, str, object, int]] = {
    "with replacement": (zeroth_order_module, "poisson_cohort", with_replacement, 5000),
    "two thirds of the noise": (Laplace, "sample", two_thirds, 1500),
    "three times the clip": (
        zeroth_order_module,
        "clipped_differences",
        thrice(zeroth_order_module.clipped_differences),
        500,
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_broken_zeroth_order_step_is_refuted(monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    owner, name, wrong, runs = BUGS[bug]
    monkeypatch.setattr(owner, name, wrong)
    assert attacked(runs).refutes(2.0)


# What cannot be audited


def test_only_a_run_with_a_claim_is_audited(federated_data: FederatedData) -> None:
    run = MODES["loop"](federated_data)
    with pytest.raises(ValueError, match="plan"):
        audit_training(replace(run, spending=None), client=0, runs=50, seed=0)
    with pytest.raises(ValueError, match=r"0\.\.2, got \[3\]"):
        audit_training(run, client=3, runs=50, seed=0)
    with pytest.raises(ValueError, match="runs=39"):
        audit_training(run, client=0, runs=39, seed=0)
    with pytest.raises(ValueError, match="different canaries"):
        audit_training_once(run, clients=[1, 1], guesses=2, seed=0)


def test_a_canary_needs_a_coordinate(federated_data: FederatedData) -> None:
    many = replace(federated_data, clients=federated_data.clients * 2)
    config, clients = settings(system="probe", cohort=120), list(range(120))
    run = prepared(many, config, canary_sum(nothing, clients), clients=120)
    with pytest.raises(ValueError, match="at most 99 canaries"):
        audit_training_once(run, clients=clients, guesses=20, seed=0)
