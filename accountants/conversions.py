"""Zero-concentrated and Gaussian DP, where they are bounds (mathematics.md §5).

Symbols: ``rho`` of zCDP: the Rényi divergence is at most rho alpha at every order alpha > 1; ``mu``
of Gaussian DP: the trade-off curve is nowhere below that of N(0, 1) against N(mu, 1).

What a central limit theorem gives (mu of many subsampled releases, say) is an approximation, and
may lie below the truth; nothing here offers one. Use the PLD accountant, which is tight.
"""

from __future__ import annotations

import math

import numpy as np

from accountants._orders import least_delta, least_epsilon
from accountants.base import checked_delta, checked_epsilon
from accountants.exact import (
    gaussian_epsilon,
    gaussian_log_delta,
    laplace_pure_epsilon,
    staircase_pure_epsilon,
)
from dpmech import (
    LMO,
    Gaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    NoDominatingPair,
    Staircase,
)
from dpmech.noise import checked_positive

__all__ = [
    "gdp_delta",
    "gdp_epsilon",
    "renyi_to_zcdp",
    "zcdp_delta",
    "zcdp_epsilon",
]

_EPS = float(np.finfo(np.float64).eps)
# Below this mu the closed form cancels; delta grows with mu, so this mu bounds all smaller ones.
_LEAST_MU = 1e-6


def gdp_delta(mu: float, epsilon: float) -> float:
    """The delta at ``epsilon`` of ``mu``-Gaussian DP.

    **Guarantees.** Never below the exact value; above it by rounding only if mu >= 1e-6, the bound
    for smaller ones. Raises ValueError for mu <= 0. Source: Dong, Roth & Su (2022), Corollary 2.13.

    >>> round(gdp_delta(1.0, epsilon=1.0), 4)
    0.1269
    """
    mu = max(checked_positive("mu", mu), _LEAST_MU)
    a = mu / 2 - checked_epsilon(epsilon) / mu
    rounding = 16 * _EPS * (1 + a * a + (1 + abs(a)) / mu)
    return math.exp(min(0.0, gaussian_log_delta(epsilon, 1 / mu) + rounding))


def gdp_epsilon(mu: float, delta: float) -> float:
    """The epsilon at ``delta`` of ``mu``-Gaussian DP.

    **Guarantees.** Never below the exact value: ``gdp_delta(mu, epsilon) <= delta``.

    >>> round(gdp_epsilon(1.0, delta=1e-5), 4)
    4.3772
    """
    mu = max(checked_positive("mu", mu), _LEAST_MU)
    epsilon, step = gaussian_epsilon(checked_delta(delta), 1 / mu), 1e-12
    while gdp_delta(mu, epsilon) > delta:
        epsilon, step = epsilon + step * max(epsilon, mu * mu), 2 * step
    return epsilon


def zcdp_epsilon(rho: float, delta: float) -> float:
    """The least epsilon at ``delta`` that ``rho``-zCDP proves by any order.

    **Guarantees.** An upper bound, never above rho + 2 sqrt(rho ln(1/delta)). Releases compose by
    adding their rho. Source: Bun & Steinke (2016); conversion as in :class:`accountants.RDP`.

    >>> round(zcdp_epsilon(0.5, delta=1e-5), 4)
    4.7284
    """
    rho = checked_positive("rho", rho)
    return least_epsilon(lambda orders: rho * orders, checked_delta(delta))


def zcdp_delta(rho: float, epsilon: float) -> float:
    """The least delta at ``epsilon`` that ``rho``-zCDP proves by any order.

    >>> zcdp_delta(0.5, epsilon=4.7285) <= 1e-5
    True
    """
    rho = checked_positive("rho", rho)
    return least_delta(lambda orders: rho * orders, checked_epsilon(epsilon))


def renyi_to_zcdp(mechanism: Mechanism) -> float:
    """A rho for which one run is proved rho-zCDP: at *every* order, not those of a grid.

    **Guarantees.** Gaussian noise has exactly s^2/(2 sigma^2), s the largest l2 norm of the change.
    A release that is epsilon-DP has epsilon^2/2 (Bun & Steinke 2016, Proposition 1.4): scalar
    Laplace, Laplace-mixture, LMO and staircase noise, and Laplace noise under an l1 bound.

    Raises NoDominatingPair for everything else, and for sampled releases: their divergence is not
    linear in the order.

    >>> from dpmech import Gaussian, Mechanism
    >>> renyi_to_zcdp(Mechanism(noise=Gaussian(sigma=2.0)))
    0.125
    """
    mechanism = mechanism.as_add_remove()
    if mechanism.sampling.rate < 1:
        raise NoDominatingPair(
            f"No rho is proved for rate={mechanism.sampling.rate:g} but that of rate=1.",
            "Use the RDP accountant, or rate=1, whose rho bounds every smaller rate.",
        )
    if isinstance(mechanism.noise, Gaussian):
        return (_l2_bound(mechanism) / mechanism.noise.sigma) ** 2 / 2
    return _pure_epsilon(mechanism) ** 2 / 2


def _l2_bound(mechanism: Mechanism) -> float:
    """The largest l2 norm of the change: an l1 ball lies in the l2 ball, the linf ball does not."""
    sensitivity = mechanism.sensitivity
    widened = math.sqrt(sensitivity.dim) if sensitivity.norm == "linf" else 1.0
    return sensitivity.bound * widened


def _pure_epsilon(mechanism: Mechanism) -> float:
    """The pure epsilon of an unsampled release; NoDominatingPair where it has none."""
    noise, sensitivity = mechanism.noise, mechanism.sensitivity
    shift = sensitivity.bound
    if isinstance(noise, Laplace) and (sensitivity.dim == 1 or sensitivity.norm == "l1"):
        return laplace_pure_epsilon(noise.b / shift)
    if sensitivity.dim == 1 and isinstance(noise, Staircase):
        return staircase_pure_epsilon(noise, shift)
    if sensitivity.dim == 1 and isinstance(noise, LMO | LaplaceMixture):
        # ln f is convex in |x|, so the loss is largest where the noise is 0.
        loss = float(noise.logpdf(0.0) - noise.logpdf(shift))
        return loss + 32 * _EPS * (1 + abs(float(noise.logpdf(shift))))
    raise NoDominatingPair(
        f"No rho is proved for {noise.name} noise on dim={sensitivity.dim} with "
        f"{sensitivity.norm} sensitivity {shift:g}: no pure epsilon of it is known here.",
        "Use the RDP accountant, which takes each order's own bound.",
    )
