"""What several accountants, ours and others', say of one ledger."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accountants.base import Accountant, Ledger, checked_delta
from accountants.events import dp_accounting_package, neighboring_relation, to_dp_event
from accountants.pld import PLD
from accountants.prv import PRV
from accountants.rdp import RDP
from dpmech import NoDominatingPair

__all__ = ["Opinion", "SecondOpinion", "second_opinion"]

# Its own default; a grid finer by the epsilon it is to resolve costs the more memory.
_THEIR_STEP = 1e-4
_PROVED = "proved here"
_UPPER = "an upper bound, but for the rounding of its FFT"
_ORDERS = "an upper bound, from a list of orders"

Bounds = tuple[float | None, float]


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What ``name`` says of epsilon: bounds (None: not given), its time, and a remark."""

    name: str
    lower: float | None
    upper: float | None
    seconds: float
    note: str


@dataclass(frozen=True, kw_only=True)
class SecondOpinion:
    """The opinions on epsilon at ``delta``; ``str`` of it is a table."""

    delta: float
    opinions: tuple[Opinion, ...]

    def __str__(self) -> str:
        rows = [("accountant", "lower", "upper", "seconds", "note")]
        rows += [
            (o.name, _shown(o.lower), _shown(o.upper), f"{o.seconds:.3f}", o.note)
            for o in self.opinions
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.8g}"


def second_opinion(ledger: Ledger, delta: float) -> SecondOpinion:
    """Epsilon of ``ledger`` at ``delta`` by every accountant there is: ours, PRV, dp-accounting's.

    **Guarantees.** Only the bounds noted as proved are ours to vouch for. An accountant that
    refuses, or is not installed, has no bounds, and its reason for a note.

    >>> from dpmech import Gaussian, Mechanism
    >>> table = second_opinion(Ledger().add(Mechanism(noise=Gaussian(sigma=2.0))), 1e-5)
    >>> [opinion.name for opinion in table.opinions][:3]
    ['pld', 'rdp', 'prv']
    """
    checked_delta(delta)
    asked: tuple[tuple[str, str, Callable[[], Bounds]], ...] = (
        ("pld", _PROVED, lambda: PLD().compose_ledger(ledger).epsilon_interval(delta)),
        ("rdp", "an upper bound", lambda: _ours(RDP(), ledger).epsilon_interval(delta)),
        ("prv", "its own interval", lambda: _ours(PRV(), ledger).epsilon_interval(delta)),
        ("dp-accounting pld", _UPPER, lambda: (None, _their_pld(ledger).get_epsilon(delta))),
        ("dp-accounting rdp", _ORDERS, lambda: (None, _their_rdp(ledger).get_epsilon(delta))),
    )
    return SecondOpinion(
        delta=delta, opinions=tuple(_opinion(name, note, ask) for name, note, ask in asked)
    )


def _opinion(name: str, note: str, ask: Callable[[], Bounds]) -> Opinion:
    began = time.perf_counter()
    lower = upper = None
    try:
        lower, upper = ask()
        upper = float(upper)
    # Whatever another's code raises is its opinion, not the end of everybody else's.
    except Exception as error:
        note = f"refused: {error}" if str(error) else f"refused: {type(error).__name__}"
    if upper is not None and math.isnan(upper):
        upper, note = None, "no answer"
    return Opinion(
        name=name, lower=lower, upper=upper, seconds=time.perf_counter() - began, note=note
    )


def _ours(accountant: Accountant, ledger: Ledger) -> Accountant:
    """With the ledger composed, for accountants that know no relation but add-remove."""
    for mechanism, count in ledger.entries:
        accountant = accountant.compose(mechanism.as_add_remove(), count)
    return accountant


def _their_pld(ledger: Ledger) -> Any:
    dp_accounting_package()
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(_their_relation(ledger), value_discretization_interval=_THEIR_STEP)
    return accountant.compose(to_dp_event(ledger))


def _their_rdp(ledger: Ledger) -> Any:
    dp_accounting_package()
    from dp_accounting.rdp import RdpAccountant

    if any(m.relation == "replace-one" for m, _ in ledger.entries):
        raise NoDominatingPair(
            "Under relation='replace-one' it takes the noise multiplier for one of the change "
            "between neighbours, its PLD for one of a contribution.",
            "Compare accountant='pld'.",
        )
    return RdpAccountant(neighboring_relation=_their_relation(ledger)).compose(to_dp_event(ledger))


def _their_relation(ledger: Ledger) -> Any:
    entries = ledger.entries
    return neighboring_relation(entries[0][0].relation if entries else "add-remove")
