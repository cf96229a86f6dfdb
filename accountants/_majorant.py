"""The largest joint moment of independent noise over all shifts (mathematics.md §6.3).

Symbols: ``f`` the density of one coordinate, ``g = ln f``, ``alpha`` order > 1, ``tau`` shift of
one coordinate, ``psi(tau) = ln E_f[(f(x - tau)/f(x))^alpha]``, ``S_alpha`` the largest sum of psi
over the coordinates of any shift v allowed, ``s`` the bound on the l_p norm of v, ``d`` dimension.

Coordinates are independent, so E_P[(Q/P)^alpha] = exp(sum_i psi(|v_i|)) for every v, and in
t = tau^p, whose sum over the coordinates is at most s^p, Jensen's inequality gives
S_alpha <= d psihat(s^p/d) with psihat the least concave nondecreasing majorant of psi. Any line
``height + slope t`` that is nowhere below psi is above psihat, so any of them proves a bound: only
how good it is depends on the search for the best, never whether it holds.

Between the shifts at which psi was computed it is bounded in two ways, both proved for every law
that is symmetric and unimodal:

* it is nondecreasing in tau, as the pair at a shift dominates all smaller ones (§3);
* if g'' <= G off the kinks of g, at which g' falls, psi(tau) + (alpha - 1) G tau^2/2 is convex:
  with y = x - tau, psi is the ln of the integral over y of e^(alpha g(y) - (alpha - 1) g(y + tau)),
  -(alpha - 1) g(y + tau) + (alpha - 1) G tau^2/2 is convex in tau for every y, and the ln of an
  integral of exponentials of convex functions is convex. For log-concave laws G = 0.

On whole numbers both hold for whole shifts: the sum over y takes the place of the integral, and a
log-concave sequence that is nowhere 0 has second differences of 0 at most. What the lists of its
masses leave out at their ends, 1e-290 at most, is charged to delta (:mod:`accountants.rdp`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from accountants._renyi import lost_mass, renyi_of_pair
from accountants.exact import gaussian_renyi, laplace_renyi
from dpmech import (
    LMO,
    Gaussian,
    GeneralizedGaussian,
    Laplace,
    LaplaceMixture,
    Noise,
    Sensitivity,
    Staircase,
)
from dpmech.discrete import DiscreteGaussian, DiscreteLaplace
from dpmech.logconcave import FlippedHuber, Logistic, OffsetGaussian
from dpmech.loss import AtomicPair, pair_of
from dpmech.noise import Floats
from dpmech.skellam import Skellam

# On whole numbers, log-concave and nowhere 0: Bessel functions are, in their order (Turan 1950).
WHOLE_LAWS = (DiscreteGaussian, DiscreteLaplace, Skellam)

# Cells are cut until the line found is this close to the best above the points computed, relative;
# the second where only monotonicity is proved, which takes many more cells.
_TOLERANCE, _COARSE = 2.4e-3, 0.05
# Share of that for the slope, the rest is for the height.
_STEEPER = 0.9
# And psi itself is computed to this.
_PSI = 5e-4
_ROUNDS, _MOST_SHIFTS = 16, 400
_SLOPE_ROUNDS = 48
_GOLDEN = (math.sqrt(5) - 1) / 2
_EPS = float(np.finfo(np.float64).eps)


@functools.singledispatch
def curvature(noise: Noise) -> float:
    """A bound G on (ln f)'' where it exists, in inverse squared units; inf where none is proved."""
    del noise
    return math.inf


@curvature.register(Gaussian)
@curvature.register(Laplace)
@curvature.register(OffsetGaussian)
@curvature.register(FlippedHuber)
@curvature.register(Logistic)
@curvature.register(DiscreteGaussian)
@curvature.register(DiscreteLaplace)
@curvature.register(Skellam)
def _(noise: Noise) -> float:
    del noise
    return 0.0


@curvature.register
def _(noise: GeneralizedGaussian) -> float:
    return 0.0 if noise.beta >= 1 else math.inf


@curvature.register
def _(noise: LaplaceMixture) -> float:
    """(ln f)'' is a variance of 1/b, so at most a quarter of the squared range (Popoviciu)."""
    return 0.25 * (1 / min(noise.scales) - 1 / max(noise.scales)) ** 2


@curvature.register
def _(noise: LMO) -> float:
    """With cumulants K of U under the tilt, (ln f)'' = K2 + K3/K1 - (K2/K1)^2.

    Both K2 and K3/K1 (at most the largest ratio of a part) are bounded part by part; of the uniform
    part on [0, 1] with tilted mean m, K3 <= m (1-m)^2, so K3/K1 <= 1.
    """
    gamma, exponential = noise.a1 * noise.theta, noise.a3 / noise.rate
    uniform = noise.a4 * (noise.high - noise.low) if noise.a4 else 0.0
    second = noise.k * gamma**2 + exponential**2 + uniform**2 / 12
    return (second + max(2 * gamma**2, 2 * exponential**2, uniform**2)) / noise.size**2


def log_moments(noise: Noise, orders: Floats, shift: float) -> Floats:
    """psi at one shift, for ``orders`` of shape (n,); rounded up, inf where it diverges."""
    if isinstance(noise, Gaussian | DiscreteGaussian):  # Canonne et al. (2020), Proposition 5
        return (orders - 1) * gaussian_renyi(orders, noise.sigma / shift)
    if isinstance(noise, Laplace):
        return (orders - 1) * laplace_renyi(orders, noise.b / shift)
    pair = pair_of(noise, shift)
    moments, lost = (orders - 1) * renyi_of_pair(pair, orders, _PSI), lost_mass(pair)
    if lost > 0 and isinstance(pair, AtomicPair) and isinstance(noise, Staircase):
        # The steps that were left out have the losses of those before them.
        return np.logaddexp(moments, math.log(lost) + (orders - 1) * float(pair.losses[-1]))
    return moments if lost == 0 or isinstance(noise, WHOLE_LAWS) else np.full_like(orders, np.inf)


def joint_log_moments(noise: Noise, sensitivity: Sensitivity, orders: Floats) -> Floats:
    """An upper bound on S_alpha for real ``orders``, shape (n,); inf where it diverges."""
    s, d = sensitivity.bound, sensitivity.dim
    if isinstance(noise, WHOLE_LAWS):
        s = _whole_part(s, noise)
    if sensitivity.norm == "linf":
        return d * log_moments(noise, orders, s)  # psi is nondecreasing: the corner is the worst
    p = 1 if sensitivity.norm == "l1" else 2
    whole = log_moments(noise, orders, s)
    bend = curvature(noise)
    if d == 1 or (p == 1 and bend == 0):
        return whole  # a convex psi is largest where all is spent on one coordinate
    result = np.full_like(orders, np.inf)
    finite = np.isfinite(whole)
    if np.any(finite):
        profile = Profile.start(noise, orders[finite], bend, (sensitivity.bound, d, p))
        result[finite] = profile.refined().joint(d) + 16 * _EPS * d * whole[finite]
    return result


def _whole_part(bound: float, noise: Noise) -> float:
    """The largest whole shift of one coordinate."""
    if bound < 1:
        raise ValueError(
            f"Expected sensitivity={bound:g} of 1 at least for {noise}: it is for whole numbers."
        )
    return float(math.floor(bound))


@dataclass(frozen=True, kw_only=True, eq=False)
class Profile:
    """psi on the shifts ``tau`` of shape (m,) from 0 to s: ``psi`` of shape (m, orders).

    ``bend`` is (alpha - 1) G for every order, ``share`` the t = s^p/d at which psihat is wanted,
    ``whole`` says that only whole shifts are possible.
    """

    compute: Callable[[float], Floats]
    bend: Floats
    power: int
    share: float
    tau: Floats
    psi: Floats
    whole: bool = False

    @classmethod
    def start(
        cls, noise: Noise, orders: Floats, bend: float, ball: tuple[float, int, int]
    ) -> Profile:
        """psi at doublings of the spread shift, up to all of the bound; ``ball`` is (s, d, p)."""
        s, d, p = ball
        spread = s * d ** (-1 / p)
        tau = spread * 2.0 ** np.arange(-4, math.floor(math.log2(s / spread)) + 1)
        tau = np.append(tau[tau < s], s)
        whole = isinstance(noise, WHOLE_LAWS)
        if whole:
            tau = np.unique(np.maximum(1.0, np.floor(tau)))

        def compute(shift: float) -> Floats:
            return log_moments(noise, orders, shift)

        return cls(
            compute=compute,
            bend=(orders - 1) * bend,
            power=p,
            share=s**p / d,
            tau=np.append(0.0, tau),
            psi=np.stack([np.zeros(len(orders)), *map(compute, tau)]),
            whole=whole,
        )

    def joint(self, dim: int) -> Floats:
        """dim times the height at ``share`` of the lowest line found above psi."""
        return dim * self._least(self._over_cells)[1]

    def refined(self) -> Profile:
        """With shifts added where the bound between them is what the result hangs on."""
        profile = self
        for _ in range(_ROUNDS):
            loose = profile._loose()
            if not np.any(loose) or len(profile.tau) > _MOST_SHIFTS:
                break
            profile = profile._cut(loose)
        return profile

    def _cut(self, cells: NDArray[np.bool_]) -> Profile:
        low, high = self.tau[:-1][cells], self.tau[1:][cells]
        middle = np.where(low > 0, np.sqrt(low * high), high / 2)
        if self.whole:
            middle = np.maximum(low + 1, np.floor(middle))
        tau = np.append(self.tau, middle)
        psi = np.concatenate([self.psi, np.stack([self.compute(float(t)) for t in middle])])
        order = np.argsort(tau)
        return replace(self, tau=tau[order], psi=psi[order])

    def _loose(self) -> NDArray[np.bool_]:
        """Cells that the lowest line above the points computed is too far below."""
        slope, height = self._least(self._over_points)
        tolerance = _TOLERANCE if np.all(np.isfinite(self.bend)) else _COARSE
        allowed = height * (1 + tolerance) - slope * self.share
        # A line that is a little steeper gives way far off, where cells may then be wide.
        steeper = _STEEPER * tolerance * slope
        slope, allowed = slope + steeper, allowed - steeper * self.share
        return np.any(self._above(slope) > allowed, axis=1) & ~self._closed

    def _over_cells(self, slope: Floats) -> Floats:
        """Height at ``share`` of each order's line of that slope which is just not below psi."""
        return np.max(self._above(slope), axis=0) + slope * self.share

    def _over_points(self, slope: Floats) -> Floats:
        """The same for the lines that need only lie above the points computed."""
        above = self.psi - slope * self.tau[:, None] ** self.power
        return np.max(above, axis=0) + slope * self.share

    def _least(self, heights: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
        """(slope, height) of nearly the lowest lines: heights are convex in the slope."""
        chords = np.log(self.psi[1:] / self.tau[1:, None] ** self.power)
        low, high = np.min(chords, axis=0) - 12.0, np.max(chords, axis=0) + 3.0
        for _ in range(_SLOPE_ROUNDS):  # golden section
            a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            left = heights(np.exp(a)) <= heights(np.exp(b))
            low, high = np.where(left, low, a), np.where(left, b, high)
        slope = np.exp((low + high) / 2)
        return slope, heights(slope)

    @property
    def _closed(self) -> NDArray[np.bool_]:
        """Cells with no shift between their ends."""
        return np.diff(self.tau) <= 1 if self.whole else np.zeros(len(self.tau) - 1, np.bool_)

    @functools.cached_property
    def _chords(self) -> tuple[Floats, Floats, Floats]:
        """Per cell and order (c0, c1, c2): psi <= c0 + c1 tau + c2 tau^2 there."""
        a, b = self.tau[:-1, None], self.tau[1:, None]
        low, high = self.psi[:-1], self.psi[1:]
        if np.any(np.isinf(self.bend)):  # monotone is all that is known
            return high, np.zeros_like(high), np.zeros_like(high)
        half, slope = self.bend / 2, (high - low) / (b - a)
        return low - slope * a - half * a * b, slope + half * (a + b), 0 * slope - half

    def _above(self, slope: Floats) -> Floats:
        """A bound on the largest psi - slope t on each cell: shape (cells, orders)."""
        a, b = self.tau[:-1, None], self.tau[1:, None]
        c0, c1, c2 = self._chords
        c1, c2 = (c1 - slope, c2) if self.power == 1 else (c1, c2 - slope)
        with np.errstate(divide="ignore", invalid="ignore"):
            top = np.where(c2 < 0, -c1 / (2 * c2), np.where(c1 > 0, np.inf, -np.inf))
        top = np.clip(top, a, b)
        by_chord = c0 + top * (c1 + top * c2)
        above = np.minimum(by_chord, self.psi[1:] - slope * a**self.power)
        ends = np.maximum(
            self.psi[:-1] - slope * a**self.power, self.psi[1:] - slope * b**self.power
        )
        return np.where(self._closed[:, None], ends, above)
