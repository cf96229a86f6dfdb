"""Zeroth-order fine-tuning with privacy at the server: a step releases one number.

z is standard normal, not uniform on the sphere of radius √d: its second moments are the same, and
each coordinate is drawn by itself, so a replay adds nothing up whose order could change the bits.

Symbols: θ parameters (d,), z public direction (d,), ρ length of the probe, x a record, L its loss,
C clip, q sampling rate, N records, η step size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from accountants import Ledger
from accountants.base import checked_delta
from dpmech import Mechanism, NoDominatingPair, Noise, PrivacyPlan, Sampling, Sensitivity
from dpmech.discrete import DiscreteNoise
from dpmech.guarantee import Guarantee
from dpmech.noise import Floats, checked_positive
from fl_integration.accounting import RELATION, SLACK, check_same, ledger_epsilon
from fl_integration.clipping import ROUNDING_MARGIN
from fl_integration.config import checked_whole
from fl_integration.sampler import Randomness, poisson_cohort

Losses = Callable[[Tensor, NDArray[np.int64]], Tensor]

_DIRECTION = 4  # a key of its own, after those of the sampler's streams


@dataclass(frozen=True, kw_only=True)
class ZerothOrderConfig:
    """Everything a zeroth-order run is told besides its data, its model and its privacy.

    Arguments:
        rate: q in (0, 1], the probability of each record in each step. steps: T.
        clip: C > 0, bound on one record's difference quotient, in units of loss per unit of z.
        rho: ρ > 0, how far θ is probed along z. lr: η >= 0.
        seed: gives the directions, which are public; 0 is a seed.
        noise_seed: **experiments only**; ``None`` takes cohort and noise from the operating system.
        batch: records a call of the losses; see `train_zeroth_order` before raising it.

    Raises:
        ValueError: on a value outside its range.

    Source: mathematics.md §8.
    """

    rate: float
    steps: int
    clip: float
    lr: float
    rho: float = 1e-3
    seed: int = 0
    noise_seed: int | None = None
    batch: int = 1

    def __post_init__(self) -> None:
        """Refuse every value that the loop could not honour."""
        Sampling(rate=self.rate)  # refuses a rate outside its range
        for name in ("clip", "rho"):
            checked_positive(name, getattr(self, name))
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise ValueError(f"Expected lr={self.lr} to be a finite number, 0 or above.")
        for name, least in (("steps", 1), ("batch", 1), ("seed", 0)):
            checked_whole(name, getattr(self, name), least=least)
        if self.noise_seed is not None:
            checked_whole("noise_seed", self.noise_seed, least=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class ZerothOrderResult:
    """What a run gives: all of it may be published, if its noise was not seeded.

    theta: (d,) fp64. releases: (T,) the noised sums. ledger: the mechanisms that ran. epsilon: what
    they cost at ``delta``, a proved upper bound (inf where it is out of reach). config: of the run.
    """

    theta: Tensor
    releases: Floats
    ledger: Ledger
    epsilon: float
    delta: float
    config: ZerothOrderConfig


def zeroth_order_mechanism(config: ZerothOrderConfig, noise: Noise) -> Mechanism:
    """The mechanism that one step of a configuration runs: a scalar sum of clipped numbers.

    **Guarantees**: the sensitivity is the clip and the rate the configuration's; only a law with a
    proved pair for a real-valued scalar comes back.

    Arguments:
        config: clip and rate. noise: the law of the noise on the *sum*, in the sum's units.

    Raises:
        NoDominatingPair: from a law without a pair, and from one on the whole numbers.
        ValueError: for a guarantee in the place of a noise.

    >>> from dpmech import Laplace
    >>> config = ZerothOrderConfig(rate=0.01, steps=100, clip=2.0, lr=0.1)
    >>> zeroth_order_mechanism(config, Laplace(b=4.0)).sensitivity.bound
    2.0
    """
    if isinstance(noise, Guarantee):
        raise ValueError(f"Expected a noise to add, got the guarantee {noise}; name a law.")
    if isinstance(noise, DiscreteNoise):
        raise NoDominatingPair(
            f"{noise} protects whole numbers only, and a sum of differences is none.",
            "Use a law with a density, such as gaussian or laplace.",
        )
    mechanism = Mechanism(
        noise=noise,
        sensitivity=Sensitivity(norm="l2", bound=config.clip, dim=1),
        sampling=Sampling(rate=config.rate),
        relation=RELATION,
    )
    _ = mechanism.pairs()  # raises NoDominatingPair before a single record is read
    return mechanism


def train_zeroth_order(
    losses: Losses,
    theta: Tensor,
    records: int,
    config: ZerothOrderConfig,
    privacy: PrivacyPlan | Noise,
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
    * The denominator is constant; an empty sample releases noise and is paid for.
    * A plan that does not match is refused before a record is read; epsilon comes from the ledger
      of what ran, by PLD. `replayed` gives θ back from the releases, bit for bit.

    ``losses`` must give a record the same number in whatever company. With ``batch=1`` it sees one
    record at a time. Above, the *rounding* of a kernel may depend on the other rows (padding, size
    of the batch): divided by 2ρ and summed over a sample it can exceed the margin. Raise it only
    for models whose rows are computed to the same bits, or for experiments. Not covered: time, and
    attacks on the floating-point representation of the noise.

    Arguments:
        losses: (θ (d,) fp64, rows (n,)) -> (n,), the loss of each of these records; it keeps no
            state and does not write to θ. All calls of one probe get the same θ object.
        theta: (d,) the start; public. records: N, public.
        privacy: a plan, or the law of the noise on the sum. delta: for a law; a plan has its own.

    Raises:
        ValueError: on a mismatch, with both values. NoDominatingPair: from the law.

    Source: mathematics.md §8.
    """
    checked_whole("records", records, least=1)
    mechanism, delta = _agreed(privacy, config, delta)
    randomness = Randomness(seed=config.seed, secret_seed=config.noise_seed)
    here, releases, ledger = _flat(theta), list[float](), Ledger()
    for step in range(config.steps):
        ledger = ledger.add(mechanism)  # whatever is sampled, nobody at all included
        z = direction(config, step, dim=len(here))
        rows = poisson_cohort(records, rate=config.rate, rng=randomness.cohort(step))
        terms = clipped_differences(losses, here, z, rows, config)
        drawn = mechanism.noise.sample((1,), randomness.noise(step))
        releases.append(math.fsum(terms) + float(drawn[0]))  # the one number that leaves a step
        here = _moved(here, z, releases[-1], config, records=records)
    return ZerothOrderResult(
        theta=here,
        releases=np.asarray(releases),
        ledger=ledger,
        epsilon=ledger_epsilon(ledger, accountant="pld", delta=delta),
        delta=delta,
        config=config,
    )


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
        here = _moved(here, z, released, config, records=records)
    return here


def direction(config: ZerothOrderConfig, step: int, *, dim: int) -> Tensor:
    """The public direction z (d,) of a step: standard normal, from (seed, step) alone."""
    key = np.random.SeedSequence(config.seed, spawn_key=(_DIRECTION, step))
    return torch.from_numpy(np.random.default_rng(key).standard_normal(dim))


def clipped_differences(
    losses: Losses, theta: Tensor, z: Tensor, rows: NDArray[np.int64], config: ZerothOrderConfig
) -> Floats:
    """The difference quotient along z of each row's loss, (n,).

    **Guarantees**: each in [−C, C] whatever the losses are; one that is not finite becomes 0
    *before* the clip, which would make C of an infinite one.
    """
    move = config.rho * z
    ahead = _losses(losses, theta + move, rows, config.batch)
    behind = _losses(losses, theta - move, rows, config.batch)
    with np.errstate(all="ignore"):  # inf − inf, overflow: replaced below
        quotients = (ahead - behind) / (2 * config.rho)
    limit = config.clip * (1.0 - ROUNDING_MARGIN)
    return np.clip(np.where(np.isfinite(quotients), quotients, 0.0), -limit, limit)


def _losses(losses: Losses, probe: Tensor, rows: NDArray[np.int64], batch: int) -> Floats:
    """The losses of some rows at one probe, at most ``batch`` rows a call."""
    found = np.zeros(len(rows))
    with torch.no_grad():
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            values = losses(probe, part)
            if values.shape != (len(part),):
                raise ValueError(
                    f"Expected {len(part)} losses, one a record, got shape {tuple(values.shape)}."
                )
            found[first : first + batch] = values.detach().to("cpu", torch.float64).numpy()
    return found


def _moved(
    theta: Tensor, z: Tensor, released: float, config: ZerothOrderConfig, *, records: int
) -> Tensor:
    """θ after a step; divided by the *expected* sample, for the realised one is secret."""
    return theta - (config.lr * released / (config.rate * records)) * z


def _check_plan(plan: PrivacyPlan, config: ZerothOrderConfig) -> None:
    """Refuse a plan that was made for another run, or whose noise does not keep its ε."""
    planned = plan.mechanism
    for name, got, wanted in (
        ("norm", planned.sensitivity.norm, "l2"),
        ("dim", planned.sensitivity.dim, 1),
        ("sensitivity bound", planned.sensitivity.bound, config.clip),
        ("sampling", planned.sampling, Sampling(rate=config.rate)),
        ("relation", planned.relation, RELATION),
        ("steps", plan.steps, config.steps),
    ):
        check_same(name, got, wanted)
    ledger = Ledger().add(zeroth_order_mechanism(config, planned.noise), plan.steps)
    found = ledger_epsilon(ledger, accountant="pld", delta=plan.target.delta)
    if not found <= plan.target.epsilon * (1 + SLACK):
        raise ValueError(
            f"Expected {planned.noise} to keep {plan.target}, got epsilon={found}; make another."
        )


def _agreed(
    privacy: PrivacyPlan | Noise, config: ZerothOrderConfig, delta: float | None
) -> tuple[Mechanism, float]:
    """The mechanism of a step, and the δ of the report: the plan's own, or the one given."""
    if not isinstance(privacy, PrivacyPlan):
        if delta is None:
            raise ValueError("Expected delta=None to be a number in (0, 1) beside a noise.")
        return zeroth_order_mechanism(config, privacy), checked_delta(delta)
    if delta not in (None, privacy.target.delta):
        raise ValueError(f"Expected delta={delta} to be the plan's, {privacy.target.delta}.")
    _check_plan(privacy, config)
    return zeroth_order_mechanism(config, privacy.mechanism.noise), privacy.target.delta


def _flat(theta: Tensor) -> Tensor:
    """θ in fp64, where small steps do not vanish, and detached."""
    if theta.ndim != 1 or not len(theta):
        raise ValueError(f"Expected theta to be one vector, got shape {tuple(theta.shape)}.")
    return theta.detach().to("cpu", torch.float64, copy=True)
