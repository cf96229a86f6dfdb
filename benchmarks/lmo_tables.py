"""What the published LMO parameter sets are worth: the tables of lmo_worth.py, one a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from accountants import PLD, RDP, calibrate
from accountants.limits import lower_epsilon_vector
from accountants.rdp import last_valid_order, lmo_published_epsilon
from dpmech import (
    LMO,
    LMO_PRESETS,
    Gaussian,
    Laplace,
    Mechanism,
    Noise,
    Sampling,
    Sensitivity,
    Staircase,
    Target,
    Unattainable,
)
from optimizer_search import Cost, SearchProblem, certified, search, search_lmo_grid
from optimizer_search.closed_forms import baselines
from optimizer_search.laplace_mixture import laplace_mixture_candidates, laplace_threshold
from optimizer_search.lmo_continuous import lmo_candidates

DELTA, GAMMA = 1e-10, 0.9
# SST-2 in the paper: batches of 2048 of 67 350 examples, 192 steps; and a small adapter.
RATE, STEPS, DIM = 2048 / 67_350, 192, 4096

Row = list[str]


def number(value: float, digits: int = 4) -> str:
    """Four figures, without an exponent where that is readable."""
    return f"{value:.{digits}g}" if value < 1e4 else f"{value:.0f}"


def drawn(law: LMO) -> LMO:
    """What the published sampler draws: it passes the rate of E for its mean."""
    return replace(law, rate=1 / law.rate)


def table(head: str, rows: list[Row]) -> str:
    """Markdown."""
    line = "|" + "---|" * len(head.split(" | "))
    return "\n".join([f"| {head} |", line, *("| " + " | ".join(row) + " |" for row in rows)])


def sets() -> str:
    """Claims and truths of one scalar release."""
    head = (
        "set | published code (order; last valid) | valid orders | exact: as accounted | as drawn"
    )
    return table(head, [set_row(name) for name in LMO_PRESETS])


def set_row(name: str) -> Row:
    """One published set: claims and truths."""
    law = LMO_PRESETS[name]
    claimed, order = lmo_published_epsilon(law, DELTA, check_domain=False)
    valid, _ = lmo_published_epsilon(law, DELTA)
    pure = [x.pure_epsilon(1.0) for x in (law, drawn(law))]
    orders = f"{number(claimed)} ({order}; {last_valid_order(law)})"
    return [name, orders, number(valid), *(number(x) for x in pure)]


def vectors() -> str:
    """The sets on a clipped vector, over a whole training."""
    head = (
        f"set, noise | scalar, exact | d = {DIM}: proved to be in | d → ∞ | "
        "one release, d → ∞ | the Gaussian as private: σ | the noise's own standard deviation"
    )
    return table(head, [row for name in LMO_PRESETS for row in vector_rows(name)])


def vector_rows(name: str) -> Iterator[Row]:
    """As accounted, and as drawn."""
    law = LMO_PRESETS[name]
    for how, noise in (("as accounted", law), ("as drawn", drawn(law))):
        yield [
            f"{name}, {how}",
            *(x if isinstance(x, str) else number(x) for x in _vector(noise)),
        ]


def _vector(noise: LMO) -> Iterator[float | str]:
    yield PLD().compose(_training(noise, 1), STEPS).epsilon(DELTA)
    low = lower_epsilon_vector(_training(noise, DIM), STEPS, DELTA)
    high = RDP().compose(_training(noise, DIM), STEPS).epsilon(DELTA)
    yield f"{number(low)} … {number(high)}"
    limit = Gaussian(sigma=noise.fisher_information**-0.5)
    yield PLD().compose(_training(limit, 1), STEPS).epsilon(DELTA)
    yield PLD().compose(Mechanism(noise=limit)).epsilon(DELTA)
    # At this sigma the Gaussian costs the lower bound: whatever the truth is, it needs no more.
    target = Target(epsilon=low, delta=DELTA)
    plan = calibrate(limit, target, steps=STEPS, sampling=Sampling(rate=RATE))
    yield plan.mechanism.noise.std
    yield noise.std


def _training(noise: Noise, dim: int) -> Mechanism:
    sensitivity = Sensitivity(norm="l2", dim=dim)
    return Mechanism(noise=noise, sensitivity=sensitivity, sampling=Sampling(rate=RATE))


def gaussians() -> str:
    """The Gaussian that was compared with, and the one that it should have been."""
    head = (
        "ε | σ = √(2 ln(1.25/δ))/ε | its true ε | tight σ | variance of the first, over the "
        "second | Laplace's standard deviation | the set's: as accounted | as drawn"
    )
    return table(head, [gaussian_row(name) for name in LMO_PRESETS])


def gaussian_row(name: str) -> Row:
    """At one published epsilon."""
    epsilon, law = float(name), LMO_PRESETS[name]
    classic = math.sqrt(2 * math.log(1.25 / DELTA)) / epsilon
    true = PLD().compose(Mechanism(noise=Gaussian(sigma=classic))).epsilon(DELTA)
    plan = calibrate(Gaussian(sigma=classic), Target(epsilon=epsilon, delta=DELTA))
    tight = plan.mechanism.noise.std
    own = (Laplace(b=1 / epsilon).std, law.std, drawn(law).std)
    values = (classic, true, tight, (classic / tight) ** 2, *own)
    return [name, *(number(x) for x in values)]


def equal() -> str:
    """The sets against Laplace noise of the same pure epsilon."""
    head = "set | ε | E\\|X\\|: set | Laplace | P(\\|X\\| ≤ .9): set | Laplace"
    rows: list[Row] = []
    for name, law in LMO_PRESETS.items():
        laplace = Laplace(b=1 / law.pure_epsilon(1.0))
        lengths = [x.mean_abs for x in (law, laplace)]
        useful = [x.usefulness(GAMMA) for x in (law, laplace)]
        rows.append([name, *(number(x) for x in (1 / laplace.b, *lengths, *useful))])
    return table(head, rows)


def papers(
    epsilon: float, accounting: Any = "exact", cost: str = "usefulness:0.9"
) -> SearchProblem:
    """The paper's own problem."""
    target = Target(epsilon=epsilon, delta=DELTA)
    return SearchProblem(target=target, cost=Cost.parse(cost), accounting=accounting)


def searches() -> str:
    """P(|X| <= .9) at the paper's own problem."""
    head = (
        "ε | grid: paper's bound | continuous: paper's bound | grid: exact | continuous: exact | "
        "best of all mixtures | Laplace | best staircase | best of all laws: found | at most"
    )
    return table(head, [search_row(float(name)) for name in LMO_PRESETS])


def search_row(epsilon: float) -> Row:
    """At one published epsilon."""
    exact, paper = papers(epsilon), papers(epsilon, "paper")
    *_, by_bound = lmo_candidates(paper)
    *_, free = lmo_candidates(exact)
    *_, mixture = laplace_mixture_candidates(exact)
    found = (free, mixture, Laplace(b=1.0))
    proved = [
        _on_grid(exact),
        *(1 - certified(exact, law).cost for law in found),
        best_staircase(epsilon).usefulness(GAMMA),
    ]
    best, most = _best_of_all(exact)
    best = max(best, *(x for x in proved if x is not None))
    useful = [_on_grid(paper), by_bound.usefulness(GAMMA), *proved, best, most]
    return [number(epsilon), *("—" if x is None else number(x, 5) for x in useful)]


def _on_grid(problem: SearchProblem) -> float | None:
    try:
        return 1 - search_lmo_grid(problem).cost
    except Unattainable:
        return None


def best_staircase(epsilon: float) -> Staircase:
    """The epsilon-DP staircase of the largest usefulness."""
    laws = (Staircase(epsilon=epsilon, width=1.0, gamma=g) for g in np.linspace(0.01, 0.99, 99))
    return max(laws, key=lambda law: law.usefulness(GAMMA))


def _best_of_all(problem: SearchProblem) -> tuple[float, float | None]:
    """Usefulness of the best law that is found, closed forms included; what any has at most."""
    result = search(problem, "single-release")
    return 1 - result.cost, None if result.bound is None else 1 - result.bound.value


def mixtures() -> str:
    """E|X| where mixtures begin to help."""
    head = "ε | Laplace | best LMO | best of all mixtures | staircase, the best of all laws"
    rows: list[Row] = []
    for epsilon in (1.0, 3.0, 3.8, 4.0, 5.0, 7.0, 10.0):
        problem = papers(epsilon, cost="l1")
        *_, lmo = lmo_candidates(problem)
        *_, mixture = laplace_mixture_candidates(problem)
        costs = [certified(problem, law).cost for law in (Laplace(b=1.0), lmo, mixture)]
        staircase = Staircase.least_mean_abs(epsilon).mean_abs
        rows.append([number(epsilon), *(number(x) for x in (*costs, staircase))])
    return table(head, rows)


def composed() -> str:
    """Least variance of sampled and composed scalar releases."""
    head = "q | T | δ | ε | Gaussian | Laplace | best LMO | best of all mixtures | best closed form"
    regimes = ((1.0, 10, 1e-6, 2.8274), (0.01, 1000, 1e-5, 1.6889), (0.01, 1000, 1e-5, 8.0))
    rows = [composed_row(*regime) for regime in (*regimes, (1e-3, 100, 1e-8, 2.0))]
    return table(head, rows)


def composed_row(rate: float, steps: int, delta: float, epsilon: float) -> Row:
    """One regime."""
    problem = SearchProblem(
        target=Target(epsilon=epsilon, delta=delta),
        steps=steps,
        sampling=Sampling(rate=rate),
        cost=Cost(name="variance"),
    )
    *_, lmo = lmo_candidates(problem)
    *_, mixture = laplace_mixture_candidates(problem)
    laws = (Gaussian(sigma=1.0), Laplace(b=1.0), lmo, mixture)
    best = baselines(problem)[0]
    costs = [number(certified(problem, law).cost) for law in laws]
    start = (number(rate), str(steps), f"{delta:g}", number(epsilon, 5))
    return [*start, *costs, f"{number(best.cost)} ({best.family})"]


def thresholds() -> str:
    """Up to which epsilon Laplace is the best mixture."""
    costs = (
        "l1",
        "variance",
        "usefulness:0.25",
        "usefulness:0.5",
        "usefulness:0.9",
        "usefulness:1",
    )
    at = [laplace_threshold(Cost.parse(cost)) for cost in costs]
    head = "cost | E\\|X\\| | variance | " + " | ".join(
        f"P(\\|X\\| > {cost.partition(':')[2]})" for cost in costs[2:]
    )
    return table(head, [["ε", *("every ε" if math.isinf(e) else number(e) for e in at)]])


def advantage_of_mixtures(epsilon: float) -> float:
    """How much cheaper than Laplace, relatively, any mixture may be at DELTA (usefulness), at most.

    Weak duality: for a law with H_(e^epsilon) <= delta, the event |x| <= r says that the mean of
    A(U) = 1 - e^(-Ur) - e^(epsilon - U) sinh(Ur) is delta at most; so for any multiplier the cost
    is at least the least over u of c(u) + multiplier (A(u) - delta).
    """
    u = np.geomspace(1e-4, 1e3, 200_001)
    best = 0.0
    for r in np.geomspace(1e-6, 1e-4, 41):
        event = -np.expm1(-u * r) - np.exp(epsilon - u) * np.sinh(u * r)
        multiplier = GAMMA * math.exp(-GAMMA * epsilon) / (epsilon * r)
        best = max(best, float(np.min(np.exp(-GAMMA * u) + multiplier * (event - DELTA))))
    return 1 - best * math.exp(GAMMA * epsilon)


TABLES: dict[str, Callable[[], str]] = {
    one.__name__: one
    for one in (sets, vectors, gaussians, equal, searches, thresholds, mixtures, composed)
}
