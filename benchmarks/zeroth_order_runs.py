"""Many zeroth-order runs at once for `zeroth_order.py`: same directions and samples, other noise.

The package's loop takes one run at a time. Here the runs of all noises and step sizes, the *arms*,
share every direction and every sample, so their accuracies differ by the noise and by nothing else;
`check` holds this loop against the package's.

Symbols: k coordinates of a feature, K classes, S arms, n texts of a sample, N records, q rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from zeroth_order_data import Problem, Stored, Texts

from accountants import calibrate
from dpmech import Gaussian, Noise, Sampling, Sensitivity, Target
from fl_integration.sampler import Randomness, poisson_cohort
from fl_integration.zeroth_order import ZerothOrderConfig, direction, train_zeroth_order
from fl_integration.zo_head import HeadLosses

Floats = NDArray[np.float64]
Part = tuple[NDArray[np.float32], NDArray[np.int64]]  # features and labels of one record
RHO = 1e-3


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run of many: its step size, and its noise in units of the clip (None: no noise)."""

    name: str
    lr: float
    noise: Noise | None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all arms share."""

    rate: float
    steps: int
    clip: float
    by_user: bool

    def config(self, *, lr: float, seed: int) -> ZerothOrderConfig:
        """The package's configuration of one arm."""
        return ZerothOrderConfig(
            rate=self.rate,
            steps=self.steps,
            clip=self.clip,
            lr=lr,
            rho=RHO,
            schedule="linear",
            seed=seed,
            noise_seed=seed,
            batch=2**20,
        )


def train_arms(problem: Problem, setting: Setting, arms: Sequence[Arm], *, seed: int) -> Floats:
    """The trained heads (k, K, S), one an arm."""
    records = Stored(problem.train, problem.shape, by_user=setting.by_user)
    k, K, S = problem.shape.dim, problem.classes, len(arms)
    config = setting.config(lr=0.0, seed=seed)
    randomness = Randomness(seed=seed, secret_seed=seed)
    W = np.repeat(problem.start.reshape(k, K, 1), S, axis=2).astype(np.float64)
    noise = _noises(arms, setting, seed)
    lr = np.array([arm.lr for arm in arms])
    for step in range(setting.steps):
        z = direction(config, step, dim=k * K).numpy().reshape(k, K)
        rows = poisson_cohort(
            records.records, rate=setting.rate, rng=randomness.cohort(step)
        ).tolist()
        released = noise[step]
        if rows:
            quotients = _quotients([records(row) for row in rows], W, z)
            released = released + np.clip(quotients, -setting.clip, setting.clip).sum(axis=0)
        eta = lr * (1 - step / setting.steps) / (setting.rate * records.records)
        W -= z[:, :, None] * (eta * released)
    return W


def _noises(arms: Sequence[Arm], setting: Setting, seed: int) -> Floats:
    """The noise of every step and arm (T, S)."""
    drawn = np.zeros((setting.steps, len(arms)))
    for s, arm in enumerate(arms):
        if arm.noise is not None:  # arms of one law share its draws
            rng = np.random.default_rng([seed, 77])
            drawn[:, s] = setting.clip * arm.noise.sample((setting.steps,), rng)
    return drawn


def _quotients(parts: Sequence[Part], W: Floats, z: Floats) -> Floats:
    """The difference quotients of records (n, S): means over their texts."""
    x = np.concatenate([part[0] for part in parts]).astype(np.float64)
    y = np.concatenate([part[1] for part in parts])
    k, K, S = W.shape
    base = (x @ W.reshape(k, K * S)).reshape(len(x), K, S)
    along = RHO * (x @ z)[:, :, None]
    each = (_losses(base + along, y) - _losses(base - along, y)) / (2 * RHO)
    if len(each) == len(parts):
        return each
    sizes = np.array([len(part[1]) for part in parts])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.add.reduceat(each, starts, axis=0) / sizes[:, None]


def _losses(logits: Floats, y: NDArray[np.int64]) -> Floats:
    """Cross-entropy (n, S) of logits (n, K, S)."""
    peak = logits.max(axis=1)
    total = np.exp(logits - peak[:, None]).sum(axis=1)
    return peak + np.log(total) - logits[np.arange(len(y)), y]


def accuracies(W: Floats, texts: Texts) -> Floats:
    """The accuracy of every arm's head on some texts, (S,)."""
    x = texts.features.astype(np.float64)
    return np.array(
        [np.mean((x @ W[:, :, s]).argmax(axis=1) == texts.labels) for s in range(W.shape[2])]
    )


def check(problem: Problem, setting: Setting, *, steps: int = 40) -> float:
    """How far θ is from the package's own after a few steps without noise, relatively."""
    short = Setting(rate=setting.rate, steps=steps, clip=setting.clip, by_user=setting.by_user)
    records = Stored(problem.train, problem.shape, by_user=setting.by_user)
    losses = HeadLosses(features=records, classes=problem.classes)
    theta = torch.from_numpy(problem.start.copy())
    result = train_zeroth_order(losses, theta, records.records, short.config(lr=1.0, seed=0), None)
    ours = train_arms(problem, short, [Arm(name="", lr=1.0, noise=None)], seed=0)
    moved = np.linalg.norm(result.theta.numpy() - problem.start)
    return float(np.linalg.norm(result.theta.numpy() - ours.reshape(-1)) / moved)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """DP-SGD on the same head from the same start: whole clipped gradients, Gaussian noise."""

    epsilon: float
    delta: float
    by_user: bool
    cohort: float
    clip: float
    steps: int = 60

    def sigma(self, records: int) -> float:
        """The noise on the sum, calibrated."""
        plan = calibrate(
            Gaussian(sigma=1.0),
            Target(epsilon=self.epsilon, delta=self.delta),
            steps=self.steps,
            sampling=Sampling(rate=self.cohort / records),
            sensitivity=Sensitivity(bound=self.clip, dim=2),
        )
        return plan.mechanism.noise.std

    def train(self, problem: Problem, *, lr: float, seed: int) -> Floats:
        """The trained head (k, K, 1), the mean over the last half of the steps."""
        records = Stored(problem.train, problem.shape, by_user=self.by_user)
        sigma, rng = self.sigma(records.records), np.random.default_rng([seed, 5])
        W = problem.start.reshape(problem.shape.dim, problem.classes).copy()
        mean = np.zeros_like(W)
        for step in range(self.steps):
            rows = poisson_cohort(records.records, rate=self.cohort / records.records, rng=rng)
            parts = [records(row) for row in rows.tolist()]
            total = clipped_gradients(parts, W, self.clip) if parts else np.zeros_like(W)
            W = W - lr / self.cohort * (total + sigma * rng.standard_normal(W.shape))
            mean += W * (step >= self.steps // 2) / (self.steps - self.steps // 2)
        return mean[:, :, None]


def clipped_gradients(parts: Sequence[Part], W: Floats, clip: float) -> Floats:
    """The sum (k, K) of the records' gradients, each of norm C at most."""
    x = np.concatenate([part[0] for part in parts]).astype(np.float64)
    y = np.concatenate([part[1] for part in parts])
    logits = x @ W
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    if len(y) == len(parts):  # |x ⊗ p| = |x|·|p|
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(p, axis=1)
        return x.T @ (p * np.minimum(1.0, clip / np.maximum(norms, 1e-300))[:, None])
    total, start = np.zeros_like(W), 0
    for part in parts:
        of = slice(start, start + len(part[1]))
        gradient = x[of].T @ p[of] / len(part[1])
        total += gradient * min(1.0, clip / max(float(np.linalg.norm(gradient)), 1e-300))
        start += len(part[1])
    return total
