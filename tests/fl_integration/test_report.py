"""A report says what was spent; a forecast is never a number and never exported as private."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dpmech import Gaussian, PrivacyPlan
from fl_integration.accounting import ledger_epsilon
from fl_integration.adapters import AdapterSpace
from fl_integration.client import Tokens
from fl_integration.config import FederatedConfig
from fl_integration.extrapolate import HypotheticalEpsilon, extrapolate, rounded_up
from fl_integration.federate import federate
from fl_integration.model_privacy import ModelPrivacy
from fl_integration.report import SELECTION, WITHHELD, TrainReport
from fl_integration.report_page import report_page

SpaceMaker = Callable[..., AdapterSpace]
PlanMaker = Callable[..., PrivacyPlan]


@pytest.fixture
def forecast(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, make_plan: PlanMaker
) -> tuple[AdapterSpace, TrainReport, PrivacyPlan]:
    """A run of 15 among 60 clients that adds the noise of 1 500 among 6 000."""
    space, config = make_space(), replace(config, noise_seed=None)
    plan = make_plan(replace(config, cohort=1500), dim=space.dim(4), clients=6000)
    privacy = extrapolate(plan, population=6000, simulated_clients=60, simulated_cohort=15)
    return space, federate(space, tokens, config, privacy), plan


def test_a_forecast_keeps_hypothetical_and_actual_apart(
    forecast: tuple[AdapterSpace, TrainReport, PrivacyPlan], config: FederatedConfig
) -> None:
    _, report, plan = forecast
    guess = report.hypothetical
    assert (guess.epsilon, guess.delta) == (plan.epsilon, plan.target.delta)
    assert (guess.population, guess.cohort, guess.rounds) == (6000, 1500, config.rounds)
    assert guess.actual_epsilon == report.epsilon > 100 * guess.epsilon
    for mechanism, _ in report.ledger.entries:  # the noise really added, the rate really used
        assert mechanism.noise == Gaussian(sigma=config.clip / 100)
        assert mechanism.sampling.rate == config.cohort / 60


def test_the_actual_epsilon_of_a_forecast_is_an_upper_bound(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, make_plan: PlanMaker
) -> None:
    space = make_space()
    plan = make_plan(replace(config, cohort=30), dim=space.dim(4), clients=120)
    privacy = extrapolate(plan, population=120, simulated_clients=60, simulated_cohort=15)
    report = federate(space, tokens, config, privacy)
    exact = ledger_epsilon(report.ledger, accountant="pld", delta=report.delta)
    assert exact * (1 - 1e-3) <= report.epsilon < math.inf


def test_a_forecast_is_not_a_number(
    forecast: tuple[AdapterSpace, TrainReport, PrivacyPlan],
) -> None:
    guess = forecast[1].hypothetical
    with pytest.raises(TypeError):
        float(guess)  # type: ignore[arg-type]
    assert "hypothetical" in str(guess)
    assert str(guess).endswith(f" {rounded_up(guess.actual_epsilon)}")
    assert "6000" in str(guess)


def test_a_forecast_is_refused_as_private_and_exported_as_what_it_is(
    forecast: tuple[AdapterSpace, TrainReport, PrivacyPlan], tmp_path: Path
) -> None:
    space, report, _ = forecast
    with pytest.raises(ValueError, match=r"forecast.*6000"):
        report.export_private(space, tmp_path / "no", 2)
    assert not (tmp_path / "no").exists()
    report.export(space, tmp_path / "yes", 2)
    claim = json.loads((tmp_path / "yes" / "privacy.json").read_text())
    assert claim["private"] is False
    assert "forecast" in claim["reason"]


def test_seeded_noise_and_no_noise_are_refused_as_private(
    make_space: SpaceMaker,
    tokens: Tokens,
    config: FederatedConfig,
    make_plan: PlanMaker,
    tmp_path: Path,
) -> None:
    space = make_space()
    plan = make_plan(config, dim=space.dim(4))
    seeded = federate(space, tokens, config, plan)
    with pytest.raises(ValueError, match=r"noise_seed=7.*for experiments only"):
        seeded.export_private(space, tmp_path, 4)
    assert "reproducible noise: for experiments only" in seeded.to_json()
    free = federate(make_space(), tokens, config)
    with pytest.raises(ValueError, match="no noise"):
        free.export_private(space, tmp_path, 4)
    secret = federate(make_space(), tokens, replace(config, noise_seed=None), plan)
    secret.export_private(space, tmp_path, 4)
    claim = json.loads((tmp_path / "privacy.json").read_text())
    assert claim["private"] is True
    assert claim["epsilon"] == secret.epsilon
    assert claim["unit"] == "user"
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_reports_survive_their_json(
    forecast: tuple[AdapterSpace, TrainReport, PrivacyPlan],
    make_space: SpaceMaker,
    tokens: Tokens,
    config: FederatedConfig,
) -> None:
    endless = replace(
        forecast[1],
        epsilon=math.inf,
        hypothetical=replace(forecast[1].hypothetical, actual_epsilon=math.inf),
    )
    for report in (forecast[1], endless, federate(make_space(), tokens, config)):
        text = report.to_json()
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        back = TrainReport.from_json(text)
        assert back.to_json() == text
        assert back.ledger == report.ledger
        assert back.rounds == report.rounds
    for broken in ("{}", "[]", "nonsense", text[:-20]):
        with pytest.raises(ValueError, match="train report"):
            TrainReport.from_json(broken)


def test_a_forecast_for_another_simulation_or_nonsense_is_refused(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, make_plan: PlanMaker
) -> None:
    space = make_space()
    plan = make_plan(config, dim=space.dim(4))
    privacy = extrapolate(plan, population=6000, simulated_clients=60, simulated_cohort=20)
    with pytest.raises(ValueError, match="20 among 60"):
        federate(space, tokens, config, privacy)
    with pytest.raises(ValueError, match="population=0"):
        extrapolate(plan, population=0, simulated_clients=60, simulated_cohort=20)
    with pytest.raises(ValueError, match="simulated_cohort=70"):
        extrapolate(plan, population=60, simulated_clients=60, simulated_cohort=70)


def test_hypothetical_survives_its_dictionary() -> None:
    guess = HypotheticalEpsilon(
        epsilon=2.0,
        delta=1e-7,
        population=10**6,
        cohort=1e4,
        rounds=20,
        simulated_clients=100,
        simulated_cohort=10.0,
        actual_epsilon=math.inf,
    )
    assert HypotheticalEpsilon.from_dict(json.loads(json.dumps(guess.to_dict()))) == guess


def test_the_page_keeps_actual_and_hypothetical_apart(
    forecast: tuple[AdapterSpace, TrainReport, PrivacyPlan],
) -> None:
    report = forecast[1]
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", report_page(report), re.MULTILINE))
    actual, hypothetical = rows["ε that this run cost"], rows["Hypothetical ε"]
    assert actual.startswith(f"at most {rounded_up(report.epsilon)} ")
    assert hypothetical.startswith(f"{rounded_up(report.hypothetical.epsilon)} ")
    assert "forecast" in hypothetical
    assert rounded_up(report.hypothetical.epsilon) not in actual
    assert "**Not private**" in report_page(report)
    assert "**Private**" not in report_page(report)


def test_the_page_says_the_terms_of_the_claim(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, make_plan: PlanMaker
) -> None:
    space, secret = make_space(), replace(config, noise_seed=None)
    report = federate(space, tokens, secret, make_plan(config, dim=space.dim(4)))
    page = report_page(replace(report, model="tiny"))
    for said in (
        "**Private**", report.trusted, report.relation, "in each round from 60 users",
        str(config.clip), "6 × gaussian:sigma=0.5", "sampling rate 0.25", "| Model | tiny |",
        "torch ", "| Seed of what is public | 0 |", WITHHELD[1:], SELECTION[1:-1],
    ):  # fmt: skip
        assert said in page, said
    assert "cohort_size" not in page
    seeded = federate(make_space(), tokens, config, make_plan(config, dim=space.dim(4)))
    assert "**Not private**: its noise follows from noise_seed=7" in report_page(seeded)
    free = report_page(federate(make_space(), tokens, config))
    assert "**Not private**: no noise was added." in free
    assert "Trusted" not in free


@pytest.mark.parametrize("value", [1.82821, 3.99999999, 1e-7, 123456.7, 8.0, math.inf])
def test_a_bound_on_the_page_is_never_below_itself(value: float) -> None:
    assert value <= float(rounded_up(value)) <= value * (1 + 1e-4)


def test_a_report_from_before_a_field_is_read(
    forecast: tuple[AdapterSpace, TrainReport, PrivacyPlan],
) -> None:
    flat = json.loads(forecast[1].to_json())
    for younger in (
        "model",
        "bytes_down",
        "bytes_up",
        "bytes_full",
        "accuracy_by_group",
        "model_privacy",
    ):
        del flat[younger]
    back = TrainReport.from_json(json.dumps(flat))
    assert (back.model, back.bytes_down) == ("", None)
    assert back.epsilon == forecast[1].epsilon


def test_a_report_says_what_was_sent(
    forecast: tuple[AdapterSpace, TrainReport, PrivacyPlan], config: FederatedConfig
) -> None:
    space, report, _ = forecast
    dims = sum(space.dim(metrics.rank) for metrics in report.rounds)
    assert report.bytes_down == report.bytes_up == round(4 * dims * config.cohort / 60)
    assert report.bytes_full > report.bytes_up


def test_the_page_says_what_clients_have_of_the_model(
    forecast: tuple[AdapterSpace, TrainReport, PrivacyPlan],
) -> None:
    found = ModelPrivacy(server=0.9, received=0.5, trained=None, averaged=0.95, last=4)
    page = report_page(replace(forecast[1], model_privacy=found))
    assert "0.400 as received, -0.050 averaging the last 4 broadcasts |" in page
