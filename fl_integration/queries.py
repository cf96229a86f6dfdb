"""The scalars that a configuration may ask for beside its vectors, and the clip that follows one.

Kept apart from the code that releases them, because a configuration needs only what they say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from dpmech.noise import checked_positive
from fl_integration.options import checked_whole, one_of

Of = Literal["mean", "sum"]


@dataclass(frozen=True, kw_only=True)
class ScalarQuery:
    """What a scalar release asks: the mean or the sum of one clipped number a client.

    **Guarantees**

    * A client moves the sum by at most ``bound``, whatever its number is: a number that is not
      finite adds nothing, and the others are clipped before they are added.
    * A mean is taken about the centre of the range, which halves what a client can move.
    * Divisors are constants: m for a mean, q for a sum, never the realised sample.

    Arguments:
        name: in reports. cohort: m > 0, expected clients in a sample. low, high: the range.
        of: ``"mean"`` or ``"sum"`` over all N clients. every: rounds between two releases.

    Raises:
        ValueError: on a value outside its range.

    >>> ScalarQuery(name="clients with texts", cohort=50, of="sum").bound
    1.0
    >>> ScalarQuery(name="accuracy", cohort=50).bound
    0.5
    """

    name: str
    cohort: float
    low: float = 0.0
    high: float = 1.0
    of: Of = "mean"
    every: int = 1

    def __post_init__(self) -> None:
        checked_positive("cohort", self.cohort)
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"Expected a range with low={self.low} < high={self.high}, finite.")
        one_of("of", self.of, get_args(Of))
        checked_whole("every", self.every, least=1)

    @property
    def centre(self) -> float:
        """c, what is subtracted from a client's number and added to the result."""
        return (self.low + self.high) / 2 if self.of == "mean" else 0.0

    @property
    def bound(self) -> float:
        """The most that a client adds to the noised sum, in absolute value."""
        return max(abs(self.low - self.centre), abs(self.high - self.centre))

    def due(self, round: int) -> bool:
        """Whether a round releases it: the first one does, and every ``every``-th after."""
        return round % self.every == 0

    def count(self, rounds: int) -> int:
        """How many releases a run of ``rounds`` rounds makes."""
        return -(-rounds // self.every)


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """How the clip follows the clients' norms; it starts at the configuration's.

    Arguments:
        quantile: γ in (0, 1), the share of clients that shall not be clipped.
        rate: η > 0, how fast ln C moves. cohort: m > 0, expected clients that are asked in a round,
            a sample of their own: each trains for its bit alone, so keep it small.

    Raises:
        ValueError: on a value outside its range.
    """

    quantile: float = 0.5
    rate: float = 0.2
    cohort: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ValueError(f"Expected quantile={self.quantile} in (0, 1).")
        checked_positive("rate", self.rate)
        checked_positive("cohort", self.cohort)

    @property
    def query(self) -> ScalarQuery:
        """The scalar release of every round: the share of clients within the clip."""
        return ScalarQuery(name="share within the clip", cohort=self.cohort)
