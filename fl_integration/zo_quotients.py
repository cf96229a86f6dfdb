"""Difference quotients along a public direction, clipped so that company cannot add to them.

A record's loss is computed beside those of others, and a kernel may round it differently for that.
If no loss is off by more than e, a quotient is off by (e₊ + e₋)/2ρ at most, and two neighbours'
sums over the records that they share differ by at most N·(e₊ + e₋)/ρ. The limit of the clip is C
less that, and less what the rounding of the sum may add, so the sum moves by C at most.

Symbols: θ parameters (d,), z public direction (d,), ρ length of the probe, C clip, N records,
e bound on the error of a loss, u unit roundoff of fp64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmech.noise import Floats
from fl_integration.clipping import ROUNDING_MARGIN
from fl_integration.zo_config import ZerothOrderConfig

Losses = Callable[[Tensor, NDArray[np.int64]], Tensor]

_DIRECTION = 4  # a key of its own, after those of the sampler's streams
_UNIT = 2.0**-53
LARGEST_SHARE = 0.01  # of the clip, given up at the start for what company may do


@runtime_checkable
class CompanyBound(Protocol):
    """Losses that know how far rounding, whatever it depends on, can take them."""

    def error(self, theta: Tensor) -> float:
        """e >= 0: no record's computed loss at θ is further than this from the exact one."""
        ...


@dataclass(frozen=True)
class BoundedLosses:
    """Losses with a bound that the caller vouches for; 0: the same bits in whatever company."""

    losses: Losses
    bound: float = 0.0

    def __call__(self, theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """The losses."""
        return self.losses(theta, rows)

    def error(self, theta: Tensor) -> float:
        """The bound, at every θ."""
        del theta
        return self.bound


def direction(config: ZerothOrderConfig, step: int, *, dim: int) -> Tensor:
    """The public direction z (d,) of a step: standard normal, from (seed, step) alone."""
    key = np.random.SeedSequence(config.seed, spawn_key=(_DIRECTION, step))
    return torch.from_numpy(np.random.default_rng(key).standard_normal(dim))


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """The two points θ ± ρz of a step, all of them public."""

    ahead: Tensor
    behind: Tensor

    @classmethod
    def at(cls, theta: Tensor, z: Tensor, rho: float) -> Probe:
        """The probe of length ρ along z at θ."""
        return cls(ahead=theta + rho * z, behind=theta - rho * z)

    def limit(self, losses: Losses, config: ZerothOrderConfig, *, records: int) -> float:
        """The clip less what rounding may add to the change of a sum; 0 where it may add all.

        **Guarantees**: a function of public values only; clipped to it, the sums of neighbours of
        N <= 4·10^6 records differ by at most C, in whatever batches they were computed.
        """
        limit = config.clip * (1.0 - ROUNDING_MARGIN)
        if config.batch == 1:  # no company at all
            return limit
        if not isinstance(losses, CompanyBound):
            raise ValueError(
                f"Expected batch={config.batch} to be 1 for losses without a bound on what company"
                " does to their rounding; wrap them in BoundedLosses, or leave it at 1."
            )
        error = losses.error(self.ahead) + losses.error(self.behind)
        rounding = (
            error / config.rho + 5 * _UNIT * config.clip
        )  # of the difference and its quotient
        return max(0.0, limit - records * rounding) if error else limit


def check_share(losses: Losses, theta: Tensor, config: ZerothOrderConfig, *, records: int) -> None:
    """Refuse a batch whose rounding would take more than a hundredth of the clip at the start.

    Raises:
        ValueError: with the share, and what to raise or lower.
    """
    z = direction(config, 0, dim=len(theta))
    limit = Probe.at(theta, z, config.rho).limit(losses, config, records=records)
    share = 1.0 - limit / config.clip
    if share > LARGEST_SHARE:
        raise ValueError(
            f"Expected rho={config.rho} and clip={config.clip} to leave {LARGEST_SHARE:.0%} of the"
            f" clip at most to rounding in company, got {share:.3g} of it for {records} records;"
            " raise rho or the clip, or set batch=1."
        )


def clipped_differences(
    losses: Losses,
    probe: Probe,
    rows: NDArray[np.int64],
    config: ZerothOrderConfig,
    *,
    limit: float,
) -> Floats:
    """The difference quotient along z of each row's loss, (n,).

    **Guarantees**: each in [−limit, limit] whatever the losses are; one that is not finite becomes
    0 *before* the clip, which would make C of an infinite one.
    """
    ahead = _losses(losses, probe.ahead, rows, config.batch)
    behind = _losses(losses, probe.behind, rows, config.batch)
    with np.errstate(all="ignore"):  # inf − inf, overflow: replaced below
        quotients = (ahead - behind) / (2 * config.rho)
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
