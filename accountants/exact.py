"""Closed forms: the oracle of the tests, and what the Rényi accountant uses where it can.

Symbols: ``sigma`` and ``b`` are in units of the sensitivity, ``mu = sqrt(T)/sigma`` for T releases.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from accountants.base import checked_delta, checked_epsilon
from dpmech import Staircase
from dpmech.noise import Floats, checked_positive

__all__ = [
    "gaussian_delta",
    "gaussian_delta_interval",
    "gaussian_epsilon",
    "gaussian_epsilon_interval",
    "gaussian_log_delta",
    "gaussian_renyi",
    "laplace_delta",
    "laplace_epsilon",
    "laplace_pure_epsilon",
    "laplace_renyi",
    "staircase_pure_epsilon",
    "subsampled_gaussian_renyi",
]

_EPS = float(np.finfo(np.float64).eps)


def gaussian_log_delta(epsilon: float, sigma: float, count: int = 1) -> float:
    """ln of :func:`gaussian_delta`, also where delta underflows."""
    epsilon = checked_epsilon(epsilon)
    mu = math.sqrt(checked_positive("count", count)) / checked_positive("sigma", sigma)
    a = mu / 2 - epsilon / mu
    b = a - mu
    if a > 0:
        small = float(special.log_ndtr(b)) + epsilon - float(special.log_ndtr(a))
        return float(special.log_ndtr(a)) + math.log(-math.expm1(min(small, 0.0)))
    # phi(a) = e^epsilon phi(b): delta is phi(a) times a difference of Mills ratios, no underflow.
    scale = math.sqrt(0.5)
    mills = special.erfcx(-a * scale) - special.erfcx(-b * scale)
    return -a * a / 2 - math.log(2) + math.log(mills) if mills > 0 else -math.inf


def gaussian_delta(epsilon: float, sigma: float, count: int = 1) -> float:
    """The exact delta of ``count`` unsampled Gaussian releases at ``epsilon``.

    Source: Balle & Wang (2018), Theorem 8, with mu of the composition.

    >>> round(gaussian_delta(1.0, sigma=1.0), 4)
    0.1269
    """
    return math.exp(gaussian_log_delta(epsilon, sigma, count))


def gaussian_epsilon(delta: float, sigma: float, count: int = 1) -> float:
    """The exact epsilon at ``delta``, rounded up by at most 1e-12 of itself.

    >>> round(gaussian_epsilon(1e-5, sigma=2.0, count=10), 4)
    7.5113
    """
    goal = math.log(checked_delta(delta))

    def excess(epsilon: float) -> float:
        return max(gaussian_log_delta(epsilon, sigma, count), -1e6) - goal

    if excess(0.0) <= 0:
        return 0.0
    mu = math.sqrt(count) / sigma
    high = mu * mu / 2 + mu * (1 - special.ndtri_exp(goal))
    while excess(high) > 0:
        high *= 2
    from scipy import optimize  # takes long to import

    return float(optimize.brentq(excess, 0.0, high, xtol=1e-300, rtol=1e-13)) * (1 + 5e-13)


def _gaussian_rounding(epsilon: float, mu: float) -> float:
    """Error of :func:`gaussian_log_delta`: of its exponents, and of a difference as small as mu."""
    a = abs(mu / 2 - epsilon / mu)
    return 64 * _EPS * (1 + a * a + epsilon + 1 / min(mu, 1.0))


def gaussian_delta_interval(epsilon: float, mu: float) -> tuple[float, float]:
    """(lower, upper) bounds on delta of one Gaussian release at bound/sigma = ``mu``."""
    log_delta, error = gaussian_log_delta(epsilon, 1 / mu), _gaussian_rounding(epsilon, mu)
    return math.exp(log_delta - error), min(1.0, math.exp(min(log_delta + error, 0.0)))


def gaussian_epsilon_interval(delta: float, mu: float) -> tuple[float, float]:
    """(lower, upper) bounds on epsilon of one Gaussian release at bound/sigma = ``mu``."""
    epsilon = gaussian_epsilon(delta, 1 / mu)
    # Delta falls at the rate e^epsilon Phi(-epsilon/mu - mu/2).
    log_slope = epsilon + float(special.log_ndtr(-epsilon / mu - mu / 2)) - math.log(delta)
    error = _gaussian_rounding(epsilon, mu) * math.exp(min(-log_slope, 700.0)) + 2e-12 * epsilon
    if epsilon == 0 and gaussian_delta_interval(0.0, mu)[1] <= delta:
        return 0.0, 0.0
    return max(0.0, epsilon - 2 * error), epsilon + 2 * error


def laplace_delta(epsilon: float, b: float) -> float:
    """The exact delta of one Laplace release: 1 - e^((epsilon - 1/b)/2), at least 0.

    >>> round(laplace_delta(0.5, b=1.0), 4)
    0.2212
    """
    return max(0.0, -math.expm1((checked_epsilon(epsilon) - 1 / checked_positive("b", b)) / 2))


def laplace_epsilon(delta: float, b: float) -> float:
    """The exact epsilon of one Laplace release at ``delta``.

    >>> round(laplace_epsilon(0.2212, b=1.0), 3)
    0.5
    """
    return max(0.0, 1 / checked_positive("b", b) + 2 * math.log1p(-checked_delta(delta)))


def laplace_pure_epsilon(b: float, count: int = 1) -> float:
    """The pure epsilon of ``count`` Laplace releases.

    >>> laplace_pure_epsilon(b=4.0, count=2)
    0.5
    """
    return count / checked_positive("b", b)


def staircase_pure_epsilon(law: Staircase, sensitivity: float = 1.0, count: int = 1) -> float:
    """The pure epsilon of ``count`` staircase releases: a shift crosses ceil(s/width) steps.

    Source: Geng & Viswanath (2014); mathematics.md §1.

    >>> staircase_pure_epsilon(Staircase.least_mean_abs(1.0), sensitivity=1.5)
    2.0
    """
    return count * law.epsilon * math.ceil(checked_positive("sensitivity", sensitivity) / law.width)


def gaussian_renyi(orders: Floats, sigma: float) -> Floats:
    """Rényi divergence of one unsampled Gaussian release: alpha/(2 sigma^2)."""
    return orders / (2 * sigma**2)


def laplace_renyi(orders: Floats, b: float) -> Floats:
    """Rényi divergence of one unsampled Laplace release, rounded up (Mironov 2017, Table II)."""
    up, down = (orders - 1) / b, -orders / b
    log_mean = np.logaddexp(np.log(orders) + up, np.log(orders - 1) + down) - np.log(2 * orders - 1)
    exact = (log_mean + 8 * _EPS * (1 + up + np.log(orders))) / (orders - 1)
    return np.minimum(exact, 1 / b)


def subsampled_gaussian_renyi(order: int, sigma: float, rate: float) -> float:
    """Rényi divergence ((1-q)Q + qP against Q) of a Poisson-subsampled Gaussian at a whole order.

    The binomial sum over k of C(alpha, k) (1-q)^(alpha-k) q^k e^(k(k-1)/2 sigma^2), less its
    value 1 at sigma = inf, in logs; rounded up.
    Source: Mironov, Talwar & Zhang (2019), §3.3; mathematics.md §5.
    """
    if not (order == int(order) and order >= 2):
        raise ValueError(f"Expected order={order} to be a whole number, 2 or above.")
    if rate == 1:
        return order / (2 * sigma**2)
    k = np.arange(2.0, order + 1)
    choose = special.gammaln(order + 1) - special.gammaln(k + 1) - special.gammaln(order - k + 1)
    moment = k * (k - 1) / (2 * sigma**2)
    growth = moment + np.log(-np.expm1(-moment))
    terms = choose + (order - k) * math.log1p(-rate) + k * math.log(rate) + growth
    rounding = (
        16 * _EPS * float(1 + special.gammaln(order + 1) + moment[-1] - order * math.log(rate))
    )
    return float(np.logaddexp(0.0, special.logsumexp(terms) + rounding)) / (order - 1)
