"""Second opinion: the numerical composition of the prv-accountant package, fed with our laws.

Method: Gopi, Lee & Wutschitz (2021), "Numerical composition of differential privacy". The package
supplies the domain, the discretiser, the FFT and the error bounds; from here come the masses, the
mean and the Rényi divergences of each privacy loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from accountants.base import Composer, Ledger, checked_delta, checked_epsilon
from accountants.rdp import renyi_divergence
from dpmech import DominatingPair, Mechanism
from dpmech.loss import Direction
from dpmech.noise import Floats

__all__ = ["PRV"]

# Its FFT errs by about 1e-16 absolutely however small delta is (by 1e-19 where numpy's longdouble
# has 80 bits), and its error bound does not count that.
_SMALLEST_DELTA = 1e-10
# Error asked of it in :meth:`PRV.delta`, where no delta is known beforehand.
_DELTA_ERROR = 1e-12
# The package's error in delta, as a share of delta; its own recommendation.
_DELTA_SHARE = 1e-3
# Longest grid: 2^23 cells of 80-bit numbers in several copies are about a gigabyte.
_LARGEST_GRID = 1 << 23
# Orders of its Rényi table, closer than the effect of the best order on a domain's size.
_ORDERS = 1 + np.geomspace(0.05, 100.0, 80)
_DIRECTIONS: tuple[Direction, Direction] = ("remove", "add")


@dataclass(frozen=True, kw_only=True)
class PRV(Composer):
    """Adapter to prv-accountant: its interval for epsilon, over both directions.

    **Guarantees.** Those of the package (Theorem 5.5 of its paper), not proved here: it certifies
    discretisation and truncation, but not the rounding of its FFT, which is why delta below 1e-10
    is refused. Use PLD for a proved bound.

    ``eps_error``: half the least width of its interval, in epsilon; work grows like its inverse.

    >>> from dpmech import Gaussian, Mechanism
    >>> release = Mechanism(noise=Gaussian(sigma=2.0))
    >>> round(PRV(eps_error=0.01).compose(release, 10).epsilon(1e-5), 2)
    7.52
    """

    ledger: Ledger = field(default_factory=Ledger)
    eps_error: float = 2e-3

    def __post_init__(self) -> None:
        if not 0 < self.eps_error <= 1:
            raise ValueError(f"Expected eps_error={self.eps_error} in (0, 1].")

    def compose(self, mechanism: Mechanism, count: int = 1) -> PRV:
        """A new accountant with ``count`` more runs; NoDominatingPair where nothing is proved."""
        mechanism.base_pair()
        return PRV(ledger=self.ledger.add(mechanism, count), eps_error=self.eps_error)

    def epsilon(self, delta: float) -> float:
        """The upper end of the package's interval; inf where the infinite loss exceeds delta."""
        return self.epsilon_interval(delta)[1]

    def lower_epsilon(self, delta: float) -> float:
        """The lower end of the package's interval."""
        return self.epsilon_interval(delta)[0]

    def epsilon_interval(self, delta: float) -> tuple[float, float]:
        """(lower, upper) ends of the package's interval for epsilon at ``delta``."""
        if checked_delta(delta) < _SMALLEST_DELTA:
            raise ValueError(
                f"Expected delta={delta} of {_SMALLEST_DELTA:g} or more: the rounding of "
                "prv-accountant's FFT is not in its bounds; use the PLD accountant."
            )
        error = delta * _DELTA_SHARE
        ends = [_epsilon(loss, delta, error, self.eps_error) for loss in self._composed(error)]
        # Its interval may start below 0, where every mechanism is private.
        lower, upper = ([max(0.0, e[end]) for e in ends] for end in (0, 1))
        return max(lower, default=0.0), max(upper, default=0.0)

    def delta(self, epsilon: float) -> float:
        """The upper end of the package's interval for delta, never below 1e-12."""
        checked_epsilon(epsilon)
        at = epsilon - self.eps_error
        composed = self._composed(_DELTA_ERROR)
        worst = max((float(loss.compute_delta_estimate(at)) for loss in composed), default=None)
        return 0.0 if worst is None else min(1.0, worst + _DELTA_ERROR)

    def _composed(self, delta_error: float) -> list[Any]:
        """The package's discrete law of the composed loss, per direction."""
        runs = self.ledger.collected().entries
        if not runs:
            return []
        counts = [count for _, count in runs]
        sampled = any(mechanism.sampling.rate < 1 for mechanism, _ in runs)
        return [
            _compose([_Loss.of(m, direction) for m, _ in runs], counts, self.eps_error, delta_error)
            for direction in (_DIRECTIONS if sampled else _DIRECTIONS[:1])
        ]


def _package() -> tuple[Any, Any, Any, Callable[..., float]]:
    """(domain, discretisers, composers, compute_safe_domain_size) of prv-accountant."""
    try:
        from prv_accountant import composers, discretisers, domain
        from prv_accountant.accountant import compute_safe_domain_size
    except ImportError as error:
        raise ValueError(
            f"The PRV accountant needs the prv-accountant package ({error}): "
            "pip install 'dpmech[peers]'."
        ) from None
    return domain, discretisers, composers, compute_safe_domain_size


def _compose(
    losses: Sequence[_Loss], counts: list[int], eps_error: float, delta_error: float
) -> Any:
    """What the package's PRVAccountant does, with our masses and means for its quadrature."""
    domain, discretisers, composers, safe_size = _package()
    size = safe_size(losses, counts, eps_error=eps_error, delta_error=delta_error)
    mesh = eps_error / math.sqrt(sum(counts) / 2 * math.log(12 / delta_error))
    if not size / mesh < _LARGEST_GRID / 2:
        raise ValueError(
            f"Expected a grid of at most {_LARGEST_GRID} cells, got {2 * size / mesh:.3g} for "
            f"eps_error={eps_error} and {sum(counts)} runs; raise eps_error or use the PLD "
            "accountant."
        )
    grid = domain.Domain.create_aligned(-size, size, mesh)
    cells = [_Truncated.of(loss, grid) for loss in losses]
    try:
        discrete = [discretisers.CellCentred().discretise(c, grid) for c in cells]
        return composers.Heterogeneous(discrete).compute_composition(counts)
    except RuntimeError as error:
        raise ValueError(
            f"prv-accountant cannot discretise at eps_error={eps_error} ({error}); "
            "use the PLD accountant."
        ) from None


def _epsilon(loss: Any, delta: float, delta_error: float, eps_error: float) -> tuple[float, float]:
    """(lower, upper) by the package; infinite where the infinite mass alone is more than delta."""
    try:
        lower, _, upper = loss.compute_epsilon(delta, delta_error, eps_error)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"prv-accountant found no epsilon at delta={delta} ({error}); use the PLD accountant."
        ) from None
    return float(lower), math.inf if math.isnan(upper) else float(upper)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loss:
    """The privacy loss of one direction, as the package asks for it."""

    mechanism: Mechanism
    direction: Direction
    pair: DominatingPair

    @classmethod
    def of(cls, mechanism: Mechanism, direction: Direction) -> _Loss:
        pairs = mechanism.pairs()
        pair = pairs[min(_DIRECTIONS.index(direction), len(pairs) - 1)]
        return cls(mechanism=mechanism, direction=direction, pair=pair)

    def rdp(self, alpha: float) -> float:
        """Rényi divergence given a finite loss, at most: the package sizes its domain by it."""
        # It grows with the order, so the next order of a table, made at once, is on the safe side.
        at = int(np.searchsorted(_ORDERS, alpha))
        if at < len(_ORDERS):
            return float(self._table[at])
        return float(self._renyi(np.array([alpha], dtype=np.float64))[0])

    @cached_property
    def _table(self) -> Floats:
        return self._renyi(_ORDERS)

    def _renyi(self, orders: Floats) -> Floats:
        if self.pair.infinite_mass <= 1e-290:
            return renyi_divergence(self.mechanism, orders, self.direction)
        # A loss that is infinite somewhere is bounded elsewhere, for every law there is here.
        low, high = self.pair.loss_range(0.0)
        levels = np.linspace(low, high, 2_000)
        log_p = self.pair.masses(levels).log_p
        # Each cell at its upper end; rounding may put an atom at the highest loss above it.
        exponents = log_p + (orders[:, None] - 1) * np.append(levels, high + 1e-9 * (1 + abs(high)))
        total = np.logaddexp.reduce(log_p)
        return (np.logaddexp.reduce(exponents, axis=1) - total) / (orders - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Truncated:
    """The loss conditioned on the package's domain: cell masses there, and its mean."""

    edges: Floats
    masses: Floats
    average: float
    pm_inf: float

    @classmethod
    def of(cls, loss: _Loss, grid: Any) -> _Truncated:
        centres = np.asarray(grid.ts(), dtype=np.float64)
        # The outer half cells lie outside the domain, and the package clips them.
        edges = np.append(centres - grid.dt() / 2, centres[-1])
        edges[0] = centres[0]
        cells = loss.pair.masses(edges)
        p, gap = cells.p[1:-1], edges[1:] - edges[:-1]
        # E[l | cell] lies between ln(p/q) and the mean of the split that keeps p and q; both agree
        # to O(mesh^2), and the package shifts its grid by the mean.
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            share = 1 - np.exp(cells.log_q - cells.log_p)[1:-1] * np.exp(edges[:-1])
            share = np.clip(share / -np.expm1(-gap), 0.0, 1.0)
        within = np.where(np.isfinite(share), share, 0.5) * gap
        total = float(np.sum(p))
        return cls(
            edges=edges,
            masses=p / total,
            average=float(np.sum(p * (edges[:-1] + within)) / total),
            pm_inf=loss.pair.infinite_mass,
        )

    def probability(self, left: Floats, right: Floats) -> Any:
        """Masses of the package's own cells, in its 80-bit numbers, for its FFT."""
        if len(left) != len(self.masses) or abs(float(right[0]) - float(self.edges[1])) > 1e-9:
            raise ValueError(
                f"Expected the {len(self.masses)} cells of the domain, got {len(left)}."
            )
        return self.masses.astype(np.longdouble)

    def mean(self) -> float:
        return self.average
