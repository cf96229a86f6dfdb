"""How much of a budget is left, and whether the next run still fits (odometers and filters).

What is proved depends on what may be chosen along the way (Rogers, Roth, Ullman & Vadhan 2016):

* *Which query is asked, and its answer's use:* anything, always.
* *The mechanism's parameters (noise, sensitivity, sampling) and the number of runs, declared before
  the first answer is seen:* plain composition, any accountant. :func:`remaining` and
  :func:`would_exceed`. Stopping early is free: the bound of all declared runs covers fewer.
* *Those parameters chosen after answers were seen* (full adaptivity): no composition of privacy
  loss distributions is proved, and an epsilon read off an accountant is no running odometer.
  :class:`RenyiFilter` and :class:`GaussianFilter` are proved for it, against a bound, and an order,
  that are fixed beforehand.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from accountants._search import LARGEST_COUNT, largest_count
from accountants.base import Accountant, Ledger
from accountants.calibrate import stages
from accountants.exact import gaussian_delta
from accountants.goals import excess
from accountants.pld import PLD
from accountants.rdp import RDP
from dpmech import Gaussian, Mechanism, NoDominatingPair, Target, Unattainable

__all__ = ["LARGEST_COUNT", "GaussianFilter", "RenyiFilter", "remaining", "would_exceed"]


def remaining(spent: Accountant | Ledger, mechanism: Mechanism, target: Target) -> int:
    """The largest number of further runs of ``mechanism`` that is proved to stay within ``target``.

    **Guarantees.** What was spent and the runs returned cost at most the target, by the accountant
    (a PLD for a ledger); one run more is not proved to. The claim is that of plain composition: the
    mechanisms spent and this one must have been declared without looking at answers (see the
    module). 0 where nothing more fits; at most 10^12 are told apart.

    >>> release = Mechanism(noise=Gaussian(sigma=10.0))
    >>> target = Target(epsilon=1.0, delta=1e-5)
    >>> remaining(Ledger(), release, target), remaining(Ledger().add(release, 5), release, target)
    (7, 2)
    """
    count = 1
    for so_far in stages(_accountant(spent)):
        at = functools.partial(_excess_after, so_far, mechanism, target)
        count = largest_count(at, max(count, 1))
    return count


def would_exceed(
    spent: Accountant | Ledger, mechanism: Mechanism, target: Target, *, count: int = 1
) -> bool:
    """Whether ``count`` more runs are not proved to stay within ``target``.

    **Guarantees.** False only where they are, in the sense of :func:`remaining`.

    >>> release = Mechanism(noise=Gaussian(sigma=10.0))
    >>> would_exceed(Ledger().add(release, 7), release, Target(epsilon=1.0, delta=1e-5))
    True
    """
    return _excess_after(_accountant(spent), mechanism, target, count) > 0


def _accountant(spent: Accountant | Ledger) -> Accountant:
    return PLD().compose_ledger(spent) if isinstance(spent, Ledger) else spent


def _excess_after(spent: Accountant, mechanism: Mechanism, target: Target, count: int) -> float:
    return excess(target, spent.compose(mechanism, count))


@dataclass(frozen=True, kw_only=True)
class RenyiFilter:
    """A budget at one Rényi order, for mechanisms chosen while answers come in.

    ``order`` (above 1) and ``target`` must be fixed before the first run; :meth:`suited_to` gives
    an order that wastes little.

    **Guarantees.** Whatever is chosen, parameters included, on the strength of earlier answers: as
    long as every run went through :meth:`spend`, all of them together are (epsilon, delta)-private
    with the target's, since the divergences at this one order add up to at most its budget. The
    bounds on the divergences are those of :func:`accountants.rdp.renyi_divergence`.

    Source: Feldman & Zrnic (2021), the Rényi filter; Canonne, Kamath & Steinke (2020),
    Proposition 12.

    >>> private = RenyiFilter(target=Target(epsilon=2.0, delta=1e-6), order=12.0)
    >>> private = private.spend(Mechanism(noise=Gaussian(sigma=8.0)), 5)
    >>> round(private.left, 3), private.would_exceed(Mechanism(noise=Gaussian(sigma=1.0)))
    (0.588, True)
    """

    target: Target
    order: float
    spent: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.order) and self.order > 1):
            raise ValueError(f"Expected a finite order={self.order} above 1.")
        if self.budget <= 0:
            raise ValueError(
                f"Expected order={self.order} to leave a budget for {self.target}, but a "
                "divergence of 0 already converts to more; take a larger order, or "
                "RenyiFilter.suited_to."
            )

    @classmethod
    def suited_to(cls, target: Target, mechanism: Mechanism) -> Self:
        """A filter at the order that allows most runs of ``mechanism``, should all be like it."""

        def cost(log_above: float) -> float:
            order = 1 + math.exp(log_above)
            budget = _budget(target, order)
            return math.inf if budget <= 0 else _divergence(mechanism, order) / budget

        best, tried = 0.0, np.linspace(math.log(1e-3), math.log(1e6), 40)
        for _ in range(3):
            best, apart = float(tried[np.argmin([cost(x) for x in tried])]), tried[1] - tried[0]
            tried = np.linspace(best - apart, best + apart, 9)
        return cls(target=target, order=1 + math.exp(best))

    @property
    def budget(self) -> float:
        """The divergence at the order that converts to the target."""
        return _budget(self.target, self.order)

    @property
    def left(self) -> float:
        """What is left of the budget."""
        return self.budget - self.spent

    def would_exceed(self, mechanism: Mechanism, count: int = 1) -> bool:
        """Whether ``count`` more runs do not fit."""
        return not self.spent + self._cost(mechanism, count) <= self.budget

    def remaining(self, mechanism: Mechanism) -> int:
        """The largest number of further runs that fit, at most 10^12."""
        return _fitting(self.left, self._cost(mechanism, 1))

    def spend(self, mechanism: Mechanism, count: int = 1) -> Self:
        """The filter after ``count`` runs; Unattainable, and nothing spent, if they do not fit."""
        if self.would_exceed(mechanism, count):
            raise _spent_up(
                self._cost(mechanism, count), self.left, f"divergence at order {self.order:g}"
            )
        ledger = self.ledger.add(mechanism, count)
        return replace(self, spent=self.spent + self._cost(mechanism, count), ledger=ledger)

    def _cost(self, mechanism: Mechanism, count: int) -> float:
        # The sum of many runs is rounded up, by more than the additions err.
        return count * _divergence(mechanism, self.order) * (1 + 1e-12)


@dataclass(frozen=True, kw_only=True)
class GaussianFilter:
    """A budget of Gaussian privacy, for unsampled Gaussian releases chosen while answers come in.

    **Guarantees.** As for :class:`RenyiFilter`, and exact: the releases together are mu-private
    with ``mu^2`` the sum of (sensitivity/sigma)^2, however adaptively each sigma was chosen, as
    long as the sum stays within a bound that was fixed beforehand.

    Source: Smith & Thakurta (2022) and Koskela, Tobaben & Honkela (2023), fully adaptive Gaussian
    differential privacy; Balle & Wang (2018), Theorem 8 for the conversion.

    >>> private = GaussianFilter(target=Target(epsilon=1.0, delta=1e-5))
    >>> private.remaining(Mechanism(noise=Gaussian(sigma=10.0)))
    7
    """

    target: Target
    spent: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def budget(self) -> float:
        """The largest mu^2 whose delta at the target's epsilon is at most the target's."""
        return _largest_mu(self.target) ** 2

    @property
    def left(self) -> float:
        """What is left of the budget."""
        return self.budget - self.spent

    def would_exceed(self, mechanism: Mechanism, count: int = 1) -> bool:
        """Whether ``count`` more runs do not fit; NoDominatingPair for any but plain Gaussians."""
        return not self.spent + _mu_squared(mechanism, count) <= self.budget

    def remaining(self, mechanism: Mechanism) -> int:
        """The largest number of further runs that fit, at most 10^12."""
        return _fitting(self.left, _mu_squared(mechanism, 1))

    def spend(self, mechanism: Mechanism, count: int = 1) -> Self:
        """The filter after ``count`` runs; Unattainable, and nothing spent, if they do not fit."""
        cost = _mu_squared(mechanism, count)
        if self.would_exceed(mechanism, count):
            raise _spent_up(cost, self.left, "mu^2")
        return replace(self, spent=self.spent + cost, ledger=self.ledger.add(mechanism, count))


def _fitting(left: float, cost: float) -> int:
    """How many of a cost fit, rounded down."""
    if cost == 0:
        return LARGEST_COUNT
    return max(0, min(LARGEST_COUNT, math.floor(left / cost * (1 - 1e-12))))


def _spent_up(cost: float, left: float, unit: str) -> Unattainable:
    return Unattainable(
        f"The run costs {cost:.6g} of {left:.6g} that are left ({unit}). Use more noise, or stop.",
        reached=cost / left if left > 0 else math.inf,
    )


def _divergence(mechanism: Mechanism, order: float) -> float:
    """An upper bound on the Rényi divergence of one run, in either direction."""
    return float(RDP().compose(mechanism).renyi([order])[0])


def _budget(target: Target, order: float) -> float:
    """The divergence at ``order`` that converts to the target, rounded down."""
    saved = (math.log(target.delta) + math.log(order)) / (order - 1) - math.log1p(-1 / order)
    return target.epsilon + saved - 1e-14 * (target.epsilon + abs(saved))


@functools.lru_cache(maxsize=8)
def _largest_mu(target: Target) -> float:
    def over(log_mu: float) -> float:
        return gaussian_delta(target.epsilon, math.exp(-log_mu)) - target.delta

    low, high = -60.0, 60.0
    from scipy import optimize  # takes long to import

    root = float(optimize.brentq(over, low, high, xtol=1e-13, rtol=1e-14))
    return math.exp(root - 1e-11)  # covers the rounding of the closed form


def _mu_squared(mechanism: Mechanism, count: int) -> float:
    """mu^2 of ``count`` runs, rounded up."""
    plain = mechanism.as_add_remove()
    if not (isinstance(plain.noise, Gaussian) and plain.sampling.rate == 1):
        raise NoDominatingPair(
            f"No fully adaptive Gaussian filter is proved for {mechanism.noise} at sampling rate "
            f"{mechanism.sampling.rate:g}.",
            "Use gaussian noise at rate=1, or a RenyiFilter.",
        )
    plain.base_pair()  # refuses the norms of a vector that have no scalar pair
    return count * (plain.sensitivity.bound / plain.noise.sigma) ** 2 * (1 + 1e-12)
