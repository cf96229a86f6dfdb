"""A noise law: scalar, symmetric about 0, known by its log-density and its log-survival.

Symbols: ``f`` density, ``sf`` survival function P(X > x), ``s`` shift (the sensitivity).
Tails are computed as tails: never as ``1 - cdf``, never as ``log(pdf(x))``.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Shape = int | tuple[int, ...]

# Nodes of the trapezoidal rule in ln x behind the numeric moments: the integrands are analytic and
# decay at both ends, so the rule converges geometrically; 4 000 nodes reach 1e-12.
_MOMENT_NODES = 4_000


def checked_positive(name: str, value: float) -> float:
    """``value`` as a float if it is finite and positive, else a ValueError that says so."""
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"Expected {name}={value} to be a finite number above 0.")
    return float(value)


class Noise(ABC):
    """A scalar noise law, symmetric and unimodal about 0, in the units of the query.

    A vector of such noise has independent coordinates.

    **Guarantees.** ``logpdf``, ``logsf``, ``isf`` and ``sample`` describe one and the same law, in
    one parameterisation: what is sampled is what is accounted (tests/dpmech/test_laws.py).
    """

    name: ClassVar[str]

    @abstractmethod
    def logpdf(self, x: ArrayLike) -> Floats:
        """Natural logarithm of the density at ``x``."""

    @abstractmethod
    def logsf(self, x: ArrayLike) -> Floats:
        """Natural logarithm of P(X > x)."""

    @abstractmethod
    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        """Independent draws of the given shape."""

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """The law of ``factor * X``."""

    def isf(self, p: ArrayLike) -> Floats:
        """The x with P(X > x) = p, for p in (0, 1)."""
        p = np.asarray(p, dtype=np.float64)
        if not np.all((p > 0) & (p < 1)):
            raise ValueError(f"Expected probabilities in (0, 1), got {p!r}.")
        tail = np.minimum(p, 1 - p)
        return np.where(p <= 0.5, 1.0, -1.0) * self._isf_tail(tail)

    def _isf_tail(self, p: Floats) -> Floats:
        """isf for p in (0, 1/2], by bracketing and Chandrupatla's method on the log-survival."""

        def excess(x: Floats, target: Floats) -> Floats:
            return self.logsf(x) - target

        target = np.log(p)
        high = np.full_like(target, 1.0)
        for _ in range(1_100):
            short = excess(high, target) > 0
            if not np.any(short):
                break
            high = np.where(short, 2 * high, high)
        low = np.zeros_like(target)
        from scipy.optimize import elementwise  # a quarter of the import time, seldom needed

        root = elementwise.find_root(excess, (low, high), args=(target,))
        return np.where(p >= 0.5, 0.0, np.asarray(root.x, dtype=np.float64))

    def loss_peak(self, shift: float) -> float:
        """Where ln f(x - s)/f(x) is largest on [s/2, inf): it rises before and falls after.

        Log-concave laws never fall (inf, the default). Log-convex ones peak at s. A law whose loss
        has more than one peak needs a pair of its own (:func:`dpmech.loss.pair_of`).
        """
        del shift
        return np.inf

    @property
    def support(self) -> float:
        """The largest |x| with positive density (inf for most laws)."""
        return np.inf

    def pdf(self, x: ArrayLike) -> Floats:
        """Density at ``x``."""
        return np.exp(self.logpdf(x))

    def sf(self, x: ArrayLike) -> Floats:
        """P(X > x)."""
        return np.exp(self.logsf(x))

    def cdf(self, x: ArrayLike) -> Floats:
        """P(X <= x), by symmetry the survival function at -x."""
        return self.sf(-np.asarray(x, dtype=np.float64))

    def score(self, x: ArrayLike) -> Floats:
        """Derivative of the log-density."""
        x = np.asarray(x, dtype=np.float64)
        step = 1e-5 * np.maximum(np.abs(x), 1e-3 * float(self.isf(0.25)))
        return (self.logpdf(x + step) - self.logpdf(x - step)) / (2 * step)

    @property
    def variance(self) -> float:
        """E X^2, in squared units of the query; inf where it diverges."""
        x, weight = self._moment_rule()
        return float(np.sum(4 * x * self.sf(x) * weight))

    @property
    def std(self) -> float:
        """Square root of the variance."""
        return float(np.sqrt(self.variance))

    @property
    def mean_abs(self) -> float:
        """E |X|, in units of the query; inf where it diverges."""
        x, weight = self._moment_rule()
        return float(np.sum(2 * self.sf(x) * weight))

    def usefulness(self, gamma: float) -> float:
        """P(|X| <= gamma) (R2DP, arXiv 2009.09451)."""
        return float(-np.expm1(np.log(2) + self.logsf(checked_positive("gamma", gamma))))

    @property
    def fisher_information(self) -> float:
        """J = E[(d ln f/dx)^2], in inverse squared units; inf if f jumps (mathematics.md §6.5)."""
        x, weight = self._moment_rule()
        return float(np.sum(2 * self.score(x) ** 2 * self.pdf(x) * weight))

    def _moment_rule(self) -> tuple[Floats, Floats]:
        """Nodes x > 0 and weights of a trapezoidal rule in ln x over all that carries mass."""
        end = min(float(self.isf(1e-300)), self.support)
        start = float(self.isf(0.25)) * 1e-16
        u = np.linspace(np.log(start), np.log(end), _MOMENT_NODES)
        x = np.exp(u)
        return x, x * (u[1] - u[0])

    def parameters(self) -> dict[str, object]:
        """The parameters by name, as :func:`dpmech.parse_noise` reads them."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]  # laws are dataclasses
        }

    def to_dict(self) -> dict[str, object]:
        """JSON-ready description; :func:`dpmech.noise_from_dict` reads it back."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in self.parameters().items()}
        return {"name": self.name, **plain}

    def __str__(self) -> str:
        return f"{self.name}:" + ",".join(
            f"{key}={_text(value)}" for key, value in self.parameters().items()
        )


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "/".join(_text(v) for v in value)  # type: ignore[reportUnknownVariableType]
    return repr(float(value))  # type: ignore[arg-type]  # parameters are numbers or tuples of them
