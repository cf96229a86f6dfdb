"""The published bound of the LMO family: the table, its domain, and the sampler's transform."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accountants import PLD
from accountants.rdp import last_valid_order, lmo_bound, lmo_published_epsilon, renyi_divergence
from dpmech import LMO_PRESETS, Mechanism

TABLE = tomllib.loads((Path(__file__).parents[1] / "golden" / "lmo_published.toml").read_text())
ORDERS = np.array([1.001, 1.3, 2.0, 2.5, 7.0, 40.0, 333.3, 1e5])


@pytest.mark.parametrize("name", sorted(TABLE["sets"]))
def test_the_published_table(name: str) -> None:
    row, law = TABLE["sets"][name], LMO_PRESETS[name]
    as_sampled = replace(law, rate=1 / law.rate)
    epsilon, order = lmo_published_epsilon(law, 1e-10, check_domain=False)
    assert epsilon == pytest.approx(row["unchecked"]["epsilon"], abs=5.1e-5 + 5e-4 * (name == "2"))
    assert order == row["unchecked"]["order"]
    assert last_valid_order(law) == row["last_valid_order"]
    valid, at = lmo_published_epsilon(law, 1e-10)
    assert valid == pytest.approx(row["valid"], abs=5.1e-4)
    assert at <= row["last_valid_order"]
    for kind, what in (("rate", law), ("mean", as_sampled)):
        assert what.pure_epsilon(1.0) == pytest.approx(row["pure"][kind], abs=5.1e-4)
        assert what.fisher_information**-0.5 == pytest.approx(row["fisher"][kind], abs=5.1e-4)


@pytest.mark.parametrize("name", sorted(TABLE["sets"]))
@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_the_exact_divergence_is_below_the_published_bound(name: str, factor: float) -> None:
    law = LMO_PRESETS[name].scaled(factor)
    last = last_valid_order(law)
    assert last is not None
    orders = np.linspace(1.001, last, 80)
    bound, exact = lmo_bound(law, orders), renyi_divergence(Mechanism(noise=law), orders)
    assert np.all(np.isfinite(bound))
    assert np.all((exact >= 0) & (exact <= bound))
    assert np.all(np.diff(bound) >= 0)
    assert np.isinf(lmo_bound(law, float(last + 1)))
    np.testing.assert_allclose(lmo_bound(law, orders, factor), lmo_bound(LMO_PRESETS[name], orders))


def test_an_order_past_the_pole_breaks_the_invariant() -> None:
    """What the check of the domain is for: past it the closed form falls, below the truth."""
    law = LMO_PRESETS["0.3"]

    def renyi(order: int, *, check: bool) -> float:
        epsilon, a = lmo_published_epsilon(law, 1e-10, orders=[order], check_domain=check)
        return epsilon - float(np.log1p(-1 / a) - (np.log(1e-10) + np.log(a)) / (a - 1))

    assert renyi(20, check=True) == pytest.approx(float(lmo_bound(law, 20.0)))
    assert renyi(128, check=False) < renyi(20, check=True)
    assert np.isinf(renyi(128, check=True))
    # Sampled with the mean for the rate, the published epsilon .2932 is below even a lower bound.
    sampled = PLD().compose(Mechanism(noise=replace(law, rate=1 / law.rate)))
    assert sampled.lower_epsilon(1e-10) > 0.85


def test_a_law_without_pole_has_no_last_order() -> None:
    law = replace(LMO_PRESETS["0.3"], a1=0.0, a3=0.0)
    assert last_valid_order(law) is None
    assert np.all(np.isfinite(lmo_bound(law, ORDERS)))


@pytest.mark.parametrize("name", sorted(TABLE["sets"]))
def test_the_sampler_has_the_transform_that_is_accounted(name: str) -> None:
    """E e^{-yU} over draws against ln M(-y), and the power to see the mean passed as the rate."""
    law = LMO_PRESETS[name]
    rng = np.random.default_rng(3)
    u = law.sample_inverse_scale(200_000, rng)
    x = law.sample(200_000, rng)
    caught = False
    for y in (0.3, 1.0, 4.0):
        drawn, want = np.exp(-y * u), np.exp(law.log_transform(np.array(y)))
        error = drawn.std() / np.sqrt(len(u))
        assert abs(drawn.mean() - want) < 5 * error
        tail = np.mean(np.abs(x) > y)  # P(|X| > y) = M(-y)
        assert abs(tail - want) < 5 * np.sqrt(want * (1 - want) / len(x))
        wrong = np.exp(replace(law, rate=1 / law.rate).log_transform(np.array(y)))
        caught |= bool(abs(drawn.mean() - wrong) > 20 * error)
    assert caught
    t = np.array([-2.0, 0.0, 0.4])
    np.testing.assert_allclose(
        law.log_moment_generating(t),
        [np.log(np.mean(np.exp(v * u))) for v in t],
        atol=3e-3,
    )
