"""Laws that are not Gaussian, in a run: vectors by their radius, scalars by a searched law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from safetensors import safe_open
from scipy import stats
from typer.testing import CliRunner

from accountants import Ledger, accountant_named
from dpmech import Gaussian, GeneralizedGaussian, PrivacyPlan, Sampling, Target
from dpmech.cli import app
from dpmech.drawing import seeded_words
from dpmech.noise import Floats
from dpmech.spherical import Spherical, SphericalGeneralizedGaussian
from dpmech.tabulated import Tabulated, TabulatedSpherical
from fl_integration import noise_sampler
from fl_integration.accounting import ledger_epsilon, mechanism_for
from fl_integration.client import Tokens
from fl_integration.config import FederatedConfig, System
from fl_integration.data import Client, FederatedData
from fl_integration.federate import federate
from fl_integration.models import load_model
from fl_integration.queries import ScalarQuery
from fl_integration.report import RoundMetrics, TrainReport
from fl_integration.scalars import entries_of
from fl_integration.spaces import FlatSpace
from fl_integration.systems import released_dim, space_for
from optimizer_search import Budget, Cost, SearchProblem, SearchResult, certified, save_result
from optimizer_search.composed import grown

PlanMaker = Callable[..., PrivacyPlan]
ROUNDS = 60


def coarse(dim: int, scale: float = 0.4) -> SphericalGeneralizedGaussian:
    return SphericalGeneralizedGaussian(scale=scale, beta=1.4, dim=dim, step=1.0)


def table(dim: int) -> TabulatedSpherical:
    """Shells of the law above, a few of them made one, as a search would find them."""
    shells = coarse(dim).shells
    kept = np.flatnonzero(shells.masses > 1e-12)[::3]
    edges = np.concatenate([[0.0], shells.edges[kept[1:]]])
    below = np.append(0.0, np.cumsum(shells.masses))[kept[1:]]
    return TabulatedSpherical(
        edges=tuple(edges), masses=tuple(np.diff(np.append(0.0, below))), dim=dim
    )


def radius_cdf(law: Spherical) -> Callable[[Floats], Floats]:
    """P(|X| <= r), from the shells alone."""
    edges, masses, d = law.shells.edges, law.shells.masses, law.dim
    below = np.append(0.0, np.cumsum(masses))

    def cdf(r: Floats) -> Floats:
        a = np.clip(np.searchsorted(edges, r, "right") - 1, 0, len(masses) - 1)
        inner = (edges[a] / edges[a + 1]) ** d
        return below[a] + masses[a] * ((r / edges[a + 1]) ** d - inner) / (1 - inner)

    return cdf


@pytest.fixture
def silent(federated_data: FederatedData) -> Tokens:
    nobody = Client(name="nobody", texts=(), labels=np.zeros(0, dtype=np.int64))
    return Tokens(replace(federated_data, clients=(nobody,) * 60), load_model("tiny", labels=3)[1])


def still(config: FederatedConfig, system: System) -> FederatedConfig:
    return replace(
        config, system=system, rank=2, rounds=ROUNDS, momentum=0.0, server_lr=1.0, eval_every=999
    )


def made(config: FederatedConfig) -> FlatSpace:
    return space_for(load_model("tiny", labels=3, seed=0)[0], config)


def releases(
    space: FlatSpace, tokens: Tokens, config: FederatedConfig, plan: PrivacyPlan, folder: Path
) -> tuple[Floats, TrainReport]:
    """What each round added to the sum of nobody, (rounds, D)."""
    weights = [space.flatten(space.rank).double().numpy()]

    def look(_: RoundMetrics) -> None:
        with safe_open(str(folder / "state.safetensors"), framework="pt") as file:
            weights.append(file.get_tensor("weights").numpy())

    report = federate(space, tokens, config, plan, checkpoint_dir=folder, progress=look)
    return np.diff(np.asarray(weights), axis=0) * config.cohort, report


@pytest.fixture(params=["seeded", "secret"])
def drawing(
    request: pytest.FixtureRequest, config: FederatedConfig, monkeypatch: pytest.MonkeyPatch
) -> FederatedConfig:
    """By a generator, or by the secret words, which here are always the same."""
    if request.param == "seeded":
        return config
    words = seeded_words(np.random.default_rng(1))
    monkeypatch.setattr(noise_sampler, "secret_words", words)
    return replace(config, noise_seed=None)


@pytest.mark.parametrize(
    ("system", "law"), [("probe", coarse), ("ffa-lora", coarse), ("probe", table)]
)
def test_a_spherical_law_is_drawn_by_its_radius_and_accounted_in_its_dimension(
    silent: Tokens,
    drawing: FederatedConfig,
    make_plan: PlanMaker,
    tmp_path: Path,
    system: System,
    law: Callable[[int], Spherical],
) -> None:
    run = still(drawing, system)
    space = made(run)
    noise = law(released_dim(space, system))
    plan = make_plan(run, dim=int(noise.dim), noise=noise)
    found, report = releases(space, silent, run, plan, tmp_path)
    found = found[:, np.any(found != 0, axis=0)]
    assert found.shape == (ROUNDS, noise.dim)
    radii = np.linalg.norm(found, axis=1)
    assert stats.kstest(radii, radius_cdf(noise)).pvalue > 1e-3
    for wrong in (0.9, 1.1):
        assert stats.kstest(radii * wrong, radius_cdf(noise)).pvalue < 1e-4
    # of a direction, the square of any coordinate is Beta(1/2, (d - 1)/2)
    directions = found / radii[:, None]
    beta = stats.beta(0.5, (noise.dim - 1) / 2)
    assert stats.kstest(directions[:, 5] ** 2, beta.cdf).pvalue > 1e-3
    assert abs((directions[1:] * directions[:-1]).sum(1)).max() < 6 / np.sqrt(noise.dim)
    ((mechanism, count),) = report.ledger.collected().entries
    assert (mechanism, count) == (plan.mechanism, ROUNDS)
    proved = accountant_named("pld").compose_ledger(report.ledger).epsilon(report.delta)
    assert report.epsilon == pytest.approx(proved, rel=1e-9)


def test_slices_of_a_spherical_release_cost_the_whole_vector(
    silent: Tokens, config: FederatedConfig, make_plan: PlanMaker, tmp_path: Path
) -> None:
    run = replace(still(config, "dylora"), rank_probabilities=(0.6, 0.4))
    space = made(run)
    noise = coarse(space.dim(2))
    plan = make_plan(run, dim=space.dim(2), noise=noise)
    found, report = releases(space, silent, run, plan, tmp_path)
    ranks = np.asarray([metrics.rank for metrics in report.rounds])
    for rank in (1, 2):
        rows = found[ranks == rank]
        inside = rows[:, space.index(rank).numpy()]
        assert int((rows[0] != 0).sum()) == space.dim(rank)
        assert (inside**2).mean() == pytest.approx(noise.variance, rel=0.06)
    whole = np.linalg.norm(found[ranks == 2], axis=1)
    assert stats.kstest(whole, radius_cdf(noise)).pvalue > 1e-3
    ((mechanism, count),) = report.ledger.collected().entries
    assert (mechanism.sensitivity.dim, count) == (space.dim(2), ROUNDS)
    assert report.epsilon <= plan.epsilon * (1 + 1e-6)


def test_a_spherical_law_of_another_dimension_is_refused(
    silent: Tokens, config: FederatedConfig, make_plan: PlanMaker
) -> None:
    run = still(config, "probe")
    plan = make_plan(run, dim=99, noise=coarse(99))
    for dim in (1, 98, 100):
        mechanism = replace(plan.mechanism, noise=coarse(dim))
        with pytest.raises(ValueError, match=rf"dim=99 .*dim={dim}"):
            federate(made(run), silent, run, replace(plan, mechanism=mechanism))
    other = replace(plan.mechanism.sensitivity, dim=98)
    mechanism = replace(plan.mechanism, noise=coarse(98), sensitivity=other)
    with pytest.raises(ValueError, match="dim to be 99, got 98"):
        federate(made(run), silent, run, replace(plan, mechanism=mechanism))


# A searched scalar law, in a run and from the command line to the ledger


def test_the_answers_of_a_run_have_the_noise_that_was_planned(
    silent: Tokens, config: FederatedConfig
) -> None:
    law = Tabulated(edges=(0.0, 1.0, 2.0), masses=(0.9, 0.02), decay=0.9).scaled(3.0)
    query = ScalarQuery(name="accuracy", cohort=12)  # nobody has texts to be right about
    run = replace(still(config, "probe"), rounds=150, scalars=(query,))
    others = entries_of((query,), (law,), clients=60, rounds=150)
    release = mechanism_for(run, Gaussian(sigma=2.0), clients=60, dim=99)
    ledger = Ledger(((release, 150), *others))
    epsilon = ledger_epsilon(ledger, accountant="pld", delta=1e-5)
    plan = PrivacyPlan(
        target=Target(epsilon=epsilon, delta=1e-5),
        mechanism=release,
        steps=150,
        accountant="pld",
        epsilon=epsilon,
        others=others,
    )
    report = federate(made(run), silent, run, plan)
    noise = (np.asarray([m.scalars["accuracy"] for m in report.rounds]) - query.centre) * 12
    assert stats.kstest(noise, law.cdf).pvalue > 1e-3
    assert stats.kstest(noise, Gaussian(sigma=law.std).cdf).pvalue < 1e-4
    assert dict(report.ledger.collected().entries) == dict(ledger.entries)


@pytest.fixture(scope="module")
def law_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A law as ``dpmech search`` writes it: a table, certified for its problem."""
    problem = SearchProblem(
        target=Budget(cost=1.0, delta=1e-5),
        steps=3,
        sampling=Sampling(rate=0.25),
        cost=Cost(name="variance"),
    )
    shape = GeneralizedGaussian(scale=1.1, beta=1.4)
    edges = grown(0.25, even=5.0, end=20.0)
    masses = tuple(-2 * np.diff(shape.sf(edges)))
    found = certified(problem, Tabulated(edges=tuple(edges), masses=masses))
    result = SearchResult(
        problem=problem,
        family="composed",
        status="",
        seconds=0.0,
        bound=None,
        baselines=(),
        tables={},
        **vars(found),
    )
    return save_result(result, tmp_path_factory.mktemp("law") / "law.npz")


def asked(*args: str) -> Result:
    return CliRunner().invoke(app, ("train", *args))


def test_a_searched_scalar_law_goes_from_its_file_into_the_ledger(
    tmp_path: Path, texts: Path, law_file: Path
) -> None:
    settings = tmp_path / "run.toml"
    settings.write_text(
        f"""
        data = "{texts}"
        model = "tiny"
        max_length = 8
        epsilon = 6.0
        delta = 1e-5
        system = "lora"
        rank = 2
        rounds = 4
        cohort = 6
        clip = 0.5
        scalar_noise = "file:{law_file}"
        scalar_share = 0.3
        adaptive = {{ quantile = 0.5, rate = 0.2, cohort = 5 }}
        scalars = [{{ name = "accuracy", cohort = 6, every = 2 }}]
        """,
        encoding="utf-8",
    )
    out = tmp_path / "out"
    ran = asked("--config", str(settings), "--out", str(out))
    assert ran.exit_code == 0, ran.output
    ledger, plan = Ledger.load(out / "ledger.json"), PrivacyPlan.load(out / "plan.json")
    report = TrainReport.from_json((out / "report.json").read_text(encoding="utf-8"))
    scalars = [(m, n) for m, n in ledger.collected().entries if m.sensitivity.dim == 1]
    assert [(type(m.noise), n) for m, n in scalars] == [(Tabulated, 4), (Tabulated, 2)]
    assert tuple(scalars) == plan.others
    assert scalars[0][0].sensitivity.bound == 0.5  # a share in [0, 1], centred
    assert ledger.runs == 4 + 4 + 2
    proved = accountant_named("pld").compose_ledger(ledger).epsilon(1e-5)
    assert report.epsilon == pytest.approx(proved, rel=1e-9)
    assert report.epsilon <= 6.0 * (1 + 1e-6)
    asked_of = [set(metrics.scalars) for metrics in report.rounds]
    assert asked_of == [{"share within the clip", "accuracy"}, {"share within the clip"}] * 2
    again = asked("--config", str(settings), "--out", str(out), "--resume")
    assert again.exit_code == 0, again.output
    assert Ledger.load(out / "ledger.json") == ledger  # finished: nothing more is spent


def test_a_spherical_law_is_named_on_the_command_line(tmp_path: Path, texts: Path) -> None:
    common = ("--data", str(texts), "--model", "tiny", "--system", "probe", "--epsilon", "4")
    common = (*common, "--rounds", "2", "--cohort", "5", "--set", "max_length=8")
    wrong = asked(*common, "--noise", "spherical-gg:dim=65,step=1", "--out", str(tmp_path / "a"))
    assert wrong.exit_code == 2
    assert "dim=65" in wrong.stderr.splitlines()[-1]
    out = tmp_path / "b"
    ran = asked(*common, "--noise", "spherical-gg:dim=66,step=1", "--out", str(out))
    assert ran.exit_code == 0, ran.output
    ((mechanism, count),) = Ledger.load(out / "ledger.json").collected().entries
    assert isinstance(mechanism.noise, SphericalGeneralizedGaussian)
    assert (mechanism.sensitivity.dim, count) == (66, 2)
    report = TrainReport.from_json((out / "report.json").read_text(encoding="utf-8"))
    proved = accountant_named("pld").compose(mechanism, 2).epsilon(report.delta)
    assert report.epsilon == pytest.approx(proved, rel=1e-9)
    assert report.epsilon <= 4.0 * (1 + 1e-6)
