"""Lower bounds for vectors of independent noise: concrete neighbours (mathematics.md §6.5).

Symbols: ``s`` bound on the norm, ``d`` dimension, ``m`` coordinates that a change is spread over.

Whatever an accountant may prove of a mechanism, it cannot be below what one pair of neighbours
shows. Two are concrete enough: a change of a single coordinate by s, and one spread evenly over m
coordinates. What is seen of either may be reduced further, as post-processing only lowers epsilon.
"""

from __future__ import annotations

from dataclasses import replace

from accountants._seen import Seen, less_rounding, rounding_of
from accountants._spread import spread_pair
from accountants._vectors import has_density, is_covered
from accountants.base import Ledger, checked_delta
from accountants.pld import PLD
from dpmech import Mechanism, NoDominatingPair, Sensitivity

__all__ = [
    "lower_epsilon_vector",
    "one_coordinate_neighbour",
    "spread_neighbour",
]


def one_coordinate_neighbour(mechanism: Mechanism) -> Mechanism:
    """The scalar release that remains of a change of one coordinate by the whole bound.

    **Guarantees.** Its epsilon is nowhere above the vector's, at any sampling rate: the other
    coordinates are the same noise under both neighbours.

    >>> from dpmech import Laplace, Mechanism, Sensitivity
    >>> vector = Mechanism(noise=Laplace(b=1.0), sensitivity=Sensitivity(norm="l2", dim=100))
    >>> one_coordinate_neighbour(vector).sensitivity.dim
    1
    """
    mechanism = _independent(mechanism)
    return replace(mechanism, sensitivity=replace(mechanism.sensitivity, dim=1))


def spread_neighbour(
    mechanism: Mechanism, count: int = 1, coordinates: int | None = None
) -> Ledger:
    """Releases that together cost no more than ``count`` of ``mechanism``: an evenly spread change.

    **Guarantees.** The change has the norm allowed, on ``coordinates`` of them (all by default). At
    rate 1 the ledger is exact: each release is as many scalar ones as there are coordinates. Below,
    it holds a release of the sum of the coordinates' losses, each merged into few values
    (:mod:`accountants._spread`): post-processing, so never above but for the rounding of its
    masses, some 1e-8 each, which :func:`lower_epsilon_vector` takes off.

    Raises NoDominatingPair where the noise is not independent, ValueError for more coordinates than
    there are.

    >>> from dpmech import Laplace, Mechanism, Sensitivity
    >>> vector = Mechanism(noise=Laplace(b=1.0), sensitivity=Sensitivity(norm="l2", dim=100))
    >>> spread_neighbour(vector, 3).runs
    300
    """
    mechanism = _independent(mechanism)
    m = mechanism.sensitivity.dim if coordinates is None else coordinates
    if not 1 <= m <= mechanism.sensitivity.dim:
        raise ValueError(f"Expected coordinates={m} between 1 and dim={mechanism.sensitivity.dim}.")
    # Rounded down: the norm must not exceed the bound.
    shift = mechanism.sensitivity.spread(m) * (1 - 1e-15)
    if mechanism.sampling.rate == 1:
        scalar = replace(mechanism, sensitivity=Sensitivity(bound=shift))
        return Ledger().add(scalar, m * count)
    merged = spread_pair(mechanism.noise, shift, m)
    seen = Seen(
        noise=mechanism.noise,
        sampling=mechanism.sampling,
        pair=merged.pair,
        rounding=merged.rounding,
    )
    return Ledger().add(seen, count)


def lower_epsilon_vector(mechanism: Mechanism, count: int, delta: float) -> float:
    """A lower bound on the epsilon at ``delta`` of ``count`` releases: the worst neighbour tried.

    **Guarantees.** Below the true epsilon of the mechanism, whatever its pair: a scalar's own lower
    bound by PLD, or that of the neighbours above. No accountant can prove less.

    >>> from dpmech import Gaussian, Mechanism, Sensitivity
    >>> vector = Mechanism(noise=Gaussian(sigma=1.0), sensitivity=Sensitivity(norm="linf", dim=4))
    >>> round(lower_epsilon_vector(vector, 1, 1e-5), 2)
    10.0
    """
    checked_delta(delta)
    one = PLD().compose(one_coordinate_neighbour(mechanism), count).lower_epsilon(delta)
    if mechanism.sensitivity.dim == 1:
        return one
    spread = spread_neighbour(mechanism, count)
    lower = PLD().compose_ledger(spread).lower_epsilon
    return max(one, less_rounding(lower, delta, rounding_of(spread)))


def _independent(mechanism: Mechanism) -> Mechanism:
    """The mechanism under add-remove; NoDominatingPair where coordinates are not independent."""
    plain = mechanism.as_add_remove()
    if not (is_covered(plain) and has_density(plain.noise)):
        raise NoDominatingPair(
            f"No concrete neighbours are known for {plain.noise}: its coordinates are not "
            "independent draws from a density.",
            "Use the lower bound of the PLD accountant.",
        )
    return plain
