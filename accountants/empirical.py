"""Lower bounds on what a mechanism loses, from runs of it: an attack shows what is lost.

They hold at a confidence, over the runs' own randomness, for anything that can be run: a callable,
a training loop. Two ways: many runs on two neighbouring inputs, or one run with many canaries.

Symbols: ``first`` and ``second`` the mechanism on neighbours, S an event, delta as claimed,
alpha = 1 - confidence; m canaries, r guesses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from accountants._attack import Rates, best_rates, gaussian_mu
from accountants._one_run import least_epsilon
from dpmech.noise import Floats

__all__ = [
    "EmpiricalBound",
    "audit_one_run",
    "bound_from_outputs",
    "distinguish",
    "least_gaussian_mu",
    "one_run",
]

Draw = Callable[[np.random.Generator], Any]
Train = Callable[[NDArray[np.bool_], np.random.Generator], ArrayLike]
FEWEST = 40  # runs of each: below, not even a perfect attack shows an epsilon of 1


@dataclass(frozen=True, kw_only=True)
class EmpiricalBound:
    """What an attack showed: no smaller epsilon is true at ``delta``, at a ``confidence``.

    epsilon: the bound, 0 where nothing was shown. tests: the runs (or guesses) it rests on, without
    those that the attack was chosen on. most: what a perfect attack would have shown from as many;
    a claim above it cannot be refuted by as few.
    """

    epsilon: float
    delta: float
    confidence: float
    tests: int
    most: float

    def refutes(self, epsilon: float) -> bool:
        """Whether a claim of (``epsilon``, delta) is wrong, at the confidence."""
        return self.epsilon > epsilon

    def __str__(self) -> str:
        return (
            f"epsilon >= {self.epsilon:.3g} at delta={self.delta:g}, confidence "
            f"{self.confidence:.0%} ({self.tests} tests, which could show {self.most:.3g})"
        )


def distinguish(
    first: Draw,
    second: Draw,
    *,
    runs: int,
    delta: float,
    confidence: float = 0.95,
    seed: int,
) -> EmpiricalBound:
    """Attack a mechanism as a black box: run it ``runs`` times on each of two neighbouring inputs.

    **Guarantees**: those of :func:`bound_from_outputs`, for runs that are independent.

    Arguments:
        first, second: (rng) -> a number or an array of one shape: the mechanism on one input and on
            its neighbour. A number is attacked by a threshold, an array by one on a linear score
            that is learned; to attack by a score of your own, return the score.
        runs: of each, at least 40. To show epsilon takes some 10 e^epsilon of them.
        seed: of the generator that the runs are given, and of the split.

    Raises:
        ValueError: for a value outside its range, outputs that are not finite or differ in shape.

    >>> found = distinguish(
    ...     lambda rng: rng.laplace(0.0, 1.0), lambda rng: rng.laplace(1.0, 1.0),
    ...     runs=20_000, delta=0.0, seed=0,
    ... )
    >>> 0.8 < found.epsilon <= 1.0, found.refutes(0.5)
    (True, True)

    Source: the attack of Jagielski, Ullman & Oprea (2020), in both directions.
    """
    _checked(delta, confidence)  # before hours of runs
    if runs < FEWEST:
        raise ValueError(f"Expected runs={runs} to be {FEWEST} or above.")
    rngs = np.random.default_rng(seed).spawn(2)
    outputs = (
        [draw(rng) for _ in range(runs)] for draw, rng in zip((first, second), rngs, strict=True)
    )
    return bound_from_outputs(*outputs, delta=delta, confidence=confidence, seed=seed)


def bound_from_outputs(
    first: ArrayLike,
    second: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    seed: int,
) -> EmpiricalBound:
    """A lower bound on epsilon from what a mechanism gave on two neighbouring inputs.

    One event for each direction is chosen on half of the outputs: scores above or below a
    threshold. On the other half its probabilities are bounded by Clopper-Pearson at alpha/4 each.
    P(S) <= e^epsilon P'(S) + delta for every S and both orders of the two gives the bound.

    **Guarantees**: a mechanism that is (epsilon, delta)-private gets a bound above epsilon with
    probability alpha at most, whatever its outputs are. The bound is not about the mechanism on
    other inputs, where it may lose more.

    Arguments:
        first, second: (n,) or (n, ...) independent outputs on an input and on its neighbour.
        delta: of the claim, in [0, 1). seed: of the split.

    Raises:
        ValueError: for a value outside its range, outputs that are not finite or differ in shape.

    Source: Jagielski, Ullman & Oprea (2020); Clopper & Pearson (1934).
    """
    alpha = 1 - _checked(delta, confidence)
    rng = np.random.default_rng(seed)
    rates = best_rates(_rows(first), _rows(second), delta=delta, alpha=alpha / 4, rng=rng)
    return EmpiricalBound(
        epsilon=max(_epsilon(rate, delta) for rate in rates),
        delta=delta,
        confidence=confidence,
        tests=sum(rates[0].tests),
        most=_epsilon(rates[0].perfect(alpha / 4), delta),
    )


def least_gaussian_mu(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, seed: int
) -> float:
    """A lower bound on the mu of any Gaussian differential privacy that the mechanism has.

    It says more than :func:`bound_from_outputs` from as many runs, and about less: a claim that is
    *calibrated for Gaussian noise* (mu = clip / sigma * sqrt(rounds), every record in every round)
    is refuted; to make an epsilon of it, assume that the noise is Gaussian.

    **Guarantees**: above mu with probability alpha at most, if the mechanism is mu-GDP.

    Arguments: those of :func:`bound_from_outputs`.

    Source: Dong, Roth & Su (2022), Definition 4; Nasr et al. (2023).
    """
    alpha = 1 - _checked(0.0, confidence)
    rng = np.random.default_rng(seed)
    return gaussian_mu(_rows(first), _rows(second), alpha=alpha / 2, rng=rng)


def one_run(
    guesses: ArrayLike, truth: ArrayLike, *, delta: float, confidence: float = 0.95
) -> EmpiricalBound:
    """A lower bound on epsilon from a single run in which fair coins decided about every canary.

    **Guarantees**: a mechanism that is (epsilon, delta)-private for adding or removing one canary
    gets a bound above epsilon with probability alpha at most, whatever else it does, if the number
    of guesses was fixed beforehand (with delta = 0: if it does not look at ``truth``).

    Arguments:
        guesses: (m,) 1 for "was in", -1 for "was out", 0 for no guess. truth: (m,) whether each
            canary was in, independent coins of 1/2.

    Raises:
        ValueError: for other guesses, another shape, or a value outside its range.

    >>> print(one_run([1, -1, 1, 0] * 50, [1, 0, 1, 1] * 50, delta=1e-5))
    epsilon >= 3.9 at delta=1e-05, confidence 95% (150 tests, which could show 3.9)

    Source: Steinke, Nasr & Jagielski (2023), §5, with a sharper term for delta (mathematics.md).
    """
    alpha = 1 - _checked(delta, confidence)
    said, was = np.asarray(guesses), np.asarray(truth)
    if said.ndim != 1 or said.shape != was.shape or not np.all(np.isin(said, (-1, 0, 1))):
        raise ValueError(
            f"Expected one guess of -1, 0 or 1 for each of {was.size} canaries, got shape "
            f"{said.shape} with values {np.unique(said)[:5]}."
        )
    if not np.all(np.isin(was, (0, 1))):
        raise ValueError(f"Expected truth to be 0 or 1, got {np.unique(was)[:5]}.")
    made, right = int(np.sum(said != 0)), int(np.sum(said == np.where(was == 1, 1, -1)))

    def least(count: int) -> float:
        return least_epsilon(count, guesses=made, canaries=said.size, delta=delta, alpha=alpha)

    return EmpiricalBound(
        epsilon=least(right), delta=delta, confidence=confidence, tests=made, most=least(made)
    )


def audit_one_run(
    train: Train,
    *,
    canaries: int,
    guesses: int,
    delta: float,
    confidence: float = 0.95,
    seed: int,
) -> EmpiricalBound:
    """Train once with half of the canaries, chosen by fair coins, and guess which from scores.

    A canary is what the privacy protects: a whole user, or one example. Those with the
    ``guesses``/2 highest scores are said to have been in, those with the lowest to have been out.

    **Guarantees**: those of :func:`one_run`.

    Arguments:
        train: (included (m,) bool, rng) -> (m,) scores, high for canaries that seem to have been
            in, made from what the training releases and from all canaries, not from ``included``.
        canaries: m. guesses: r <= m. seed: of the coins and of the training.

    Raises:
        ValueError: for scores of another shape, or a value outside its range.
    """
    _checked(delta, confidence)  # before a training
    if not 1 <= guesses <= canaries:
        raise ValueError(f"Expected guesses={guesses} to be in 1..{canaries}, the canaries.")
    coins, rng = np.random.default_rng(seed).spawn(2)
    included = coins.random(canaries) < 0.5
    scores: Floats = np.asarray(train(included.copy(), rng), dtype=np.float64)
    if scores.shape != (canaries,) or not np.all(np.isfinite(scores)):
        raise ValueError(f"Expected {canaries} finite scores, got {scores} of {scores.shape}.")
    order = np.argsort(scores)
    said = np.zeros(canaries, dtype=np.int64)
    said[order[: guesses // 2]] = -1
    said[order[canaries - (guesses - guesses // 2) :]] = 1
    return one_run(said, included, delta=delta, confidence=confidence)


def _checked(delta: float, confidence: float) -> float:
    """The confidence, if both are in their ranges."""
    if not 0 <= delta < 1:
        raise ValueError(f"Expected delta={delta} in [0, 1).")
    if not 0.5 < confidence < 1:
        raise ValueError(f"Expected confidence={confidence} in (0.5, 1).")
    return confidence


def _rows(outputs: ArrayLike) -> Floats:
    """Outputs as rows of finite numbers (n, d)."""
    made: Floats = np.asarray(outputs, dtype=np.float64)
    if made.ndim == 0 or len(made) < FEWEST or not np.all(np.isfinite(made)):
        raise ValueError(
            f"Expected {FEWEST} outputs or more, all of them finite numbers, got shape {made.shape}"
            f" with {int(np.sum(~np.isfinite(made)))} that are not."
        )
    return made.reshape(len(made), -1)


def _epsilon(rates: Rates, delta: float) -> float:
    """The bound from a true and a false positive rate; 0 where they show nothing."""
    return max(0.0, math.log(max(rates.true - delta, 1e-300) / rates.false))
