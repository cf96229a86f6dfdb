"""Releases known by their guarantee alone: (epsilon, delta)-DP, and randomised response."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike

from dpmech.noise import Floats, Noise, Shape, checked_positive

# Losses beyond it leave Q-masses that doubles do not hold; nobody means such a guarantee.
_LARGEST_EPSILON = 700.0


class Guarantee(Noise):
    """What a release promises, in the place of a noise; it has a pair but no density.

    It stands for the release as a whole: its sensitivity is left at the default, and the relation
    is the one under which it was proved. Densities, tails and samples are refused.
    """

    @abstractmethod
    def atoms(self) -> tuple[Floats, Floats, float]:
        """(losses, P-masses, mass at infinite loss) of the worst case; Q's are mirrored."""

    def _refused(self, what: str) -> NoReturn:
        raise ValueError(
            f"Expected a noise to ask for its {what}, got {self}: a guarantee has none; "
            "name the noise that the release adds, such as laplace:b=1."
        )

    def logpdf(self, x: ArrayLike) -> Floats:
        self._refused("density")

    def logsf(self, x: ArrayLike) -> Floats:
        self._refused("tail")

    def _isf_tail(self, p: Floats) -> Floats:
        self._refused("tail")

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        self._refused("samples")

    def scaled(self, factor: float) -> Self:
        self._refused("scale")


@dataclass(frozen=True)
class ApproximateDP(Guarantee):
    """A release that is (``epsilon``, ``delta``)-DP; pure DP where delta is 0.

    **Guarantees.** The pair dominates every (epsilon, delta)-DP release and is attained by one
    (Kairouz, Oh & Viswanath 2015, Theorem 3.4 and its proof), so that composition is optimal.

    >>> from dpmech import Mechanism
    >>> Mechanism(noise=ApproximateDP(epsilon=0.5)).pairs()[0].atoms()
    (-0.5, 0.5)
    """

    epsilon: float
    delta: float = 0.0
    name: ClassVar[str] = "approximate-dp"

    def __post_init__(self) -> None:
        _checked_epsilon(self.epsilon)
        if not 0 <= self.delta < 1:
            raise ValueError(f"Expected delta={self.delta} in [0, 1).")

    def atoms(self) -> tuple[Floats, Floats, float]:
        losses = np.array([-self.epsilon, self.epsilon])
        return losses, (1 - self.delta) / (1 + np.exp(-losses)), self.delta


@dataclass(frozen=True)
class RandomizedResponse(Guarantee):
    """One of ``values`` answers: the true one e^``epsilon`` times as likely as each other.

    **Guarantees.** The pair is that of two different true answers, exactly: for more than two
    values some answers tell nothing, so that it costs less than an epsilon-DP release. A record
    that is absent or zeroed out must still answer (Warner 1965; Kairouz, Oh & Viswanath 2016).

    >>> from dpmech import Mechanism
    >>> Mechanism(noise=RandomizedResponse(epsilon=0.5, values=4)).pairs()[0].atoms()
    (-0.5, 0.0, 0.5)
    """

    epsilon: float
    values: float = 2
    name: ClassVar[str] = "randomized-response"

    def __post_init__(self) -> None:
        _checked_epsilon(self.epsilon)
        if not (math.isfinite(self.values) and self.values == int(self.values) >= 2):
            raise ValueError(f"Expected values={self.values} to be a whole number, 2 or above.")

    def atoms(self) -> tuple[Floats, Floats, float]:
        others = 1 / (math.exp(self.epsilon) + self.values - 1)
        losses = np.array([-self.epsilon, 0.0, self.epsilon])
        p = np.array([1.0, self.values - 2, math.exp(self.epsilon)]) * others
        return losses[p > 0], p[p > 0], 0.0


def _checked_epsilon(epsilon: float) -> None:
    if checked_positive("epsilon", epsilon) > _LARGEST_EPSILON:
        raise ValueError(f"Expected epsilon={epsilon} of {_LARGEST_EPSILON:g} at most.")
