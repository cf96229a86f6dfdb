"""Rényi divergences by quadrature in log space, rounded up.

Symbols: ``r = e^l`` base likelihood ratio dP/dQ, ``q`` sampling rate, ``u = q (r - 1)``, ``beta``
the exponent: E_Q[(1+u)^beta] is the moment of order alpha of the removal at beta = alpha and of the
addition at beta = 1 - alpha. Since E_Q[u] = 0, what is integrated is
``psi = (1+u)^beta - 1 - beta u >= 0``: no cancellation however small the rate (mathematics.md §5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from dpmech.loss import AtomicPair, Direction, DominatingPair, PeakedPair
from dpmech.noise import Floats

_EPS = float(np.finfo(np.float64).eps)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_TOLERANCE = 1e-11  # relative, per panel: the gap between one panel and its two halves
_ROUNDS = 48
_SERIES_TERMS = 20
# Margin of the result, relative: for the rounding of ln psi where it cancels most (|u| just beyond
# the series, alpha near 1), and for layers thinner than a panel that was settled as negligible.
_ROUNDING = 1e-9
# A pair's infinite mass up to this is only what its own cells leave out (see dpmech.loss).
_LEFT_OUT = 1e-290

LogIntegrand = Callable[[Floats], Floats]


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """The function ln psi of one direction: ``beta`` of shape (orders, 1)."""

    beta: Floats
    rate: float

    @classmethod
    def of(cls, orders: Floats, rate: float, direction: Direction) -> Moment:
        beta = orders if direction == "remove" else 1 - orders
        return cls(beta=beta[:, None], rate=rate)

    def log_mixture(self, loss: Floats) -> Floats:
        """ln(1 + u) = ln(1 - q + q e^l)."""
        if self.rate == 1:
            return loss
        return np.logaddexp(math.log1p(-self.rate), math.log(self.rate) + loss)

    def log_psi(self, loss: Floats) -> Floats:
        """ln psi at losses of shape (n,); shape (orders, n)."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            u = np.minimum(self.rate * np.expm1(loss), 1e300 / np.max(np.abs(self.beta)))
            log_mixture = np.where(np.abs(u) < 0.5, np.log1p(u), self.log_mixture(loss))
            power = self.beta * log_mixture
            size = np.log(-np.expm1(-np.abs(loss))) + np.maximum(loss, 0.0) + math.log(self.rate)
            linear = np.log(np.abs(self.beta)) + size  # ln |beta u|
            grows = self.beta * np.sign(loss) > 0
            # psi = e^power - (1 + |beta u|), or |beta u| - (1 - e^power): positive terms first.
            far = np.where(
                grows,
                power + np.log1p(-np.exp(np.minimum(np.logaddexp(0.0, linear) - power, 0.0))),
                linear + np.log1p(np.maximum(np.expm1(power) * np.exp(-linear), -1.0)),
            )
        near = (np.abs(u) < 0.1) & (np.abs(self.beta * u) < 0.5)
        rows, columns = np.nonzero(near)
        far[rows, columns] = _log_psi_series(self.beta[rows, 0], u[columns])
        return far


def _log_psi_series(beta: Floats, u: Floats) -> Floats:
    """ln of beta (beta-1)/2 u^2 + …, the binomial series from its second power on."""
    total, term = np.ones_like(u), np.ones_like(u)
    for k in range(3, _SERIES_TERMS):
        term = term * ((beta - k + 1) / k) * u
        total = total + term
    with np.errstate(divide="ignore"):
        return np.log(beta * (beta - 1) / 2) + 2 * np.log(np.abs(u)) + np.log(total)


def renyi_of_pair(
    pair: DominatingPair, orders: Floats, rate: float, direction: Direction
) -> Floats:
    """An upper bound on the Rényi divergence of the subsampled pair at ``orders``, shape (n,).

    ``pair`` must be that of a symmetric noise (reflection exchanges P and Q).
    """
    if rate == 1:
        direction = "remove"  # the two are mirror images
    moment = Moment.of(orders, rate, direction)
    if isinstance(pair, AtomicPair):
        log_excess, lost = _atomic(pair, moment), pair.infinite_mass
    elif isinstance(pair, PeakedPair):
        log_excess, lost = _peaked(pair, moment, orders), _mass_beyond_support(pair)
    else:
        raise ValueError(
            f"Expected a pair with a density or with atoms, got {type(pair).__name__}; "
            "use the PLD accountant."
        )
    if lost > _LEFT_OUT:
        if direction == "remove":
            return np.full_like(orders, np.inf)
        # Where P has none of Q's mass u = -q; and E_Q[u] = -q times that mass, no longer 0.
        log_excess = np.logaddexp.reduce(
            [
                log_excess,
                math.log(lost) + moment.log_psi(np.array([-np.inf]))[:, 0],
                np.log(orders - 1) + math.log(rate * lost),
            ]
        )
    return np.logaddexp(0.0, log_excess) / (orders - 1)


def _mass_beyond_support(pair: PeakedPair) -> float:
    end = pair.noise.support
    return 0.0 if math.isinf(end) else min(1.0, float(pair.noise.sf(end - pair.shift)))


def _atomic(pair: AtomicPair, moment: Moment) -> Floats:
    """ln E_Q[psi] over the atoms; what the pair left out goes to the highest loss."""
    p = pair.p.copy()
    if pair.infinite_mass <= _LEFT_OUT:
        p[-1] += pair.infinite_mass
    full = p > 0
    losses = pair.losses[full]
    log_terms = np.log(p[full]) - losses + moment.log_psi(losses)
    reach = float(np.max(np.abs(losses)))
    rounding = _ROUNDING + 8 * _EPS * np.abs(moment.beta[:, 0]) * reach
    return logsumexp(log_terms, axis=1) + rounding


def _peaked(pair: PeakedPair, moment: Moment, orders: Floats) -> Floats:
    """ln of the integral of psi under Q over s/2 and beyond, plus its mirror image.

    The reflection x -> s - x exchanges f0 and f1 and turns the loss over, so each x >= s/2 carries
    f0 psi(l) for itself and f1 psi(-l) for its image.
    """
    if pair.noise.support <= pair.shift / 2:
        return np.full_like(orders, -np.inf)

    def log_integrand(x: Floats) -> Floats:
        log_q, log_p = pair.noise.logpdf(x), pair.noise.logpdf(x - pair.shift)
        loss = log_p - log_q
        return np.logaddexp(log_q + moment.log_psi(loss), log_p + moment.log_psi(-loss))

    end, log_tail = _cut(pair, moment)
    edges = _panels(pair, end)
    log_value, log_error = log_integral(log_integrand, edges)
    # Where the integrand is largest, to a factor 2 of the way: terms of this size were rounded.
    middles = (edges[1:] + edges[:-1]) / 2
    at = middles[np.argmax(log_integrand(middles), axis=1)]
    terms = orders * np.abs(pair.loss(at)) + np.abs(pair.noise.logpdf(at))
    log_sum = np.logaddexp.reduce([log_value, log_error, log_tail])
    return log_sum + _ROUNDING * np.maximum(1.0, log_sum) + 32 * _EPS * terms


def _panels(pair: PeakedPair, end: float) -> Floats:
    """Edges from s/2 to ``end``: the kink at s, the loss peak, and doublings of the law's width."""
    s, width = pair.shift, float(pair.noise.isf(0.25))
    doublings = width * 2.0 ** np.arange(-3, math.ceil(math.log2(max(2.0, (end - s) / width))) + 1)
    inner = doublings[doublings < s / 2]
    edges = np.concatenate([[s / 2, s, end, pair.noise.loss_peak(s)], s + doublings, s - inner])
    return np.unique(edges[(edges >= s / 2) & (edges <= end)])


def _cut(pair: PeakedPair, moment: Moment) -> tuple[float, Floats]:
    """Where to stop integrating, and ln of a bound on what lies beyond, per order."""
    noise, s = pair.noise, pair.shift
    nothing = np.full(len(moment.beta), -np.inf)
    if math.isfinite(noise.support):
        return noise.support, nothing
    if math.isfinite(noise.loss_peak(s)):
        # The loss falls from here on, and psi with it, on both sides of u = 0.
        end = max(noise.loss_peak(s), s) + float(noise.isf(1e-60))
        return end, _flat_tail(pair, moment, end, float(pair.loss(np.array([end]))[0]))
    return _rising_tail(pair, moment)


def _flat_tail(pair: PeakedPair, moment: Moment, end: float, loss: float) -> Floats:
    """ln of Q's mass beyond times psi(loss) plus P's times psi(-loss)."""
    log_psi = moment.log_psi(np.array([loss, -loss]))
    log_q, log_p = float(pair.noise.logsf(end)), float(pair.noise.logsf(end - pair.shift))
    return np.logaddexp(log_q + log_psi[:, 0], log_p + log_psi[:, 1])


def _rising_tail(pair: PeakedPair, moment: Moment) -> tuple[float, Floats]:
    """The cut for a loss that rises for ever.

    Beyond X the weight (1+u)^alpha is at most (c r)^alpha with c r = 1 + u at X, and
    H = ln(f0 r^alpha) is concave once it falls (for exp(-|x|^beta), beta >= 1: H' =
    -beta x^(beta-1) (alpha (1-s/x)^(beta-1) - (alpha-1)) with both factors rising), so a geometric
    tail with the slope of a secant before X bounds its integral. The addition's psi is at most
    (alpha-1) u there, and the images' at most psi(-q).
    """
    s, beta = pair.shift, moment.beta
    start = float(pair.noise.isf(1e-60))
    x: Floats = s + start * 1.5 ** np.arange(120, dtype=np.float64)
    power = np.maximum(beta, 1.0)

    def log_h(at: Floats) -> Floats:
        return pair.noise.logpdf(at) + power * pair.loss(at)

    slope = (log_h(x) - log_h(x - 1e-3 * start)) / (1e-3 * start)
    log_c = moment.log_mixture(pair.loss(x)) - pair.loss(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        log_beyond = power * log_c + log_h(x) - np.log(np.maximum(-slope, 0.0))
    log_beyond = np.where(slope < 0, log_beyond, np.inf)
    growth = np.where(beta > 0, 0.0, np.log(np.abs(beta) + 1))
    # Negligible beside the integrand's centre; whatever it is, it is added to the result.
    seen = np.maximum.accumulate(power * log_c + log_h(x), axis=1)
    images = pair.noise.logsf(x - s) + moment.log_psi(np.array([-np.inf]))
    enough = np.all(np.maximum(log_beyond, images) <= seen[:, -1:] - 50.0, axis=0)
    at = int(np.argmax(enough)) if np.any(enough) else len(x) - 1
    return float(x[at]), np.logaddexp(growth[:, 0] + log_beyond[:, at], images[:, at])


def log_integral(log_f: LogIntegrand, edges: Floats) -> tuple[Floats, Floats]:
    """(ln of the integral, ln of a bound on its error), both per order.

    Gauss-Legendre panels, halved until a panel and its halves agree for every order; the halves are
    kept and the whole disagreement is the error: the rule converges geometrically on panels whose
    ends are all the places where the integrand is not analytic, or shrinks towards them.
    """
    low, high = edges[:-1], edges[1:]
    whole = _panel_sums(log_f, low, high)
    done = error = np.full(len(whole), -np.inf)
    for turn in range(_ROUNDS):
        middle = (low + high) / 2
        left, right = _panel_sums(log_f, low, middle), _panel_sums(log_f, middle, high)
        halves = np.logaddexp(left, right)
        gap = _log_difference(whole, halves)
        total = np.logaddexp(done, logsumexp(halves, axis=1))
        # The logarithm counts: where it is large, the integral's relative error may be, too.
        limit = total + np.log(_TOLERANCE * np.maximum(1.0, total))
        settled = np.all(gap <= limit[:, None], axis=0) | (turn == _ROUNDS - 1)
        done = np.logaddexp(done, _sum(halves[:, settled]))
        error = np.logaddexp(error, _sum(gap[:, settled]))
        if np.all(settled):
            break
        again = ~settled
        low, high = _woven(low[again], middle[again]), _woven(middle[again], high[again])
        whole = _woven(left[:, again], right[:, again])
    return done, error


def _panel_sums(log_f: LogIntegrand, low: Floats, high: Floats) -> Floats:
    """ln of the 16-point rule on each panel; shape (orders, panels)."""
    half = (high - low)[:, None] / 2
    x = (low + high)[:, None] / 2 + half * _NODES
    values = log_f(x.ravel()).reshape(-1, *x.shape)
    return logsumexp(values, axis=2, b=_WEIGHTS * half)


def _log_difference(a: Floats, b: Floats) -> Floats:
    """ln |e^a - e^b|."""
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.maximum(a, b) + np.log(-np.expm1(-np.abs(a - b)))
    return np.where(a == b, -np.inf, apart)


def _sum(values: Floats) -> Floats:
    return logsumexp(values, axis=1) if values.shape[1] else np.full(len(values), -np.inf)


def _woven(first: Floats, second: Floats) -> Floats:
    """Alternate entries of two arrays along the last axis."""
    return np.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)
