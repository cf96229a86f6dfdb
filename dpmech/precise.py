"""Masses of laws in units of 2^-128, in decimal arithmetic, and how far a table is from its law.

Doubles are not enough here: an error of 1e-16 in each mass, over a million coordinates and a
thousand steps, would be a delta of 1e-7. Decimal numbers of 60 digits leave what the table itself
leaves: less than 2^-128 a mass.

Symbols: ``h`` step, ``u = h/sigma``, ``a = e^(-1/b)`` ratio of neighbouring masses, ``He_m``
probabilist's Hermite polynomial, ``c`` middle of a cell in sigmas.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

from dpmech.drawing import BITS, WholeTable
from dpmech.families import Gaussian, Laplace
from dpmech.noise import Noise

_P = ParamSpec("_P")
_R = TypeVar("_R")
_DIGITS = 60
_UNIT = Decimal(2**BITS)
_SMALL = Decimal("1e-50")  # of a series: what is left of it is below the arithmetic
_MOST = 1_000_000  # masses of a table
_MOST_TERMS = 400  # of a cell's series
# What 60 digits leave over a million recurrences, and a series that stops: far below 2^-128.
_ARITHMETIC = Decimal("1e-44")


@dataclass(frozen=True, eq=False)
class PreciseTable:
    """Draws of a law on whole numbers whose total variation distance from it is below ``distance``.

    **Guarantees.** Masses are rounded down to 2^-128, and what that takes away, with the tails
    beyond the table, goes to the largest mass: no event's probability is off by more.
    """

    table: WholeTable
    distance: float


def extra_delta(distance: float, epsilon: float) -> float:
    """What to add to a delta at ``epsilon`` for draws within ``distance`` of the accounted law.

    With M' within D of M in total variation under every input, P(M'(x) in A) is at most
    P(M(x) in A) + D, which is at most e^epsilon P(M(x') in A) + delta + D, and that at most
    e^epsilon P(M'(x') in A) + delta + (1 + e^epsilon) D.
    """
    return distance * (1 + math.exp(epsilon))


def _in_decimals(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run in a context of its own: 60 digits, whatever the caller's is."""

    @wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with decimal.localcontext(decimal.Context(prec=_DIGITS, Emin=-(10**12), Emax=10**12)):
            return function(*args, **kwargs)

    return run


@lru_cache(maxsize=16)
@_in_decimals
def rounded_table(law: Noise, step: float) -> PreciseTable:
    """The law rounded to the nearest multiple of ``step``, in steps.

    Raises:
        ValueError: a law without decimal masses here, or a step too fine for a table.
    """
    if isinstance(law, Gaussian):
        side = _gaussian_cells(Decimal(step) / Decimal(law.sigma))
    elif isinstance(law, Laplace):
        side = _laplace_cells(Decimal(step) / Decimal(law.b))
    else:
        raise ValueError(
            f"Expected gaussian or laplace noise for an exact release of a vector, got {law}: only"
            " theirs is proved for vectors, or known to enough digits."
        )
    masses = _to_the_last(side, f"step={step} for {law}")
    return _table([*masses[:0:-1], *masses], first=1 - len(masses))


@lru_cache(maxsize=64)
@_in_decimals
def poisson_table(mean: float) -> PreciseTable:
    """A Poisson number."""

    def masses() -> Iterator[Decimal]:
        rate, mass, k = Decimal(mean), (-Decimal(mean)).exp(), 0
        while True:
            yield mass
            k += 1
            mass *= rate / k

    return _table(_to_the_last(masses(), f"a Poisson mean of {mean}", past=mean), first=0)


@lru_cache(maxsize=64)
@_in_decimals
def negative_binomial_table(b: float, parts: int) -> PreciseTable:
    """One of ``parts`` numbers that sum to a geometric one of ratio e^(-1/``b``)."""

    def masses() -> Iterator[Decimal]:
        a, share = (-1 / Decimal(b)).exp(), 1 / Decimal(parts)
        mass, k = ((1 - a).ln() * share).exp(), 0
        while True:
            yield mass
            mass *= a * (k + share) / (k + 1)
            k += 1

    return _table(_to_the_last(masses(), f"b={b}"), first=0)


def _to_the_last(masses: Iterator[Decimal], what: str, past: float = 0.0) -> Sequence[Decimal]:
    """All masses to where they stay below 2^-128 (they fall beyond ``past``)."""
    kept: list[Decimal] = []
    for mass in masses:
        if mass < 1 / _UNIT and len(kept) > past:
            return kept
        if len(kept) == _MOST:
            break
        kept.append(mass)
    raise ValueError(f"Expected a table of at most {_MOST} masses, got {what}: more are needed.")


def _table(masses: Sequence[Decimal], first: int) -> PreciseTable:
    """The table, checked against the total mass of 1, which no mass alone knows."""
    missing = 1 - sum(masses)
    # The tail beyond the last mass is a few thousand units at most: no law here falls more slowly
    # there than one that went from 1 to 2^-128 within the table.
    if not -_ARITHMETIC <= missing <= _MOST / _UNIT:
        raise ArithmeticError(f"Expected masses that sum to 1, got 1 - {missing:.3e}.")
    whole = [int(mass * _UNIT) for mass in masses]
    largest = max(range(len(whole)), key=whole.__getitem__)
    taken = 2**BITS - sum(whole)
    whole[largest] += taken
    start = next(i for i, w in enumerate(whole) if w)
    while not whole[-1]:
        whole.pop()
    distance = Decimal(taken) / _UNIT + _ARITHMETIC * len(masses)
    return PreciseTable(
        table=WholeTable(whole[start:], first=first + start), distance=float(distance) * (1 + 1e-9)
    )


def _laplace_cells(u: Decimal) -> Iterator[Decimal]:
    """P([X/h] = k) for k = 0, 1, …: the cell of 0, then a geometric sequence."""
    half, ratio = (-u / 2).exp(), (-u).exp()
    yield 1 - half
    mass = half * (1 - ratio) / 2
    while True:
        yield mass
        mass *= ratio


def _gaussian_cells(u: Decimal) -> Iterator[Decimal]:
    """P([X/h] = k) for k = 0, 1, …, each by the Taylor series of the density about k h.

    The density's m-th derivative is (-1)^m He_m times it; over a symmetric cell only even m stay:
    phi(c) u sum over even m of He_m(c) (u/2)^m / (m+1)!.
    """
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628621")
    density, fall = u / (2 * pi).sqrt(), (-u * u / 2).exp()
    step, k = fall * fall, 0  # phi(k+1)/phi(k) is e^(-u^2/2) e^(-k u^2)
    while True:
        yield density * _series(k * u, u / 2)
        density *= fall
        fall *= step
        k += 1


def _series(c: Decimal, half: Decimal) -> Decimal:
    """Sum over even m of He_m(c) half^m / (m+1)!, until two terms in a row are negligible."""
    before, here, power, total, small = Decimal(0), Decimal(1), Decimal(1), Decimal(0), 0
    for m in range(_MOST_TERMS):
        term = here * power if m % 2 == 0 else Decimal(0)
        total += term
        small = small + 1 if abs(term) < _SMALL * abs(total) and m % 2 == 0 else small * (m % 2)
        if small == 2:
            return total
        before, here = here, c * here - m * before
        power *= half / (m + 2)
    raise ValueError(
        f"Expected a finer step: cells of {float(2 * half):.3g} sigmas are too wide for the series."
    )
