"""A request becomes a folder that holds everything about the run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from accountants import PLD, RDP, Ledger
from accountants.limits import lower_epsilon_vector
from dpmech import (
    LMO_PRESETS,
    Gaussian,
    Laplace,
    NoDominatingPair,
    Noise,
    PrivacyPlan,
    Sensitivity,
    TruncatedLaplace,
)
from dpmech.discrete import DiscreteGaussian
from dpmech.logconcave import Logistic
from fl_integration.accounting import spending_for
from fl_integration.config import FederatedConfig, System
from fl_integration.extrapolate import Extrapolation
from fl_integration.models import load_model
from fl_integration.options import HeadStart, SiloNoise
from fl_integration.plans import default_delta, plans_for
from fl_integration.queries import AdaptiveClip, ScalarQuery
from fl_integration.report import TrainReport
from fl_integration.run_folder import LOCK_FILE, STATE_FOLDER
from fl_integration.systems import space_for
from fl_integration.train import TrainRequest, train

# the functions of the same names hide the modules as attributes of the package
federate_module = import_module("fl_integration.federate")
train_module = import_module("fl_integration.train")


@pytest.fixture
def request_file(tmp_path: Path) -> TrainRequest:
    """A file of 40 clients with two classes."""
    rng = np.random.default_rng(0)
    lines = ["text\tlabel\tclient"]
    for client in range(40):
        for _ in range(4):
            label = int(rng.integers(2))
            lines.append(f"{('hot', 'cold')[label]} word {rng.integers(50)}\t{label}\tc{client}")
    path = tmp_path / "texts.tsv"
    path.write_text("\n".join(lines), encoding="utf-8")
    config = FederatedConfig(rank=2, rounds=4, cohort=10, clip=0.5, eval_every=2)
    return TrainRequest(out=tmp_path / "out", data=str(path), model="tiny", config=config)


def test_a_private_request_leaves_plan_ledger_report_and_adapters(
    request_file: TrainRequest,
) -> None:
    request = replace(request_file, epsilon=3.0)
    report = train(request)
    out = request.out
    plan, ledger = PrivacyPlan.load(out / "plan.json"), Ledger.load(out / "ledger.json")
    assert TrainReport.from_json((out / "report.json").read_text()).epsilon == report.epsilon
    assert ledger == report.ledger
    assert plan.target.delta == default_delta(report.clients)
    assert PLD().compose_ledger(ledger).epsilon(report.delta) == pytest.approx(
        report.epsilon, rel=1e-3
    )
    assert report.epsilon <= plan.epsilon * (1 + 1e-6) <= 3.0 * (1 + 1e-6)
    for rank in (1, 2):
        claim = json.loads((out / "adapters" / f"rank-{rank}" / "privacy.json").read_text())
        assert claim["private"] is True
        assert claim["epsilon"] == report.epsilon


def test_asking_again_does_not_spend_again(request_file: TrainRequest) -> None:
    request = replace(request_file, epsilon=3.0)
    first = train(request)
    again = train(request)
    assert replace(again, seconds=0) == replace(first, seconds=0)


def test_a_run_in_the_folder_of_another_is_refused_and_changes_nothing(
    request_file: TrainRequest,
    monkeypatch: pytest.MonkeyPatch,
    files: Callable[[Path], dict[str, bytes]],
) -> None:
    start = HeadStart(share=0.5, rounds=2, lr=2.0)
    config = replace(request_file.config, system="lora", head_start=start)
    request = replace(request_file, epsilon=3.0, config=config)
    train(request)
    before = files(request.out)
    monkeypatch.setattr(federate_module, "noisy_mean", lambda *_, **__: pytest.fail("drawn"))
    for other in (
        replace(request, epsilon=1.0),
        replace(request, config=replace(config, rounds=3)),  # its head start is the same
        replace(request, config=replace(config, head_start=replace(start, share=0.4))),
        replace(request, config=replace(config, head_start=None)),
    ):
        with pytest.raises(ValueError, match=r"of this run, but \[.*\] differ|no head start in"):
            train(other)
        assert files(request.out) == before


def test_the_plan_is_there_when_the_first_noise_is_drawn(
    request_file: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **how: object) -> None:
        raise KeyboardInterrupt

    request = replace(request_file, epsilon=3.0)
    monkeypatch.setattr(federate_module, "noisy_mean", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(request)
    assert PrivacyPlan.load(request.out / "plan.json").target.epsilon == 3.0


def test_the_report_is_written_when_all_the_rest_is(
    request_file: TrainRequest,
    monkeypatch: pytest.MonkeyPatch,
    files: Callable[[Path], dict[str, bytes]],
) -> None:
    # a kill between two files must not leave a run that looks finished and has no ledger
    found: list[set[str]] = []
    monkeypatch.setattr(TrainReport, "save", lambda _, path: found.append(set(files(path.parent))))
    train(replace(request_file, epsilon=3.0))
    assert found[0] >= {"ledger.json", "plan.json", "report.md", "adapters/rank-1/privacy.json"}


def test_a_folder_in_use_is_refused_before_anything_is_written(
    request_file: TrainRequest,
    rival: Callable[[Path], subprocess.Popen[str]],
    files: Callable[[Path], dict[str, bytes]],
) -> None:
    request = replace(request_file, epsilon=3.0)
    other = rival(request.out)
    with pytest.raises(ValueError, match="out' to be free, but another run is using it"):
        train(request)
    assert files(request.out) == {LOCK_FILE: b""}
    other.kill()
    other.wait()
    assert train(request).ledger.runs == 4


def test_a_folder_is_held_until_its_results_are_written(
    request_file: TrainRequest, monkeypatch: pytest.MonkeyPatch, is_free: Callable[[Path], bool]
) -> None:
    config = replace(request_file.config, system="lora", head_start=HeadStart(rounds=2))
    found: list[tuple[str, bool]] = []
    for name in ("_phase", "_written"):
        step = getattr(train_module, name)

        def watched(*args: object, step: Callable[..., object] = step, **how: object) -> object:
            result = step(*args, **how)
            found.append((step.__name__, is_free(request_file.out)))
            return result

        monkeypatch.setattr(train_module, name, watched)
    train(replace(request_file, config=config))
    assert found == [("_phase", False), ("_phase", False), ("_written", False)]
    assert is_free(request_file.out)


def test_results_without_the_state_that_they_came_from_are_kept(
    request_file: TrainRequest,
    monkeypatch: pytest.MonkeyPatch,
    files: Callable[[Path], dict[str, bytes]],
) -> None:
    request = replace(request_file, epsilon=3.0)
    train(request)
    plan = PrivacyPlan.load(request.out / "plan.json")
    (request.out / STATE_FOLDER).rename(request.out / "away")
    before = files(request.out)
    with pytest.raises(ValueError, match=r"checkpoint' beside plan\.json, but it is missing"):
        train(request)
    with pytest.raises(ValueError, match=r"checkpoint' beside ledger\.json"):
        train(replace(request, plan=plan, epsilon=None))
    assert files(request.out) == before
    (request.out / "ledger.json").unlink()
    train(replace(request, plan=plan, epsilon=None))  # a plan may lie where it is to be spent


def test_a_finished_plan_can_be_given(request_file: TrainRequest, tmp_path: Path) -> None:
    train(replace(request_file, epsilon=3.0))
    plan = PrivacyPlan.load(request_file.out / "plan.json")
    report = train(replace(request_file, plan=plan, out=tmp_path / "second"))
    assert report.ledger.entries[0][0].noise == plan.mechanism.noise


@pytest.mark.parametrize("population", [None, 100_000])  # a forecast shows what the plan states
def test_a_plan_that_states_less_than_it_costs_is_refused(
    request_file: TrainRequest, tmp_path: Path, population: int | None
) -> None:
    train(replace(request_file, epsilon=3.0, population=population))
    plan = PrivacyPlan.load(request_file.out / "plan.json")
    edited = replace(plan, epsilon=0.5, lower_epsilon=None)
    with pytest.raises(ValueError, match=r"to keep epsilon=0\.5, but it costs 2\.9"):
        train(replace(request_file, plan=edited, population=population, out=tmp_path / "second"))


def test_without_a_target_nothing_is_private(request_file: TrainRequest) -> None:
    report = train(replace(request_file, ranks=(1,)))
    assert report.epsilon is None
    assert not (request_file.out / "ledger.json").exists()
    claim = json.loads((request_file.out / "adapters/rank-1/privacy.json").read_text())
    assert claim == {"private": False, "reason": "no noise was added"}


def test_a_forecast_is_calibrated_for_the_population(request_file: TrainRequest) -> None:
    report = train(replace(request_file, epsilon=2.0, population=100_000))
    guess = report.hypothetical
    assert guess.epsilon <= 2.0 < report.epsilon
    assert guess.delta == default_delta(100_000)
    assert guess.cohort == pytest.approx(100_000 * 10 / report.clients)
    claim = json.loads((request_file.out / "adapters/rank-2/privacy.json").read_text())
    assert claim["private"] is False


def test_contradictions_are_refused(request_file: TrainRequest) -> None:
    with pytest.raises(ValueError, match="population_cohort=5"):
        replace(request_file, population_cohort=5)
    with pytest.raises(ValueError, match="population=100"):
        replace(request_file, population=100)
    with pytest.raises(ValueError, match="clip=None"):
        train(replace(request_file, epsilon=1.0, config=replace(request_file.config, clip=None)))
    with pytest.raises(NoDominatingPair, match="truncated-laplace"):
        train(replace(request_file, epsilon=1.0, noise=TruncatedLaplace(b=1.0, bound=5.0)))
    with pytest.raises(NoDominatingPair, match="whole numbers"):
        train(replace(request_file, epsilon=1.0, noise=DiscreteGaussian(sigma=9.0)))
    train(replace(request_file, epsilon=3.0))
    plan = PrivacyPlan.load(request_file.out / "plan.json")
    with pytest.raises(ValueError, match=r"epsilon=1\.0"):
        replace(request_file, epsilon=1.0, plan=plan)
    assert isinstance(plan.mechanism.noise, Gaussian)


@pytest.mark.parametrize(
    "noise", [Laplace(b=1.0), Logistic(scale=1.0), LMO_PRESETS["0.3"]], ids=str
)
def test_independent_noise_is_accounted_as_a_vector_by_its_joint_moments(
    request_file: TrainRequest, noise: Noise
) -> None:
    start = HeadStart(share=0.5, rounds=2, lr=2.0)
    config = replace(request_file.config, system="lora", head_start=start)
    report = train(replace(request_file, epsilon=3.0, noise=noise, config=config))
    plan = PrivacyPlan.load(request_file.out / "plan.json")
    assert (report.accountant, plan.accountant) == ("rdp", "rdp")
    assert report.ledger == Ledger(entries=(*plan.others, (plan.mechanism, 4)))
    assert plan.mechanism.noise.name == noise.name
    again = RDP().compose_ledger(report.ledger).epsilon(report.delta)
    assert again == pytest.approx(report.epsilon, rel=1e-9)
    assert report.epsilon <= 3.0 * (1 + 1e-6)
    # what a change spread over the coordinates shows: more than the law's own scalar proof says
    shown = lower_epsilon_vector(plan.mechanism, plan.steps, report.delta)
    scalar = replace(plan.mechanism, sensitivity=Sensitivity(bound=0.5))
    assert PLD().compose(scalar, plan.steps).epsilon(report.delta) < shown <= report.epsilon


@pytest.mark.parametrize("system", ["lora", "full"])
def test_a_head_start_is_a_phase_of_its_own_in_one_ledger(
    request_file: TrainRequest, system: System
) -> None:
    start = HeadStart(share=0.5, rounds=3, cohort=20, lr=2.0)
    config = replace(request_file.config, system=system, head_start=start)
    request = replace(request_file, epsilon=3.0, config=config, pooled=2)
    report = train(request)
    first = PrivacyPlan.load(request.out / "head-start" / "plan.json")
    plan = PrivacyPlan.load(request.out / "plan.json")
    assert plan.others == first.entries
    assert (first.steps, first.target.epsilon) == (3, 1.5)
    assert first.mechanism.sensitivity.dim == 2 * (64 + 1) < plan.mechanism.sensitivity.dim
    assert report.ledger == Ledger(entries=(*first.entries, (plan.mechanism, 4)))
    assert first.epsilon < report.epsilon <= 3.0 * (1 + 1e-6)
    alone = TrainReport.from_json(train(replace(request, out=request.out / "b")).to_json())
    assert alone.ledger == report.ledger
    assert replace(train(request), seconds=0) == replace(report, seconds=0)  # resumed, not repeated


@pytest.mark.parametrize("system", ["lora", "full"])
def test_a_head_start_hands_its_head_on(request_file: TrainRequest, system: System) -> None:
    start = HeadStart(rounds=30, lr=5.0, clip=100.0)
    still = replace(request_file.config, system=system, clip=None, local_lr=1e-30)
    cold = train(replace(request_file, config=still))
    warm = train(
        replace(request_file, config=replace(still, head_start=start), out=request_file.out / "w")
    )
    assert warm.final_accuracy > max(0.9, cold.final_accuracy)


def test_a_model_without_a_head_gets_no_head_start(request_file: TrainRequest) -> None:
    config = replace(request_file.config, system="lora", head_start=HeadStart(rounds=2))
    request = replace(request_file, task="next-token", config=config)
    for epsilon in (None, 3.0):
        with pytest.raises(ValueError, match="a LanguageModel without one; leave head_start out"):
            train(replace(request, epsilon=epsilon))
    assert not request.out.exists()


def test_seconds_are_those_of_the_head_start_too(
    request_file: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase, took = train_module._phase, iter((2.5, 0.75))
    monkeypatch.setattr(
        train_module, "_phase", lambda *a, **k: replace(phase(*a, **k), seconds=next(took))
    )
    config = replace(request_file.config, system="lora", head_start=HeadStart(rounds=2))
    assert train(replace(request_file, config=config)).seconds == round(3.25, 1)


def test_a_head_start_is_forecast_with_its_run(request_file: TrainRequest) -> None:
    start = HeadStart(share=0.5, rounds=3, cohort=20, lr=2.0)
    config = replace(request_file.config, system="lora", head_start=start)
    request = replace(request_file, epsilon=3.0, delta=1e-6, config=config, population=6000)
    report = train(request)
    clients, times = report.clients, 6000 / report.clients
    first = PrivacyPlan.load(request.out / "head-start" / "plan.json")
    plan = PrivacyPlan.load(request.out / "plan.json")
    assert plan.others == first.entries
    assert first.mechanism.sampling.rate == pytest.approx(20 / clients)  # the simulation's own
    # the ledger holds what these clients paid: noise that is right for many more, in both phases
    sigmas = [p.mechanism.noise.std / times for p in (first, plan)]
    assert report.ledger is not None
    assert [m.noise.std for m, _ in report.ledger.entries] == pytest.approx(sigmas, rel=1e-12)
    assert [count for _, count in report.ledger.entries] == [3, 4]
    assert report.hypothetical is not None
    assert report.hypothetical.epsilon == plan.epsilon <= 3.0 * (1 + 1e-6)
    assert report.epsilon is not None
    assert report.epsilon > 10 * plan.epsilon


def test_a_forecast_without_its_head_start_is_refused(request_file: TrainRequest) -> None:
    config = replace(request_file.config, system="lora", head_start=HeadStart(rounds=2))
    request = replace(request_file, config=config, epsilon=1.0, delta=1e-6, population=6000)
    model, _ = load_model("tiny", labels=2)
    forecast = plans_for(request, space_for(model, config), clients=40).main
    assert isinstance(forecast, Extrapolation)
    dim = int(forecast.plan.mechanism.sensitivity.dim)
    assert spending_for(forecast, config, clients=40, dim=dim) is not None
    with pytest.raises(ValueError, match="1 other releases in its plan for 0 of the simulation"):
        spending_for(replace(forecast, earlier=()), config, clients=40, dim=dim)


def test_a_head_start_needs_a_target(request_file: TrainRequest) -> None:
    config = replace(request_file.config, system="lora", head_start=HeadStart())
    train(replace(request_file, epsilon=3.0))
    plan = PrivacyPlan.load(request_file.out / "plan.json")
    with pytest.raises(ValueError, match="a finished plan: both phases"):
        train(replace(request_file, config=config, plan=plan))
    with pytest.raises(ValueError, match="silos"):
        replace(config, unit="example", silos=SiloNoise())


def test_scalars_of_a_request_share_its_budget(request_file: TrainRequest) -> None:
    config = replace(
        request_file.config,
        adaptive=AdaptiveClip(cohort=5),
        scalars=(ScalarQuery(name="accuracy", cohort=8, every=2),),
    )
    request = replace(
        request_file,
        config=config,
        epsilon=6.0,
        scalar_noise=Laplace(b=1.0),
        scalar_share=0.2,
    )
    report = train(request)
    plan = PrivacyPlan.load(request.out / "plan.json")
    assert [count for _, count in plan.others] == [4, 2]
    assert {type(mechanism.noise) for mechanism, _ in plan.others} == {Laplace}
    for entry in plan.others:
        assert PLD().compose_ledger(Ledger((entry,))).epsilon(report.delta) <= 0.6 * (1 + 1e-3)
    assert report.epsilon <= 6.0 * (1 + 1e-6)
    assert report.ledger.runs == 4 + 4 + 2


def test_a_delta_of_zero_is_refused_and_not_replaced(request_file: TrainRequest) -> None:
    with pytest.raises(ValueError, match=r"delta=0\.0 in \(0, 1\)"):
        train(replace(request_file, epsilon=3.0, delta=0.0))
