"""What a law costs, pointwise where it is a mean, and the scale at which a law costs so much."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

import numpy as np

from dpmech import Noise
from dpmech.noise import Floats, checked_positive
from dpmech.tabulated import Tabulated

CostName = Literal["usefulness", "l1", "variance", "quantile", "entropy", "convex"]
_KNOWN = "variance, l1, usefulness:GAMMA, quantile:P, entropy"
_PARAMETERS = {"usefulness": 0.9, "quantile": 0.95}
# Gauss-Legendre nodes on [0, 1], a cell: exact for polynomials of degree 31.
_NODES, _WEIGHTS = (
    (np.polynomial.legendre.leggauss(16)[0] + 1) / 2,
    np.polynomial.legendre.leggauss(16)[1] / 2,
)
# A law's E c(|X|) by quantiles: nodes in ln of the tail, down to a mass that no cost can see.
_TAILS = np.geomspace(0.5, 1e-30, 4_001)
# Between two of them ln f jumps where it changes by more; jumps are looked for until they are found
# to so much of the entropy.
_JUMP, _MATTERS, _BISECTIONS = 0.1, 1e-10, 60


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a law costs; less is better.

    ``variance`` E X^2 (of a vector: per coordinate) and ``l1`` E|X|, in units of the query;
    ``usefulness`` P(|X| > parameter), which is 1 minus the usefulness; ``quantile`` the x with
    P(|X| <= x) = parameter; ``entropy`` -E ln f(X) in nats; ``convex`` E c(|X|) of a convex rising
    ``function`` c with c(0) = 0.

    >>> from dpmech import Laplace
    >>> Cost.parse("variance").of(Laplace(b=1.0))
    2.0
    """

    name: CostName = "usefulness"
    parameter: float | None = None
    function: Callable[[Floats], Floats] | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(CostName):
            raise ValueError(f"Unknown cost {self.name!r}; the costs are {_KNOWN}.")
        if (self.name == "convex") != (self.function is not None):
            raise ValueError(
                f"Expected a function with the cost convex and with no other, got {self.function} "
                f"with {self.name}."
            )
        default = _PARAMETERS.get(self.name)
        if default is None and self.parameter is not None:
            raise ValueError(f"Expected no parameter={self.parameter} of the cost {self.name}.")
        if default is not None:
            chosen = default if self.parameter is None else self.parameter
            object.__setattr__(self, "parameter", checked_positive("parameter", chosen))
        if self.name == "quantile" and not 0 < cast("float", self.parameter) < 1:
            raise ValueError(f"Expected the quantile of a P={self.parameter} in (0, 1).")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cost written ``variance``, ``l1``, ``usefulness[:GAMMA]``, ``quantile[:P]``, …."""
        name, _, parameter = text.partition(":")
        if name not in get_args(CostName) or name == "convex":
            raise ValueError(f"Unknown cost {name!r}; the costs are {_KNOWN}.")
        try:
            value = float(parameter) if parameter else None
        except ValueError:
            raise ValueError(f"Expected a number after {name!r}, got {parameter!r}.") from None
        return cls(name=cast("CostName", name), parameter=value)

    @classmethod
    def convex(cls, function: Callable[[Floats], Floats]) -> Self:
        """E c(|X|) of a convex, rising ``function`` c of arrays with c(0) = 0."""
        at = function(np.linspace(0.0, 10.0, 1_001))
        slopes = np.diff(at)
        if at[0] != 0 or np.any(slopes < 0) or np.any(np.diff(slopes) < -1e-9 * np.max(slopes)):
            raise ValueError(
                f"Expected a convex function that rises from c(0)=0, got c(0)={at[0]}."
            )
        return cls(name="convex", function=function)

    @property
    def linear(self) -> bool:
        """Whether it is the mean of a function of |X|, and so linear in the law."""
        return self.name not in ("quantile", "entropy")

    @property
    def is_convex(self) -> bool:
        """Whether it is the mean of a convex function of |X|."""
        return self.name in ("variance", "l1", "convex")

    def at(self, x: Floats) -> Floats:
        """c(|x|) of a linear cost."""
        size = np.abs(x)
        if self.name == "variance":
            return size**2
        if self.name == "l1":
            return size
        if self.name == "usefulness":
            return (size > cast("float", self.parameter)).astype(np.float64)
        if self.function is None:
            raise ValueError(f"Expected a cost that is a mean, got {self}.")
        return np.asarray(self.function(size), dtype=np.float64)

    def mean_on(self, edges: Floats) -> Floats:
        """The mean of c under the uniform law on each cell; ``edges`` (n + 1,) from 0 to (n,)."""
        a, b = edges[:-1], edges[1:]
        if self.name == "variance":
            return (a * a + a * b + b * b) / 3
        if self.name == "l1":
            return (a + b) / 2
        if self.name == "usefulness":
            return np.clip((b - cast("float", self.parameter)) / (b - a), 0.0, 1.0)
        return self.at(a[:, None] + (b - a)[:, None] * _NODES) @ _WEIGHTS

    def of(self, noise: Noise) -> float:
        """The cost of a law."""
        if self.name == "variance":
            return noise.variance
        if self.name == "l1":
            return noise.mean_abs
        if self.name == "usefulness":
            return float(2 * noise.sf(cast("float", self.parameter)))
        if self.name == "quantile":
            return float(noise.isf((1 - cast("float", self.parameter)) / 2))
        return self._entropy(noise) if self.name == "entropy" else self._mean(noise)

    def _mean(self, noise: Noise) -> float:
        """E c(|X|) by an integral over the tail mass, cell by cell for a table."""
        if isinstance(noise, Tabulated) and noise.decay == 0:
            return float(np.array(noise.masses) @ self.mean_on(np.array(noise.edges)))
        x = noise.isf(_TAILS)
        return float(np.sum(2 * -np.diff(_TAILS) * (self.at(x[1:]) + self.at(x[:-1])) / 2))

    def _entropy(self, noise: Noise) -> float:
        if isinstance(noise, Tabulated) and noise.decay == 0:
            masses = np.array(noise.masses)
            there = masses > 0
            return -float(masses[there] @ noise.log_density[there])
        tails, log_f = _TAILS, noise.logpdf(noise.isf(_TAILS))
        for _ in range(_BISECTIONS):
            rise = np.abs(np.diff(log_f))
            jumps = np.flatnonzero((rise > _JUMP) & (rise * -np.diff(tails) > _MATTERS))
            if not len(jumps):
                break
            between = (tails[jumps] + tails[jumps + 1]) / 2
            tails = np.insert(tails, jumps + 1, between)
            log_f = np.insert(log_f, jumps + 1, noise.logpdf(noise.isf(between)))
        return float(np.diff(tails) @ (log_f[1:] + log_f[:-1]))

    def factor(self, noise: Noise, budget: float) -> float:
        """By how much to scale a law for it to cost ``budget``."""
        if self.name == "variance":
            return math.sqrt(budget / self.of(noise))
        if self.name in ("l1", "quantile"):
            return budget / self.of(noise)
        if self.name == "entropy":
            return math.exp(budget - self.of(noise))
        if self.name == "usefulness":
            return cast("float", self.parameter) / float(noise.isf(budget / 2))
        from scipy import optimize

        def excess(log_factor: float) -> float:
            return math.log(self.of(noise.scaled(math.exp(log_factor))) / budget)

        return math.exp(float(optimize.brentq(excess, -60.0, 60.0, xtol=1e-12)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description."""
        if self.function is not None:
            raise ValueError(f"Expected a cost that has a name, got {self.function}: not saved.")
        return {"name": self.name, "parameter": self.parameter}

    def __str__(self) -> str:
        return self.name if self.parameter is None else f"{self.name}:{self.parameter:g}"
