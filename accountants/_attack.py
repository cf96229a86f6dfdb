"""The attack behind an empirical bound: a score, an event on it, and bounds on its probability.

Whatever is chosen here is chosen on one half of the runs; the other half only counts.

Symbols: S an event; hits k of n tests; alpha the probability that one bound is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from dpmech.noise import Floats

_ENOUGH = 20  # runs for every coordinate, to learn how coordinates go together

Value = Callable[[Floats, Floats], Floats]  # of (true, false) positive rates


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Bounds on an event: ``true`` below its rate on one input, ``false`` above the neighbour's."""

    true: float
    false: float
    tests: tuple[int, int]

    @classmethod
    def of(cls, hits: tuple[int, int], tests: tuple[int, int], alpha: float) -> Rates:
        """The bounds from counts, each wrong with probability alpha at most."""
        (right, wrong), (positives, negatives) = hits, tests
        return cls(
            true=at_least(right, positives, alpha),
            false=at_most(wrong, negatives, alpha),
            tests=tests,
        )

    def perfect(self, alpha: float) -> Rates:
        """What an attack that is never wrong has."""
        return Rates.of((self.tests[0], 0), self.tests, alpha)


def at_most(hits: int, tests: int, alpha: float) -> float:
    """An upper bound on a probability, at confidence 1 - alpha (Clopper & Pearson 1934)."""
    if hits == tests:
        return 1.0
    return min(1.0, float(special.betainccinv(hits + 1, tests - hits, alpha)) * (1 + 1e-9))


def at_least(hits: int, tests: int, alpha: float) -> float:
    """A lower bound on a probability, at confidence 1 - alpha."""
    if hits == 0:
        return 0.0
    return float(special.betaincinv(hits, tests - hits + 1, alpha)) * (1 - 1e-9)


@dataclass(frozen=True, kw_only=True)
class _Event:
    """``sign * score >= threshold``, more frequent on one input than on the other."""

    sign: int
    threshold: float
    value: float  # on the runs that it was chosen on

    def hits(self, scores: Floats) -> int:
        return int(np.sum(self.sign * scores >= self.threshold))


def best_rates(
    first: Floats, second: Floats, *, delta: float, alpha: float, rng: np.random.Generator
) -> tuple[Rates, Rates]:
    """The rates of an event that tells second from first, and of one that tells first from second.

    Arguments:
        first, second: outputs (n, d) of independent runs. alpha: of each of the four bounds.
    """

    def value(true: Floats, false: Floats) -> Floats:
        return np.log(np.maximum(true - delta, 1e-300) / false)

    (seen, other_seen), (kept, other_kept) = _halves(first, second, rng)
    return (
        _tested(_chosen(other_seen, seen, alpha, value), other_kept, kept, alpha),
        _tested(_chosen(seen, other_seen, alpha, value), kept, other_kept, alpha),
    )


def gaussian_mu(first: Floats, second: Floats, *, alpha: float, rng: np.random.Generator) -> float:
    """A lower bound on mu from one event; alpha is that of each of its two bounds."""
    (seen, other_seen), (kept, other_kept) = _halves(first, second, rng)
    event = _chosen(other_seen, seen, alpha, np.subtract)  # in the middle, where rates are sure
    rates = _tested(event, other_kept, kept, alpha)
    return max(0.0, float(special.ndtri(rates.true) - special.ndtri(rates.false)))


def _tested(event: _Event, positive: Floats, negative: Floats, alpha: float) -> Rates:
    """The event's rates on runs that it was not chosen on."""
    hits = event.hits(positive), event.hits(negative)
    return Rates.of(hits, (len(positive), len(negative)), alpha)


def _halves(
    first: Floats, second: Floats, rng: np.random.Generator
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """The scores that events are chosen on, and those that they are tested on, of both inputs."""
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"Expected outputs of one shape, got {first.shape} and {second.shape}.")
    first, second = rng.permutation(first), rng.permutation(second)
    if first.shape[1] == 1:
        (seen, kept), (other_seen, other_kept) = (_cut(x[:, 0], 2) for x in (first, second))
    else:  # a quarter learns the score: thresholds chosen on the same runs would be too hopeful
        (learnt, rest), (other_learnt, other_rest) = (_cut(x, 4) for x in (first, second))
        weights = _linear(learnt, other_learnt)
        (seen, kept), (other_seen, other_kept) = (_cut(x @ weights, 3) for x in (rest, other_rest))
    return (seen, other_seen), (kept, other_kept)


def _cut(rows: Floats, parts: int) -> tuple[Floats, Floats]:
    """The first part of so many, and the rest."""
    return rows[: len(rows) // parts], rows[len(rows) // parts :]


def _linear(first: Floats, second: Floats) -> Floats:
    """Weights (d,) that score the second input above the first: Fisher's, where runs are enough."""
    difference = second.mean(axis=0) - first.mean(axis=0)
    centred = np.concatenate([first - first.mean(axis=0), second - second.mean(axis=0)])
    spread = np.sqrt(np.mean(centred**2, axis=0))
    # a coordinate that is constant on both inputs and differs tells them apart by itself
    spread += 1e-6 * (np.max(spread) + np.max(np.abs(difference)) or 1.0)
    scaled, count = difference / spread, len(difference)
    if len(centred) >= _ENOUGH * count:
        correlation = (centred / spread).T @ (centred / spread) / len(centred)
        scaled = np.linalg.solve(correlation + 1e-3 * np.eye(count), scaled)
    return scaled / spread


def _chosen(positive: Floats, negative: Floats, alpha: float, value: Value) -> _Event:
    """The event of largest value, its rates taken a margin of alpha on the safe side."""
    events = (_one_sided(sign, positive, negative, alpha, value) for sign in (1, -1))
    return max(events, key=lambda event: event.value)


def _one_sided(sign: int, positive: Floats, negative: Floats, alpha: float, value: Value) -> _Event:
    """The best event on one side of a threshold."""
    ahead, behind = np.sort(sign * positive), np.sort(sign * negative)
    scores = np.unique(np.concatenate([ahead, behind]))
    thresholds = (scores + np.append(scores[:1], scores[:-1])) / 2
    true, false = (
        (len(part) - np.searchsorted(part, thresholds)) / len(part) for part in (ahead, behind)
    )
    z = -float(special.ndtri(alpha))
    low = -_wilson(1 - true, len(ahead), z) + 1
    values = value(low, _wilson(false, len(behind), z))
    best = int(np.argmax(values))
    return _Event(sign=sign, threshold=float(thresholds[best]), value=float(values[best]))


def _wilson(rate: Floats, tests: int, z: float) -> Floats:
    """The upper end of Wilson's interval: near enough to Clopper & Pearson's to choose by."""
    middle = rate + z * z / (2 * tests)
    spread = z * np.sqrt(rate * (1 - rate) / tests + (z / (2 * tests)) ** 2)
    return (middle + spread) / (1 + z * z / tests)
