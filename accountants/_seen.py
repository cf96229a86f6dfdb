"""A release as two neighbours see it: its pair is given, and may be known but for its rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from accountants.base import Ledger
from dpmech import Mechanism
from dpmech.loss import DominatingPair


@dataclass(frozen=True, kw_only=True)
class Seen(Mechanism):
    """A release under add-remove with the ``pair`` that two neighbours show before sampling.

    ``rounding``: the pair's masses are right to a factor e^(±rounding).
    """

    pair: DominatingPair
    rounding: float = 0.0

    def base_pair(self) -> DominatingPair:
        return self.pair


def rounding_of(ledger: Ledger) -> float:
    """The sum of the roundings of all releases."""
    return math.fsum(
        release.rounding * count for release, count in ledger.entries if isinstance(release, Seen)
    )


def less_rounding(lower: Callable[[float], float], delta: float, rounding: float) -> float:
    """A lower bound on epsilon at ``delta`` from ``lower``, whose masses are off by ``rounding``.

    With masses off by a factor e^(±r) each, e^epsilon is off by e^(2r) at most and delta by e^r.
    """
    raised = delta * math.exp(rounding)
    return max(0.0, lower(raised) - 2 * rounding) if raised < 1 else 0.0
