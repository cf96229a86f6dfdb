"""One record moves a release by the clip at most, and the noise that is added is accounted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from accountants import PLD, Ledger, calibrate
from dpmech import (
    Gaussian,
    Laplace,
    Mechanism,
    NoDominatingPair,
    Noise,
    PrivacyPlan,
    Sampling,
    Sensitivity,
    Staircase,
    Target,
)
from dpmech.discrete import DiscreteLaplace
from dpmech.guarantee import ApproximateDP
from dpmech.tabulated import Tabulated
from fl_integration.sampler import Randomness
from fl_integration.zeroth_order import (
    BoundedLosses,
    Losses,
    ZerothOrderConfig,
    direction,
    replayed,
    train_zeroth_order,
    zeroth_order_mechanism,
)
from fl_integration.zo_quotients import Probe, clipped_differences
from optimizer_search import SearchProblem
from optimizer_search.single_release import single_release_candidates

DELTA = 1e-5
CONFIG = ZerothOrderConfig(rate=0.25, steps=8, clip=0.5, lr=0.1, noise_seed=3, batch=1000)
SMALL = Gaussian(sigma=1e-9)


@BoundedLosses
def flat_losses(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """The same loss for every record, wherever θ is: all that is released is the noise."""
    return torch.full((len(rows),), 0.7)


def linear(weights: Tensor) -> Losses:
    """The loss of record i is the i-th row of the weights times θ, so its quotient is row · z."""
    return BoundedLosses(lambda theta, rows: weights[torch.from_numpy(rows)] @ theta)


def quotients(
    losses: Losses, theta: Tensor, z: Tensor, rows: NDArray[np.int64], config: ZerothOrderConfig
) -> NDArray[np.float64]:
    """The clipped differences of some rows along z, as the loop takes them."""
    probe = Probe.at(theta, z, config.rho)
    limit = probe.limit(losses, config, records=len(rows))
    return clipped_differences(losses, probe, rows, config, limit=limit)


def far(theta: Tensor) -> Tensor:
    return 1e9 * theta[0].sign()


def infinite_ahead(theta: Tensor) -> Tensor:
    return torch.where(theta[0] > 0, torch.inf, 0.0)


def infinite_behind(theta: Tensor) -> Tensor:
    return torch.where(theta[0] > 0, 0.0, -torch.inf)


def overflowing(theta: Tensor) -> Tensor:
    return 1.7e308 * theta[0].sign()


def nowhere(theta: Tensor) -> Tensor:
    return torch.tensor(torch.nan)


def infinite(theta: Tensor) -> Tensor:
    return torch.tensor(torch.inf)


def with_adversary(losses: Losses, adversary: Callable[[Tensor], Tensor] | None) -> Losses:
    """Replace record 0 by an adversary, or by one whose loss never changes, as if absent."""

    def changed(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        found = losses(theta, rows).double()
        wanted = adversary(theta) if adversary else torch.tensor(0.0)
        return torch.where(torch.from_numpy(rows == 0), wanted.double(), found)

    return BoundedLosses(changed)


def sums(losses: Losses, config: ZerothOrderConfig, *, records: int) -> NDArray[np.float64]:
    """The releases of a run that goes nowhere, its noise far below anything that is asserted."""
    still = replace(config, lr=0.0)
    start = torch.zeros(3)
    return train_zeroth_order(losses, start, records, still, SMALL, delta=DELTA).releases


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize(
    "adversary", [far, infinite_ahead, infinite_behind, overflowing, nowhere, infinite]
)
def test_an_adversarial_record_moves_every_sum_by_the_clip_at_most(
    adversary: Callable[[Tensor], Tensor], batch: int
) -> None:
    config = replace(CONFIG, rate=1.0, batch=batch)
    weights = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = linear(weights)
    with_it = sums(with_adversary(base, adversary), config, records=20)
    without = sums(with_adversary(base, None), config, records=20)
    moved = np.abs(with_it - without)
    assert np.all(np.isfinite(with_it))
    assert moved.max() <= config.clip + 1e-12
    expected = config.clip if adversary is far else 0.0  # what is not finite counts for nothing
    assert moved == pytest.approx(np.full(config.steps, expected), abs=2e-9)


def test_the_exact_change_of_a_rounded_sum_is_within_the_clip() -> None:
    rng = np.random.default_rng(0)
    weights = torch.from_numpy(rng.normal(size=(20_000, 3)))
    z = direction(CONFIG, 0, dim=3)
    sloped = with_adversary(linear(weights), far)
    terms = quotients(sloped, torch.zeros(3), z, np.arange(20_000), CONFIG)
    assert np.abs(terms).max() <= CONFIG.clip
    exact = sum(map(Fraction, terms.tolist()))
    assert abs(exact - sum(map(Fraction, terms[1:].tolist()))) <= Fraction(CONFIG.clip)
    slack = Fraction(CONFIG.clip) - abs(Fraction(terms[0]))
    assert slack >= Fraction(2, 2**53) * Fraction(len(terms)) * Fraction(CONFIG.clip)


def test_a_release_is_the_sum_rounded_once_plus_the_noise() -> None:
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(5_000, 3)) / 20)
    config = replace(CONFIG, rate=1.0, steps=1, batch=5_000)
    released = sums(linear(weights), config, records=5_000)[0]
    z = direction(config, 0, dim=3)
    terms = quotients(linear(weights), torch.zeros(3), z, np.arange(5_000), config)
    drawn = SMALL.sample((1,), Randomness(seed=0, secret_seed=3).noise(0))[0]
    assert released == math.fsum(terms) + drawn


def test_small_quotients_are_directional_derivatives() -> None:
    weights = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = direction(CONFIG, 5, dim=4)
    wide = replace(CONFIG, clip=100.0)
    found = quotients(linear(weights), torch.ones(4), z, np.arange(9), wide)
    assert found == pytest.approx((weights @ z).numpy(), rel=1e-9)


def test_a_record_is_alone_unless_asked_otherwise() -> None:
    assert ZerothOrderConfig(rate=0.5, steps=1, clip=1.0, lr=0.1).batch == 1
    seen: list[int] = []

    def crowded(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        seen.append(len(rows))
        return len(rows) * theta[:1].sum().expand(len(rows))

    z, rows = direction(CONFIG, 0, dim=1), np.arange(6)
    alone = quotients(crowded, torch.zeros(1), z, rows, replace(CONFIG, batch=1))
    fewer = quotients(crowded, torch.zeros(1), z, rows[:2], replace(CONFIG, batch=1))
    assert set(seen) == {1}
    assert np.array_equal(alone[:2], fewer)


def pvalue(releases: NDArray[np.float64], law: Noise) -> float:
    return float(stats.kstest(releases, lambda x: law.cdf(x)).pvalue)


def noise_alone(law: Noise) -> NDArray[np.float64]:
    config = ZerothOrderConfig(rate=0.02, steps=3000, clip=0.5, lr=0.0, noise_seed=0, batch=99)
    mechanism = zeroth_order_mechanism(config, law)
    result = train_zeroth_order(flat_losses, torch.zeros(2), 50, config, law, delta=DELTA)
    assert result.ledger.entries == ((mechanism, 3000),)
    return result.releases


@pytest.mark.parametrize(
    "law",
    [
        Gaussian(sigma=40.0),
        Laplace(b=40.0),
        Staircase.least_variance(0.02, width=0.5),
        Tabulated(edges=(0.0, 10.0, 30.0, 50.0), masses=(0.3, 0.4, 0.2), decay=0.5),
    ],
    ids=lambda law: law.name,
)
def test_the_noise_of_the_loop_has_the_law_and_no_other_scale(law: Noise) -> None:
    releases = noise_alone(law)
    assert pvalue(releases, law) > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert pvalue(releases, law.scaled(wrong)) < 1e-6


def test_a_searched_law_is_added_and_accounted() -> None:
    target = Target(epsilon=1.0, delta=0.01)
    problem = SearchProblem(target=target, sensitivity=CONFIG.clip, cells=4)
    best = next(single_release_candidates(problem))
    plan = calibrate(best, target, sensitivity=Sensitivity(bound=CONFIG.clip))
    law = plan.mechanism.noise
    assert isinstance(law, Tabulated)
    once = replace(CONFIG, rate=1.0, steps=1)
    result = train_zeroth_order(flat_losses, torch.zeros(2), 5, once, plan)
    assert result.epsilon <= target.epsilon * (1 + 1e-6)
    releases = noise_alone(law)
    assert pvalue(releases, law) > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert pvalue(releases, law.scaled(wrong)) < 1e-6


def test_secret_randomness_is_fresh_and_directions_are_public() -> None:
    fresh = replace(CONFIG, noise_seed=None)
    law = Gaussian(sigma=1.0)
    one, two = (
        train_zeroth_order(flat_losses, torch.zeros(2), 40, fresh, law, delta=DELTA).releases
        for _ in range(2)
    )
    assert len(set(one.tolist()) | set(two.tolist())) == 2 * CONFIG.steps
    assert torch.equal(direction(fresh, 4, dim=7), direction(CONFIG, 4, dim=7))
    assert not torch.equal(direction(fresh, 4, dim=7), direction(fresh, 5, dim=7))
    other = direction(replace(fresh, seed=1), 4, dim=7)
    assert not torch.equal(direction(fresh, 4, dim=7), other)
    normal = direction(CONFIG, 0, dim=20_000).numpy()
    assert stats.kstest(normal, "norm").pvalue > 1e-3


def test_directions_share_no_numbers_with_noise_or_cohort() -> None:
    same = replace(CONFIG, seed=7, noise_seed=7, steps=3, lr=0.0)
    law = Gaussian(sigma=1.0)
    releases = train_zeroth_order(flat_losses, torch.zeros(2), 5, same, law, delta=DELTA).releases
    z = torch.cat([direction(same, step, dim=50) for step in range(3)]).numpy()
    assert not np.isin(releases, z).any()


def test_the_denominator_is_the_expected_sample() -> None:
    law = Gaussian(sigma=1.0)
    weights = torch.full((12, 3), 0.05, dtype=torch.float64)
    sizes: set[int] = set()

    @BoundedLosses
    def counted(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        sizes.add(len(rows))
        return linear(weights)(theta, rows)

    for seed in range(10):
        config = replace(CONFIG, steps=1, noise_seed=seed)
        start = torch.ones(3, dtype=torch.float64)
        result = train_zeroth_order(counted, start, 12, config, law, delta=DELTA)
        z = direction(config, 0, dim=3).numpy()
        step = config.lr * result.releases[0] / 3.0  # q·N = 0.25 · 12
        assert result.theta.numpy() == pytest.approx(1.0 - step * z, rel=1e-12)
    assert len(sizes) > 3


def test_samples_are_poisson_and_fresh() -> None:
    config = replace(CONFIG, rate=0.2, steps=600, lr=0.0)
    drawn: list[NDArray[np.int64]] = []

    @BoundedLosses
    def watched(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        drawn.append(rows)
        return flat_losses(theta, rows)

    train_zeroth_order(watched, torch.zeros(1), 30, config, Gaussian(sigma=50.0), delta=DELTA)
    steps = drawn[::2]  # ahead and behind see the same records
    assert all(np.array_equal(a, b) for a, b in zip(steps, drawn[1::2], strict=True))
    hits = np.bincount(np.concatenate(steps), minlength=30)
    assert abs(hits - 120).max() < 5 * np.sqrt(600 * 0.2 * 0.8)
    sizes = np.asarray([len(rows) for rows in steps])
    assert np.var(sizes) == pytest.approx(30 * 0.2 * 0.8, rel=0.25)


def test_an_empty_sample_releases_noise_and_pays() -> None:
    config = replace(CONFIG, rate=1e-12, steps=20)
    law = Gaussian(sigma=0.3)

    @BoundedLosses
    def never(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        raise AssertionError("nobody was sampled")

    result = train_zeroth_order(never, torch.zeros(2), 10, config, law, delta=DELTA)
    assert result.ledger.runs == 20
    assert np.all(result.releases != 0)
    assert len(set(result.releases.tolist())) == 20
    assert float(result.theta.abs().sum()) > 0


def test_epsilon_is_that_of_the_ledger_by_pld() -> None:
    law = Laplace(b=2.0)
    result = train_zeroth_order(flat_losses, torch.zeros(2), 40, CONFIG, law, delta=DELTA)
    assert result.ledger.entries == ((zeroth_order_mechanism(CONFIG, law), CONFIG.steps),)
    release = Mechanism(
        noise=law,
        sensitivity=Sensitivity(bound=CONFIG.clip),
        sampling=Sampling(rate=CONFIG.rate),
    )
    alone = PLD().compose(release, CONFIG.steps)
    lower = alone.lower_epsilon(DELTA)
    assert lower is not None
    assert lower <= result.epsilon <= alone.epsilon(DELTA) * (1 + 1e-3)
    more = train_zeroth_order(
        flat_losses, torch.zeros(2), 40, replace(CONFIG, clip=1.0), law, delta=DELTA
    )
    assert more.epsilon > 1.5 * result.epsilon


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_replay_is_exact_at_every_step(dtype: torch.dtype) -> None:
    weights = torch.randn(30, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    start = torch.from_numpy(np.random.default_rng(3).normal(size=5)).to(dtype)
    before, seen = start.clone(), list[Tensor]()

    @BoundedLosses
    def watched(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        seen.append(theta)
        return linear(weights)(theta, rows)

    law = Gaussian(sigma=1.0)
    result = train_zeroth_order(watched, start, 30, CONFIG, law, delta=DELTA)
    assert torch.equal(start, before)
    z = direction(CONFIG, 0, dim=5)
    assert torch.equal(seen[0], before.double() + CONFIG.rho * z)  # not rounded to fp32
    assert result.theta.dtype == torch.float64
    again = replayed(start, CONFIG, result.releases, records=30)
    assert torch.equal(again, result.theta)
    for step in range(CONFIG.steps):
        here = replayed(start, CONFIG, result.releases[:step], records=30)
        z = direction(CONFIG, step, dim=5)
        assert torch.equal(here + CONFIG.rho * z, seen[2 * step])
    other = replayed(start, replace(CONFIG, seed=9), result.releases, records=30)
    assert not torch.equal(other, result.theta)
    with pytest.raises(ValueError, match=r"steps=8 releases, got shape \(9,\)"):
        replayed(start, CONFIG, np.zeros(9), records=30)


def test_a_logistic_model_learns() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 6))
    labels = np.where(features @ [2.0, -1.0, 0.5, 0.0, 1.0, -2.0] > 0, 1.0, -1.0)
    x, y = torch.from_numpy(features), torch.from_numpy(labels)

    @BoundedLosses
    def logistic(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        chosen = torch.from_numpy(rows)
        return torch.nn.functional.softplus(-y[chosen] * (x[chosen] @ theta))

    config = ZerothOrderConfig(
        rate=0.5, steps=150, clip=2.0, lr=0.3, seed=1, noise_seed=1, batch=400
    )
    start = torch.zeros(6)
    result = train_zeroth_order(logistic, start, 400, config, Gaussian(sigma=4.0), delta=DELTA)
    right = (torch.sign(x @ result.theta) == y).double().mean().item()
    assert right > 0.93
    backwards = replayed(start, config, -result.releases, records=400)
    assert (torch.sign(x @ backwards) == y).double().mean().item() < 0.2


@pytest.fixture(scope="module")
def plan() -> PrivacyPlan:
    return calibrate(
        Gaussian(sigma=1.0),
        Target(epsilon=2.0, delta=DELTA),
        steps=CONFIG.steps,
        sampling=Sampling(rate=CONFIG.rate),
        sensitivity=Sensitivity(bound=CONFIG.clip),
    )


def test_a_plan_is_spent_and_its_epsilon_derived_anew(plan: PrivacyPlan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    read = PrivacyPlan.load(tmp_path / "plan.json")
    result = train_zeroth_order(flat_losses, torch.zeros(2), 40, CONFIG, read)
    assert result.epsilon == pytest.approx(plan.epsilon, rel=1e-6)
    assert (result.delta, result.config) == (DELTA, CONFIG)
    assert result.ledger == Ledger().add(plan.mechanism, CONFIG.steps)


def changed(plan: PrivacyPlan, **fields: object) -> PrivacyPlan:
    """The plan with another sensitivity, sampling, noise or relation."""
    return replace(plan, mechanism=replace(plan.mechanism, **fields))


@BoundedLosses
def refuse_to_read(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
    raise AssertionError("a record was read")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sensitivity": Sensitivity(norm="l1", bound=0.5)}, "norm to be l2, got l1"),
        ({"sensitivity": Sensitivity(bound=0.5, dim=4)}, "dim to be 1, got 4"),
        ({"sensitivity": Sensitivity(bound=0.25)}, r"bound to be 0\.5, got 0\.25"),
        ({"sampling": Sampling(rate=0.2)}, r"rate=0\.25.*got .*rate=0\.2"),
        ({"relation": "zero-out"}, "relation to be add-remove, got zero-out"),
        ({"noise": Gaussian(sigma=0.1)}, r"to keep epsilon=2 .*got epsilon="),
    ],
)
def test_a_plan_for_another_run_is_refused(
    plan: PrivacyPlan, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train_zeroth_order(refuse_to_read, torch.zeros(2), 40, CONFIG, changed(plan, **fields))


def test_a_plan_that_holds_other_releases_is_refused(plan: PrivacyPlan) -> None:
    more = replace(plan, others=((plan.mechanism, 3),))
    with pytest.raises(ValueError, match="number of other releases to be 0, got 1"):
        train_zeroth_order(refuse_to_read, torch.zeros(2), 40, CONFIG, more)


def test_a_plan_for_other_steps_or_another_delta_is_refused(plan: PrivacyPlan) -> None:
    longer = replace(CONFIG, steps=9)
    with pytest.raises(ValueError, match="steps to be 9, got 8"):
        train_zeroth_order(refuse_to_read, torch.zeros(2), 40, longer, plan)
    with pytest.raises(ValueError, match=r"delta=0\.1 to be the plan's, 1e-05"):
        train_zeroth_order(refuse_to_read, torch.zeros(2), 40, CONFIG, plan, delta=0.1)


def test_laws_without_a_proved_scalar_pair_are_refused() -> None:
    whole = replace(CONFIG, clip=1.0)  # where the pair of a law on the whole numbers exists
    with pytest.raises(NoDominatingPair, match="whole numbers only"):
        zeroth_order_mechanism(whole, DiscreteLaplace(b=2.0))
    with pytest.raises(ValueError, match="got the guarantee"):
        zeroth_order_mechanism(whole, ApproximateDP(epsilon=1.0))


@pytest.mark.parametrize(
    "fields",
    [
        {"rate": 0.0},
        {"rate": 1.5},
        {"steps": 0},
        {"steps": 2.5},
        {"clip": 0.0},
        {"clip": np.inf},
        {"rho": -1e-3},
        {"lr": np.nan},
        {"lr": -0.1},
        {"seed": -1},
        {"noise_seed": -1},
        {"batch": 0},
        {"schedule": "cosine"},
    ],
    ids=str,
)
def test_bad_values_are_refused_with_the_value(fields: dict[str, object]) -> None:
    ((name, value),) = fields.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        replace(CONFIG, **fields)


def noisy_in_company(error: float) -> BoundedLosses:
    """The loss of every record falls with θ and is off by the bound where it has company."""

    def losses(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        ahead = float(theta[0]) > 0
        wrong = (error if ahead else -error) * (len(rows) > 1)
        return torch.full((len(rows),), wrong, dtype=torch.float64)

    return BoundedLosses(losses, error)


def test_company_moves_a_sum_by_no_more_than_the_margin_makes_up_for() -> None:
    # Record 0 is far out; with it in, every other loss is off by the bound, in the same direction.
    records, error = 50, 1e-7
    config = replace(CONFIG, rate=1.0, lr=0.0, steps=1, batch=records)
    far_out, moved = noisy_in_company(error), list[float]()

    def losses(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        found = far_out(theta, rows)
        return torch.where(torch.from_numpy(rows == 0), far(theta).double(), found)

    z = direction(config, 0, dim=3)
    probe = Probe.at(torch.zeros(3, dtype=torch.float64), z, config.rho)
    for bound in (0.0, error):
        told = BoundedLosses(losses, bound)
        limit = probe.limit(told, config, records=records)
        all_rows = np.arange(records)
        with_it = clipped_differences(told, probe, all_rows, config, limit=limit)
        alone = replace(config, batch=1)
        without = clipped_differences(told, probe, all_rows[1:], alone, limit=limit)
        moved.append(abs(math.fsum(with_it) - math.fsum(without)))
    assert moved[0] > config.clip * 1.001  # a bound that is not told breaks the promise
    assert moved[1] <= config.clip


def test_company_without_a_bound_or_with_a_large_one_is_refused() -> None:
    def plain(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        raise AssertionError("a record was read")

    law = Gaussian(sigma=1.0)
    with pytest.raises(ValueError, match="batch=1000 to be 1 for losses without a bound"):
        train_zeroth_order(plain, torch.zeros(2), 40, CONFIG, law, delta=DELTA)
    wide = BoundedLosses(plain, 1e-6)
    with pytest.raises(ValueError, match=r"rho=0\.001 and clip=0\.5 to leave 1% .* got 0\.16"):
        train_zeroth_order(wide, torch.zeros(2), 40, CONFIG, law, delta=DELTA)
    nothing = BoundedLosses(plain, math.nan)
    probe = Probe.at(torch.zeros(2), torch.ones(2), CONFIG.rho)
    assert probe.limit(nothing, CONFIG, records=40) == 0.0


def test_a_linear_schedule_ends_near_zero_and_replays() -> None:
    config = replace(CONFIG, schedule="linear", lr=0.8)
    assert [config.step_size(step) for step in (0, 4, 7)] == pytest.approx([0.8, 0.4, 0.1])
    weights = torch.ones(12, 3, dtype=torch.float64)
    law, start = Gaussian(sigma=1.0), torch.zeros(3)
    result = train_zeroth_order(linear(weights), start, 12, config, law, delta=DELTA)
    before = replayed(start, config, result.releases[:-1], records=12)
    z = direction(config, 7, dim=3)
    last = before - (0.1 * result.releases[-1] / 3.0) * z
    assert result.theta.numpy() == pytest.approx(last.numpy(), rel=1e-12)


def test_without_privacy_the_sums_are_bare_and_epsilon_is_infinite() -> None:
    weights = torch.full((12, 3), 0.05, dtype=torch.float64)
    config = replace(CONFIG, rate=1.0)
    result = train_zeroth_order(linear(weights), torch.zeros(3), 12, config, None)
    z = direction(config, 0, dim=3)
    bare = math.fsum(quotients(linear(weights), torch.zeros(3), z, np.arange(12), config))
    assert result.releases[0] == bare
    assert (result.epsilon, result.ledger.entries) == (math.inf, ())


def test_a_configuration_is_written_and_read() -> None:
    assert ZerothOrderConfig.from_dict(CONFIG.to_dict()) == CONFIG
    with pytest.raises(ValueError, match="known fields"):
        ZerothOrderConfig.from_dict(CONFIG.to_dict() | {"epsilon": 1.0})


def test_bad_arguments_are_refused() -> None:
    law = Gaussian(sigma=1.0)
    with pytest.raises(ValueError, match="delta=None"):
        train_zeroth_order(refuse_to_read, torch.zeros(2), 40, CONFIG, law)
    with pytest.raises(ValueError, match=r"delta=1\.5"):
        train_zeroth_order(refuse_to_read, torch.zeros(2), 40, CONFIG, law, delta=1.5)
    with pytest.raises(ValueError, match="records=0"):
        train_zeroth_order(refuse_to_read, torch.zeros(2), 0, CONFIG, law, delta=DELTA)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        train_zeroth_order(refuse_to_read, torch.zeros(2, 2), 40, CONFIG, law, delta=DELTA)

    @BoundedLosses
    def averaged(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return flat_losses(theta, rows).mean()

    with pytest.raises(ValueError, match=r"one a record, got shape \(\)"):
        train_zeroth_order(averaged, torch.zeros(2), 40, CONFIG, law, delta=DELTA)
