"""Cells of the privacy loss: masses under P and Q, with bounds on every rounding error.

Symbols: ``P``, ``Q`` the dominating pair, ``l`` privacy loss ln dP/dQ, ``q`` sampling rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from dpmech.errors import NoDominatingPair
from dpmech.noise import Floats, Noise

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """A partition of the outcomes into cells on which the loss varies little; shape (n,) each.

    The cells come in no order. ``loss`` is ln(P-mass / Q-mass) of the cell (inf where Q has no
    mass, -inf where P has none), and the loss of its outcomes lies in [``low``, ``high``].
    Rounding: ``error`` bounds the relative error of both masses; ``loss_error``, ``low_error`` and
    ``high_error`` the absolute errors of the three losses. ``interval`` says which interval between
    the edges asked for a cell stems from, -1 for one that cannot be cut finer.
    """

    log_p: Floats
    log_q: Floats
    loss: Floats
    low: Floats
    high: Floats
    error: Floats
    loss_error: Floats
    low_error: Floats
    high_error: Floats
    interval: NDArray[np.int64]

    @classmethod
    def bounded(
        cls,
        log_p: Floats,
        log_q: Floats,
        bounds: tuple[Floats, Floats],
        error: Floats,
        bound_errors: tuple[Floats, Floats],
    ) -> Cells:
        """The intervals between edges, by their masses and the (low, high) of their losses."""
        low, high = bounds
        # Of a cell whose masses are below what doubles hold, only the bounds of its loss are known.
        empty = np.isneginf(log_p) | np.isneginf(log_q)
        with np.errstate(invalid="ignore"):
            loss = np.where(empty, low, np.clip(log_p - log_q, low, high))
            rounding = 2 * error + 4 * EPS * np.abs(loss)
        return cls(
            log_p=log_p,
            log_q=log_q,
            loss=loss,
            low=low,
            high=high,
            error=error,
            loss_error=np.where(empty, np.inf, rounding),
            low_error=bound_errors[0],
            high_error=bound_errors[1],
            interval=np.arange(len(low)),
        )

    def reversed(self) -> Cells:
        """The cells of the pair (Q, P)."""
        return Cells(
            log_p=self.log_q,
            log_q=self.log_p,
            loss=-self.loss,
            low=-self.high,
            high=-self.low,
            error=self.error,
            loss_error=self.loss_error,
            low_error=self.high_error,
            high_error=self.low_error,
            interval=self.interval,
        )

    def mixed(self, rate: float) -> Cells:
        """The cells of ((1-q) Q + q P, Q): every loss l becomes ln(1 + q (e^l - 1))."""
        loss, loss_error = mixed_loss(self.loss, self.loss_error, rate)
        low, low_error = mixed_loss(self.low, self.low_error, rate)
        high, high_error = mixed_loss(self.high, self.high_error, rate)
        log_p = np.logaddexp(np.log1p(-rate) + self.log_q, np.log(rate) + self.log_p)
        return Cells(
            log_p=log_p,
            log_q=self.log_q,
            loss=loss,
            low=low,
            high=high,
            error=self.error + 8 * EPS * (1 + np.abs(np.maximum(log_p, -750.0))),
            loss_error=loss_error,
            low_error=low_error,
            high_error=high_error,
            interval=self.interval,
        )

    def where(self, kept: NDArray[np.bool_]) -> Cells:
        """Those of the cells that ``kept`` says."""
        return Cells(**{name: values[kept] for name, values in vars(self).items()})

    def followed_by(self, other: Cells) -> Cells:
        """These cells and then the others."""
        both = {n: np.concatenate([v, getattr(other, n)]) for n, v in vars(self).items()}
        return Cells(**both)


def cell_without_q(mass: float) -> Cells:
    """One cell of the given P-mass on which Q has none."""
    with np.errstate(divide="ignore"):
        log_p = np.log(np.array([mass]))
    nothing, infinite = np.zeros(1), np.array([np.inf])
    return Cells(
        log_p=log_p,
        log_q=-infinite,
        loss=infinite,
        low=infinite,
        high=infinite,
        error=np.array([8 * EPS * (1 + np.abs(np.maximum(log_p[0], -750.0)))]),
        loss_error=nothing,
        low_error=nothing,
        high_error=nothing,
        interval=np.array([-1]),
    )


def mixed_loss(loss: Floats, error: Floats, rate: float) -> tuple[Floats, Floats]:
    """ln(1 + q (e^l - 1)) and a bound on its error, for losses l with the given errors."""
    with np.errstate(over="ignore", invalid="ignore"):
        change = rate * np.expm1(np.minimum(loss, 700.0))
        mixed = np.where(loss > 700.0, loss + np.log(rate), np.log1p(np.maximum(change, -1.0)))
        # The slope q e^l / (1 + q (e^l - 1)) is 1 at most; over an error e it grows by e^e.
        slope = or_zero(np.exp(np.minimum(np.log(rate) + loss - mixed + error, 0.0)))
        rounding = np.abs(mixed) + np.abs(change) * np.exp(-np.minimum(mixed, 700.0))
    return mixed, np.where(np.isfinite(mixed), slope * error + 4 * EPS * or_zero(rounding), 0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class CellMasses:
    """Masses of the cells (-inf, l0], (l0, l1], …, (ln, inf) of the privacy loss.

    ``log_p`` and ``log_q`` are their logarithms under P and Q (the first cell's q includes Q-mass
    where P has none, loss -inf; the last cell's p excludes the infinite mass), ``error`` bounds the
    relative rounding error of the masses, and ``loss_error`` how far true losses may lie outside
    the levels.
    """

    log_p: Floats
    log_q: Floats
    error: Floats
    loss_error: float

    @property
    def p(self) -> Floats:
        """The masses under P."""
        return np.exp(self.log_p)


@dataclass(frozen=True, kw_only=True, eq=False)
class LogMasses:
    """ln of cell masses under P and Q, and their relative errors."""

    p: Floats
    q: Floats
    error: Floats

    def followed_by(self, other: LogMasses) -> LogMasses:
        return LogMasses(
            p=np.concatenate([self.p, other.p]),
            q=np.concatenate([self.q, other.q]),
            error=np.concatenate([self.error, other.error]),
        )

    def plus(self, other: LogMasses) -> LogMasses:
        """The union of cells pairwise."""
        pairs = (np.stack([getattr(self, n), getattr(other, n)], 1).ravel() for n in "pq")
        error = np.stack([self.error, other.error], 1).ravel()
        p, q = pairs
        both = LogMasses(p=p, q=q, error=error)
        return both.collected(np.arange(0, len(p), 2))

    def collected(self, starts: NDArray[np.int64]) -> LogMasses:
        """Runs of cells joined; an error counts by the mass it belongs to."""
        p, q = np.logaddexp.reduceat(self.p, starts), np.logaddexp.reduceat(self.q, starts)
        run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(self.p))))
        with np.errstate(invalid="ignore"):  # -inf - -inf: empty cells err by nothing
            p_error = np.add.reduceat(or_zero(self.error * np.exp(self.p - p[run])), starts)
            q_error = np.add.reduceat(or_zero(self.error * np.exp(self.q - q[run])), starts)
        return LogMasses(p=p, q=q, error=np.minimum(1.0, np.maximum(p_error, q_error)))


def or_zero(values: Floats) -> Floats:
    return np.where(np.isnan(values), 0.0, values)


def interval_mass(noise: Noise, a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """ln of the mass of (a, b] and a bound on its relative error, from log-survival differences."""
    right, right_error = tail_difference(noise, np.maximum(a, 0.0), np.maximum(b, 0.0))
    left, left_error = tail_difference(noise, np.maximum(-b, 0.0), np.maximum(-a, 0.0))
    mass = np.logaddexp(right, left)
    with np.errstate(invalid="ignore"):
        error = right_error * np.exp(right - mass) + left_error * np.exp(left - mass)
    return mass, or_zero(error)


def tail_difference(noise: Noise, a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """ln P(a < X <= b) for 0 <= a <= b, and the relative error of that difference."""
    upper = noise.logsf(a)
    with np.errstate(invalid="ignore", divide="ignore"):
        drop = np.where(b > a, np.minimum(noise.logsf(b) - upper, 0.0), 0.0)
        drop = or_zero(drop)
        mass = upper + np.log(-np.expm1(drop))
        error = 8 * EPS * (1 + np.abs(upper)) / np.minimum(np.abs(drop), 1.0)
    return mass, np.where(drop < 0, np.minimum(or_zero(error), 1.0), 0.0)


class WithoutGrid:
    """Pairs that only the PLD accountant takes: they have cells, but none between given losses."""

    def _refused(self) -> NoReturn:
        raise NoDominatingPair(
            f"{type(self).__name__} has no masses between given levels of the loss.",
            "Use accountant='pld'.",
        )

    def loss_range(self, tail: float) -> tuple[float, float]:
        self._refused()

    def masses(self, levels: Floats) -> CellMasses:
        self._refused()

    def atoms(self) -> tuple[float, ...]:
        return ()
