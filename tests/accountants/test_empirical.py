"""Bounds from runs: above the truth as rarely as they say, and not far below it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, sparse, special, stats

from accountants._attack import at_least, at_most
from accountants._one_run import chance
from accountants.empirical import (
    EmpiricalBound,
    audit_one_run,
    bound_from_outputs,
    distinguish,
    least_gaussian_mu,
    one_run,
)
from accountants.exact import gaussian_epsilon
from dpmech.noise import Floats

# Many runs on two inputs


@pytest.mark.parametrize(("hits", "tests"), [(0, 10), (3, 50), (49, 50), (10, 10), (700, 10_000)])
def test_rates_are_bounded_as_by_clopper_and_pearson(hits: int, tests: int) -> None:
    exact = stats.binomtest(hits, tests).proportion_ci(0.98, method="exact")
    assert at_least(hits, tests, 0.01) == pytest.approx(exact.low, rel=1e-8)
    assert at_most(hits, tests, 0.01) == pytest.approx(exact.high, rel=1e-8)
    assert at_least(hits, tests, 0.01) <= hits / tests <= at_most(hits, tests, 0.01)


def laplace(rng: np.random.Generator, size: int) -> tuple[Floats, Floats]:
    return rng.laplace(0, 1, size), rng.laplace(1, 1, size)


def response(rng: np.random.Generator, size: int) -> tuple[Floats, Floats]:
    """Randomised response at epsilon 1: nothing but ties."""
    q = special.expit(1.0)
    return (rng.random(size) > q).astype(float), (rng.random(size) < q).astype(float)


def leaky(rng: np.random.Generator, size: int) -> tuple[Floats, Floats]:
    """Randomised response at epsilon 1 that tells the truth with probability .1."""
    first, second = response(rng, size)
    tells = rng.random((2, size)) < 0.1
    return np.where(tells[0], -1.0, first), np.where(tells[1], 2.0, second)


def vector(rng: np.random.Generator, size: int) -> tuple[Floats, Floats]:
    first, second = rng.normal(size=(2, size, 30))
    return first, second + np.eye(30)[3] * 0.5


@pytest.mark.parametrize(
    ("draw", "delta", "epsilon"),
    [
        (laplace, 0.0, 1.0),
        (response, 0.0, 1.0),
        (leaky, 0.1, 1.0),
        (vector, 0.05, gaussian_epsilon(0.05, sigma=2.0)),
    ],
)
def test_a_bound_is_above_the_truth_as_rarely_as_it_says(
    draw: object, delta: float, epsilon: float
) -> None:
    rng = np.random.default_rng(0)
    found = [
        bound_from_outputs(*draw(rng, 400), delta=delta, confidence=0.8, seed=i)  # type: ignore[operator]
        for i in range(300)
    ]
    above = sum(bound.refutes(epsilon) for bound in found)
    assert above <= stats.binom.isf(1e-3, 300, 0.2)


@pytest.mark.parametrize(("draw", "delta"), [(laplace, 0.0), (response, 0.0), (leaky, 0.1)])
def test_many_runs_come_near_the_truth(draw: object, delta: float) -> None:
    outputs = draw(np.random.default_rng(0), 50_000)  # type: ignore[operator]
    assert 0.85 < bound_from_outputs(*outputs, delta=delta, seed=0).epsilon <= 1.0


def test_both_directions_are_attacked() -> None:
    rng = np.random.default_rng(0)
    wide, narrow = rng.uniform(0, 2, 4000), rng.uniform(0, 1, 4000)
    for outputs in ((wide, narrow), (narrow, wide), (-wide, -narrow), (-narrow, -wide)):
        found = bound_from_outputs(*outputs, delta=1e-5, seed=0)
        assert found.epsilon > 5.0  # one input alone gives numbers above 1
        assert found.epsilon <= found.most


def test_two_equal_mechanisms_show_nothing() -> None:
    rng = np.random.default_rng(1)
    for size in (50, 1000):
        first, second = rng.normal(size=(2, size))
        assert bound_from_outputs(first, second, delta=0.0, seed=0).epsilon == 0.0
    many = rng.normal(size=(2, 400, 200))  # enough columns to tell any runs apart by hindsight
    assert bound_from_outputs(*many, delta=0.0, seed=0).epsilon == 0.0
    constant = np.zeros((100, 3))
    assert bound_from_outputs(constant, constant, delta=0.0, seed=0).epsilon == 0.0


def test_what_is_constant_on_both_inputs_and_differs_is_seen() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 400, 3))
    noise[0, :, 1], noise[1, :, 1] = 5.0, 5.001
    found = bound_from_outputs(*noise, delta=1e-5, seed=0)
    assert found.epsilon == found.most > 3.5


def test_noise_on_one_random_direction_is_refuted() -> None:
    """Its density is that of a Gaussian on a line; claimed: epsilon 1 at 1e-5 in 100 dimensions."""

    def release(value: float):
        def draw(rng: np.random.Generator) -> Floats:
            direction = rng.normal(size=100)
            noise = 3.0 * rng.normal() * direction / np.linalg.norm(direction)
            return np.append(value, np.zeros(99)) + noise

        return draw

    assert distinguish(release(0.0), release(1.0), runs=3000, delta=1e-5, seed=0).epsilon > 2.5


def test_a_seed_decides_everything() -> None:
    def run(seed: int) -> EmpiricalBound:
        return distinguish(
            lambda rng: rng.normal(), lambda rng: rng.normal() + 1, runs=500, delta=0.01, seed=seed
        )

    assert run(1) == run(1) != run(2)


def test_a_gaussian_claim_is_bounded_by_its_mu() -> None:
    rng = np.random.default_rng(0)
    found = [
        least_gaussian_mu(rng.normal(size=400), rng.normal(size=400) + 1, confidence=0.8, seed=i)
        for i in range(300)
    ]
    assert sum(mu > 1.0 for mu in found) <= stats.binom.isf(1e-3, 300, 0.2)
    assert np.median(found) > 0.7


# One run with many canaries


def largest_chance(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """By a linear program over all private kernels from m coins to r guesses; shares nothing."""
    coins = list(itertools.product((-1, 1), repeat=m))
    guesses = [t for t in itertools.product((-1, 0, 1), repeat=m) if sum(map(abs, t)) == r]
    size, kernel = len(guesses), len(coins) * len(guesses)
    pairs = [
        (a, b)
        for a, b in itertools.permutations(range(len(coins)), 2)
        if np.sum(np.not_equal(coins[a], coins[b])) == 1
    ]
    rows, limits = [], []
    for k, (a, b) in enumerate(pairs):
        slack = kernel + k * size
        for t in range(size):  # M(t|a) - e^epsilon M(t|b) <= slack_t, and the slacks sum to delta
            rows.append({a * size + t: 1.0, b * size + t: -math.exp(epsilon), slack + t: -1.0})
            limits.append(0.0)
        rows.append({slack + t: 1.0 for t in range(size)})
        limits.append(delta)
    matrix = sparse.lil_matrix((len(rows), kernel + len(pairs) * size))
    for i, row in enumerate(rows):
        for j, value in row.items():
            matrix[i, j] = value
    sums = sparse.kron(sparse.eye(len(coins)), np.ones((1, size)))
    total = sparse.hstack([sums, sparse.csr_matrix((len(coins), len(pairs) * size))])
    gain = np.zeros(matrix.shape[1])
    gain[:kernel] = [
        -float(np.sum(np.equal(s, t)) >= v) / len(coins) for s in coins for t in guesses
    ]
    solved = optimize.linprog(
        gain, A_ub=matrix.tocsr(), b_ub=limits, A_eq=total, b_eq=np.ones(len(coins)), bounds=(0, 1)
    )
    return -float(solved.fun)


@pytest.mark.parametrize(("m", "r", "v"), [(2, 2, 2), (3, 3, 3), (3, 2, 2), (4, 3, 3), (4, 4, 4)])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.01), (0.5, 0.001), (0.5, 0.0), (1.0, 0.02)])
def test_no_private_mechanism_is_guessed_better_than_that(
    m: int, r: int, v: int, epsilon: float, delta: float
) -> None:
    if special.expit(epsilon) ** v >= 0.5:
        pytest.skip("nothing is refuted at such odds")
    bound = chance(v, guesses=r, canaries=m, epsilon=epsilon, delta=delta)
    assert bound == pytest.approx(largest_chance(m, r, v, epsilon, delta), abs=2e-7)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 4.0])
@pytest.mark.parametrize(("m", "r"), [(100, 100), (1000, 200), (100_000, 3000)])
def test_the_chance_is_the_formula_and_below_that_of_the_paper(
    epsilon: float, m: int, r: int
) -> None:
    q, delta = special.expit(epsilon), 1e-5
    v = min(r, int(stats.binom.isf(0.02, r, q)) + 1)
    below, pmf = stats.binom.cdf(v - 1, r, q), stats.binom.pmf(v, r, q)
    tail = stats.binom.sf(v - 1, r, q)
    found = chance(v, guesses=r, canaries=m, epsilon=epsilon, delta=delta)
    assert found == pytest.approx(tail * (1 + m * delta * below / (v * pmf)), rel=1e-6)
    i = np.arange(1, v + 1)
    paper = tail + 2 * m * delta * np.max(np.cumsum(stats.binom.pmf(v - i, r, q)) / i)
    assert tail < found < paper


def test_the_chance_is_no_rounding_where_masses_vanish() -> None:
    found = chance(5000, guesses=5000, canaries=5000, epsilon=0.0, delta=1e-6)
    assert found == pytest.approx(1e-6, rel=1e-6)  # 2^-5000 is not a float


def told(rng: np.random.Generator, m: int, epsilon: float, leak: float) -> tuple[NDArray, NDArray]:
    """Randomised response, each bit told as it is with probability leak."""
    truth = rng.random(m) < 0.5
    right = (rng.random(m) < special.expit(epsilon)) | (rng.random(m) < leak)
    return np.where(right == truth, 1, -1), truth


@pytest.mark.parametrize(
    ("m", "epsilon", "leak"),
    [(100, 1.0, 0.0), (1000, 1.0, 0.0), (1000, 4.0, 0.0), (500, 1.0, 2e-3)],
)
def test_one_run_is_above_the_truth_as_rarely_as_it_says(
    m: int, epsilon: float, leak: float
) -> None:
    rng = np.random.default_rng(0)
    found = [one_run(*told(rng, m, epsilon, leak), delta=leak) for _ in range(1000)]
    above = sum(bound.refutes(epsilon) for bound in found)
    assert above <= stats.binom.isf(1e-3, 1000, 0.05)
    if m >= 500:
        assert above >= 10  # it is no tighter than it has to be
        assert np.median([bound.epsilon for bound in found]) > 0.8 * epsilon


def gaussian(sigma: float):
    def train(included: NDArray, rng: np.random.Generator) -> Floats:
        return included + rng.normal(scale=sigma, size=len(included))

    return train


def test_the_surest_guesses_say_more_than_all() -> None:
    few, every = (
        audit_one_run(gaussian(0.5), canaries=2000, guesses=r, delta=1e-5, seed=0)
        for r in (300, 2000)
    )
    assert 1.2 * every.epsilon < few.epsilon < gaussian_epsilon(1e-5, sigma=0.5)
    assert (few.tests, every.tests) == (300, 2000)


def test_the_score_of_a_cheat_is_not_the_truth() -> None:
    def spoils(included: NDArray, rng: np.random.Generator) -> Floats:
        scores = rng.normal(size=len(included))
        included[:] = scores > 0
        return scores

    assert audit_one_run(spoils, canaries=1000, guesses=1000, delta=0.0, seed=0).epsilon < 0.3


# Refusals


def test_what_is_no_audit_is_refused() -> None:
    good = np.random.default_rng(0).normal(size=(2, 100))
    for delta in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"delta={delta}"):
            bound_from_outputs(*good, delta=delta, seed=0)
    with pytest.raises(ValueError, match=r"confidence=0\.3"):
        bound_from_outputs(*good, delta=0.0, confidence=0.3, seed=0)
    with pytest.raises(ValueError, match="runs=10"):
        distinguish(lambda rng: 0.0, lambda rng: 0.0, runs=10, delta=0.0, seed=0)
    with pytest.raises(ValueError, match="with 100 that are not"):
        bound_from_outputs(good[0], np.full(100, np.nan), delta=0.0, seed=0)
    with pytest.raises(ValueError, match="one shape"):
        bound_from_outputs(good[0], np.zeros((100, 2)), delta=0.0, seed=0)
    with pytest.raises(ValueError, match="one guess of -1, 0 or 1"):
        one_run([2, 0], [1, 0], delta=0.0)
    with pytest.raises(ValueError, match="truth to be 0 or 1"):
        one_run([1, 0], [1, -1], delta=0.0)
    with pytest.raises(ValueError, match=r"guesses=9 to be in 1\.\.8"):
        audit_one_run(gaussian(1.0), canaries=8, guesses=9, delta=0.0, seed=0)
    with pytest.raises(ValueError, match="8 finite scores"):
        audit_one_run(lambda s, rng: [0.0], canaries=8, guesses=4, delta=0.0, seed=0)
    assert one_run([0, 0], [1, 0], delta=0.0).epsilon == 0.0
