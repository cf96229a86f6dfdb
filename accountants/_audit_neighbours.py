"""The neighbours whose cost refutes a claim: what each sees of a release (mathematics.md §3, §6.5).

Symbols: ``s`` bound on the norm of a contribution, ``d`` dimension, ``m`` coordinates changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from accountants._audit_laws import RandomDirection
from accountants._audit_pairs import line_pair, replaced_pair, shift_pair
from accountants._audit_proofs import deltas, epsilons
from accountants._seen import Seen, less_rounding, rounding_of
from accountants._vectors import has_density, is_covered
from accountants.base import Ledger
from accountants.limits import spread_neighbour
from accountants.pld import PLD
from dpmech import Mechanism, NoDominatingPair, Sampling, Sensitivity, Staircase
from dpmech.discrete import DiscreteNoise
from dpmech.guarantee import ApproximateDP, Guarantee
from dpmech.lattice_mixtures import MultiGaussian, Tulap
from dpmech.loss import DominatingPair
from dpmech.noise import Noise
from dpmech.relations import PoissonSubstitutionPair, SubstitutionPair
from dpmech.spherical import Spherical
from dpmech.tabulated import Tabulated

_HAIR = 1e-15  # changes are rounded down: their norm must not exceed the bound
_LARGEST = "a change as large as the bound"
# Shifts that a pair may raise: by this share of a lattice's step, or below this share of a stair.
_RAISED, _SMALL = 1e-12, 1e-5
_BETWEEN = 16  # parts that the bound is cut into, where a smaller change may cost more


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """Two neighbouring data sets, ``words`` what they differ by, ``seen`` what tells them apart."""

    words: str
    seen: Ledger

    def lower_epsilon(self, delta: float, tolerance: float) -> float:
        """No epsilon below this holds at ``delta``."""
        accountant = PLD(ledger=self.seen, tolerance=tolerance)
        return less_rounding(lambda d: epsilons(accountant, d)[0], delta, rounding_of(self.seen))

    def lower_delta(self, epsilon: float, delta: float, tolerance: float) -> float:
        """No delta below this holds at ``epsilon``; the claim's ``delta`` says what matters."""
        accountant = PLD(ledger=self.seen, tolerance=tolerance)
        off = rounding_of(self.seen)
        raised = min(delta * math.exp(off), 0.5)
        return deltas(accountant, epsilon + 2 * off, raised)[0] * math.exp(-off)


_Entry = tuple[Mechanism, int]
_View = Callable[[Mechanism], _Entry | None]


def neighbours(ledger: Ledger) -> Iterator[Neighbour]:
    """Neighbours to be tried on a ledger: in all its releases the same record differs.

    **Guarantees.** Each is allowed by every release's sensitivity and relation, and what is seen of
    it is no more than its outcome shows.
    """
    if all(_whole(mechanism) for mechanism, _ in ledger.entries):
        views = iter([(_LARGEST, _whole)])  # nothing costs more
    else:
        views = _views(ledger)
    for words, view in views:
        found = _neighbour(words, view, ledger)
        if found is not None:
            yield found


def _neighbour(words: str, view: _View, ledger: Ledger) -> Neighbour | None:
    """What the view sees of the ledger; None where it has nothing to say of any release."""
    viewed = [(mechanism, view(mechanism), count) for mechanism, count in ledger.entries]
    if all(entry is None for _, entry, _ in viewed):
        return None
    seen = Ledger()
    for mechanism, entry, count in viewed:
        entry = entry or _fallback(mechanism)
        if entry is not None:
            seen = seen.add(entry[0], entry[1] * count)
    return Neighbour(words=words, seen=seen)


def _fallback(mechanism: Mechanism) -> _Entry | None:
    """Where a view has nothing to say of a release: its own pair, or its outcome not looked at."""
    return _whole(mechanism) or _one(mechanism)


def _views(ledger: Ledger) -> Iterator[tuple[str, _View]]:
    kinds = [mechanism for mechanism, _ in ledger.entries]
    yield _LARGEST, _whole
    if any(m.sensitivity.dim > 1 for m in kinds):
        yield "a change of one coordinate by the whole bound", _one
        dims = {m.sensitivity.dim for m in kinds}
        for size in sorted({part for d in dims for part in (d, math.isqrt(d)) if part > 1}):
            yield f"a change spread evenly over {size} coordinates", _spread_over(size)
    if any(isinstance(m.noise, RandomDirection) for m in kinds):
        yield "a change across the line that the noise is on", _line
    if any(_may_rise(m.noise) for m in kinds):
        for part in range(1, _BETWEEN + 1):
            yield f"a change by {part}/{_BETWEEN} of the bound", _part(part / _BETWEEN)


def _whole(mechanism: Mechanism) -> _Entry | None:
    """The release itself, where its pair is that of two neighbours and not only above them."""
    if isinstance(mechanism.noise, ApproximateDP | RandomDirection) or _may_rise(mechanism.noise):
        return None
    try:
        (*_, pair) = mechanism.pairs()
    except NoDominatingPair:
        return None
    if isinstance(pair, SubstitutionPair):
        return _replaced(mechanism)
    if isinstance(pair, PoissonSubstitutionPair):
        return _seen(mechanism, pair, rate=1.0), 1
    if isinstance(mechanism.noise, Guarantee) and mechanism.sampling.rate < 1:
        return None  # what is answered for a record that is not sampled is not said
    plain = _not_raised(mechanism.as_add_remove())
    return None if plain is None else (plain, 1)


def _not_raised(mechanism: Mechanism) -> Mechanism | None:
    """With a bound that its pair does not round up, which is safe from above and not from below."""
    noise, bound = mechanism.noise, mechanism.sensitivity.bound
    if isinstance(noise, Staircase | Tulap) and bound < _SMALL * noise.width:
        return None
    if not isinstance(noise, Tabulated) or noise.step is None:
        return mechanism
    if (Fraction(bound) / Fraction(noise.step)).denominator == 1:
        return mechanism
    lower = bound - 4 * _RAISED * max(noise.step, bound)
    sensitivity = replace(mechanism.sensitivity, bound=lower)
    return replace(mechanism, sensitivity=sensitivity) if lower > 0 else None


def _replaced(mechanism: Mechanism) -> _Entry | None:
    """A contribution turned into its opposite, on one coordinate."""
    noise, s = mechanism.noise, mechanism.sensitivity.bound
    if isinstance(noise, Guarantee | Spherical):
        return None
    return _seen(mechanism, replaced_pair(noise, s, mechanism.sampling.rate), rate=1.0), 1


def _one(mechanism: Mechanism) -> _Entry | None:
    """All of the change on one coordinate: the others are the same noise under both neighbours."""
    sensitivity = mechanism.sensitivity
    if sensitivity.dim == 1:
        return None
    if isinstance(mechanism.noise, Spherical):  # its coordinates depend on each other
        return _whole(replace(mechanism, sensitivity=replace(sensitivity, norm="l2")))
    s = sensitivity.bound
    if isinstance(mechanism.noise, DiscreteNoise):
        s = float(math.floor(s))
    return _whole(replace(mechanism, sensitivity=Sensitivity(bound=s))) if s > 0 else None


def _spread_over(coordinates: int) -> _View:
    """The view of a change spread evenly: exact at rate 1, below it by merged joint losses."""

    def view(mechanism: Mechanism) -> _Entry | None:
        plain = _as_add_remove(mechanism)
        if plain is None or not is_covered(plain) or plain.sensitivity.dim < coordinates:
            return None
        if _may_rise(plain.noise):
            return None
        if not has_density(plain.noise):
            return _spread_whole(plain, coordinates)
        (entry,) = spread_neighbour(plain, coordinates=coordinates).entries
        return entry if isinstance(entry[0], Seen) or _whole(entry[0]) is not None else None

    return view


def _spread_whole(mechanism: Mechanism, coordinates: int) -> _Entry | None:
    """The same for noise on whole numbers, by whole steps; below rate 1 it is not merged here."""
    shift = math.floor(mechanism.sensitivity.spread(coordinates) * (1 - _HAIR))
    if shift == 0 or mechanism.sampling.rate < 1:
        return None
    return replace(mechanism, sensitivity=Sensitivity(bound=float(shift))), coordinates


def _part(share: float) -> _View:
    """The view of a change by a share of the bound on one coordinate, of a law that may rise."""

    def view(mechanism: Mechanism) -> _Entry | None:
        plain = _as_add_remove(mechanism)
        if plain is None or not _may_rise(plain.noise):
            return None
        shift = plain.sensitivity.bound * share * (1 - _HAIR)
        return _seen(plain, shift_pair(plain.noise, shift)), 1

    return view


def _line(mechanism: Mechanism) -> _Entry | None:
    """Noise on a random line: the change has the whole bound for its l2 norm, which all allow."""
    plain = _as_add_remove(mechanism)
    if plain is None or not isinstance(plain.noise, RandomDirection):
        return None
    return _seen(plain, line_pair(plain.noise, plain.sensitivity.bound * (1 - _HAIR))), 1


def _seen(mechanism: Mechanism, pair: DominatingPair, *, rate: float | None = None) -> Seen:
    sampling = mechanism.sampling if rate is None else Sampling(rate=rate)
    return Seen(noise=mechanism.noise, sampling=sampling, pair=pair)


def _as_add_remove(mechanism: Mechanism) -> Mechanism | None:
    try:
        return mechanism.as_add_remove()
    except NoDominatingPair:
        return None


def _may_rise(noise: Noise) -> bool:
    """Whether the density is not known to fall away from 0."""
    if isinstance(noise, MultiGaussian):
        return not noise.is_unimodal
    return isinstance(noise, Tabulated) and not noise.falling
