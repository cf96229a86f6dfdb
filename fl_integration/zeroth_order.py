"""Zeroth-order fine-tuning with privacy at the server: a step releases one number.

z is standard normal, not uniform on the sphere of radius √d: its second moments are the same, and
each coordinate is drawn by itself, so a replay adds nothing up whose order could change the bits.

Symbols: θ parameters (d,), z public direction (d,), ρ length of the probe, x a record, L its loss,
C clip, q sampling rate, N records, η step size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from accountants import Ledger
from dpmech import Mechanism, Noise, PrivacyPlan
from dpmech.noise import Floats
from fl_integration.accounting import ledger_epsilon
from fl_integration.options import checked_whole
from fl_integration.sampler import Randomness, noise_of, poisson_cohort
from fl_integration.zo_config import ACCOUNTANT, ZerothOrderConfig, agreed, zeroth_order_mechanism
from fl_integration.zo_quotients import (
    BoundedLosses,
    Losses,
    Probe,
    check_share,
    clipped_differences,
    direction,
)

__all__ = [
    "BoundedLosses",
    "Losses",
    "ZerothOrderConfig",
    "ZerothOrderResult",
    "ZerothOrderRun",
    "direction",
    "replayed",
    "train_zeroth_order",
    "zeroth_order_mechanism",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class ZerothOrderResult:
    """What a run gives: all of it may be published, if it was private and its noise not seeded.

    theta: (d,) fp64. releases: (T,) the noised sums. ledger: the mechanisms that ran. epsilon: what
    they cost at ``delta``, a proved upper bound (inf where it is out of reach, and without noise).
    config: of the run.
    """

    theta: Tensor
    releases: Floats
    ledger: Ledger
    epsilon: float
    delta: float | None
    config: ZerothOrderConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class ZerothOrderRun:
    """A run that has been checked and can be taken step by step.

    losses, records, config: as in `train_zeroth_order`. start: θ before the first step, (d,) fp64.
    mechanism: of a step, ``None`` without noise. delta: of the report.
    """

    losses: Losses
    start: Tensor
    records: int
    config: ZerothOrderConfig
    mechanism: Mechanism | None
    delta: float | None

    @classmethod
    def checked(
        cls,
        losses: Losses,
        theta: Tensor,
        records: int,
        config: ZerothOrderConfig,
        privacy: tuple[PrivacyPlan | Noise | None, float | None],
    ) -> ZerothOrderRun:
        """Refuse whatever can be refused before a record is read."""
        checked_whole("records", records, least=1)
        mechanism, delta = None, privacy[1]
        if privacy[0] is not None:
            mechanism, delta = agreed(privacy[0], config, delta)
        start = _flat(theta)
        check_share(losses, start, config, records=records)
        return cls(
            losses=losses,
            start=start,
            records=records,
            config=config,
            mechanism=mechanism,
            delta=delta,
        )

    def released(self, here: Tensor, first: int, last: int) -> tuple[Tensor, list[float]]:
        """θ after the steps first..last−1 from θ before them, and the one number each released."""
        releases: list[float] = []
        for step in range(first, last):
            z = direction(self.config, step, dim=len(here))
            releases.append(self._release(here, z, step))
            here = _moved(here, z, releases[-1], self.config, records=self.records, step=step)
        return here, releases

    def ledger(self) -> Ledger:
        """What all steps cost, taken or burnt: nothing only where there is no noise."""
        return Ledger().add(self.mechanism, self.config.steps) if self.mechanism else Ledger()

    def result(self, theta: Tensor, releases: ArrayLike) -> ZerothOrderResult:
        """The account of a finished run, its ε derived from the ledger."""
        ledger, epsilon = self.ledger(), math.inf
        if self.mechanism is not None and self.delta is not None:
            epsilon = ledger_epsilon(ledger, accountant=ACCOUNTANT, delta=self.delta)
        return ZerothOrderResult(
            theta=theta,
            releases=np.asarray(releases, dtype=np.float64),
            ledger=ledger,
            epsilon=epsilon,
            delta=self.delta,
            config=self.config,
        )

    def _release(self, here: Tensor, z: Tensor, step: int) -> float:
        """The one number that leaves a step."""
        config = self.config
        randomness = Randomness(seed=config.seed, secret_seed=config.noise_seed)
        rows = poisson_cohort(self.records, rate=config.rate, rng=randomness.cohort(step))
        probe = Probe.at(here, z, config.rho)
        limit = probe.limit(self.losses, config, records=self.records)
        terms = clipped_differences(self.losses, probe, rows, config, limit=limit)
        if self.mechanism is None:
            return math.fsum(terms)
        drawn = noise_of(self.mechanism.noise, 1, randomness.noise(step))
        return math.fsum(terms) + float(drawn[0])


def train_zeroth_order(
    losses: Losses,
    theta: Tensor,
    records: int,
    config: ZerothOrderConfig,
    privacy: PrivacyPlan | Noise | None,
    *,
    delta: float | None = None,
) -> ZerothOrderResult:
    """Train a flat vector by differences along public directions, one noised number a step.

    A step draws z and a Poisson sample, releases r = Σ clip((L(θ+ρz;x) − L(θ−ρz;x))/2ρ, ±C) +
    noise, and moves θ ← θ − η·r/(qN)·z.

    **Guarantees**

    * Adding or removing a record moves the sum by at most C, whatever its losses are: a quotient
      that is not finite counts as 0. The clip's margin covers the rounding of the sum, which is
      rounded once, up to four million sampled records.
    * A record's company does not add to that: with ``batch=1`` it has none, and above only losses
      with a bound on its effect are taken, which the limit of the clip makes up for
      (`fl_integration.zo_quotients`).
    * The denominator is constant; an empty sample releases noise and is paid for.
    * A plan that does not match is refused before a record is read; epsilon comes from the ledger
      of what ran, by PLD. `replayed` gives θ back from the releases, bit for bit.

    Not covered: time, and attacks on the floating-point representation of the noise.

    Arguments:
        losses: (θ (d,) fp64, rows (n,)) -> (n,), the loss of each of these records; it keeps no
            state and does not write to θ. All calls of one probe get the same θ object.
        theta: (d,) the start; public. records: N, public.
        privacy: a plan, the law of the noise on the sum, or ``None`` without noise (ε = inf).
        delta: for a law; a plan has its own.

    Raises:
        ValueError: on a mismatch, with both values. NoDominatingPair: from the law.

    Source: mathematics.md §8.
    """
    run = ZerothOrderRun.checked(losses, theta, records, config, (privacy, delta))
    here, releases = run.released(run.start, 0, config.steps)
    return run.result(here, releases)


def replayed(
    theta: Tensor, config: ZerothOrderConfig, releases: ArrayLike, *, records: int
) -> Tensor:
    """Rebuild θ from the start, the public seed and the releases; the first k give θ of step k.

    **Guarantees**: to the bit what `train_zeroth_order` had, on the same release of numpy.

    Raises ValueError for more releases than steps.
    """
    here, sums = _flat(theta), np.asarray(releases, dtype=np.float64)
    checked_whole("records", records, least=1)
    if sums.ndim != 1 or len(sums) > config.steps:
        raise ValueError(f"Expected at most steps={config.steps} releases, got shape {sums.shape}.")
    for step, released in enumerate(sums.tolist()):
        z = direction(config, step, dim=len(here))
        here = _moved(here, z, released, config, records=records, step=step)
    return here


def _moved(
    theta: Tensor, z: Tensor, released: float, config: ZerothOrderConfig, *, records: int, step: int
) -> Tensor:
    """θ after a step; divided by the *expected* sample, for the realised one is secret."""
    return theta - (config.step_size(step) * released / (config.rate * records)) * z


def _flat(theta: Tensor) -> Tensor:
    """θ in fp64, where small steps do not vanish, and detached."""
    if theta.ndim != 1 or not len(theta):
        raise ValueError(f"Expected theta to be one vector, got shape {tuple(theta.shape)}.")
    return theta.detach().to("cpu", torch.float64, copy=True)
