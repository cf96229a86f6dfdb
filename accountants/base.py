"""What every accountant is, and the ledger of the mechanisms that ran."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from dpmech import Mechanism
from dpmech.files import write_atomically

_FORMAT = 1


def checked_delta(delta: float) -> float:
    """``delta`` if it is in (0, 1), else a ValueError that says so."""
    if not 0 < delta < 1:
        raise ValueError(f"Expected delta={delta} in (0, 1).")
    return float(delta)


def checked_epsilon(epsilon: float) -> float:
    """``epsilon`` if it is finite and not negative, else a ValueError that says so."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"Expected epsilon={epsilon} to be a finite number, 0 or above.")
    return float(epsilon)


@dataclass(frozen=True)
class Ledger:
    """The mechanisms that ran on the same data, in order, each with how often it ran.

    All have one relation, the one of every bound that is computed from the ledger.

    >>> from dpmech import Gaussian, Mechanism
    >>> release = Mechanism(noise=Gaussian(sigma=1.0))
    >>> Ledger().add(release).add(release, 2).entries[0][1]
    3
    """

    entries: tuple[tuple[Mechanism, int], ...] = ()

    def __post_init__(self) -> None:
        relations = {mechanism.relation for mechanism, _ in self.entries}
        if len(relations) > 1:
            raise ValueError(
                f"Expected one relation in a ledger, got {', '.join(sorted(relations))}: costs for "
                "different neighbours do not add up; account for them in ledgers of their own."
            )

    def add(self, mechanism: Mechanism, count: int = 1) -> Ledger:
        """A new ledger with ``count`` more runs of ``mechanism``, merged with an equal last one."""
        if not (isinstance(count, int) and count >= 1):
            raise ValueError(f"Expected count={count} to be a whole number, 1 or above.")
        if self.entries and self.entries[-1][0] == mechanism:
            return Ledger((*self.entries[:-1], (mechanism, self.entries[-1][1] + count)))
        return Ledger((*self.entries, (mechanism, count)))

    def collected(self) -> Ledger:
        """The same runs with equal mechanisms gathered: order does not matter to composition."""
        counts: dict[Mechanism, int] = {}
        for mechanism, count in self.entries:
            counts[mechanism] = counts.get(mechanism, 0) + count
        return Ledger(tuple(counts.items()))

    @property
    def runs(self) -> int:
        """How many releases the ledger holds."""
        return sum(count for _, count in self.entries)

    def to_json(self) -> str:
        """The ledger as JSON; :meth:`from_json` reads it back unchanged."""
        entries = [{"mechanism": m.to_dict(), "count": count} for m, count in self.entries]
        return json.dumps({"format": _FORMAT, "entries": entries}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """The ledger that :meth:`to_json` wrote; ValueError where the text is not one."""
        try:
            data: Any = json.loads(text)
            if data["format"] != _FORMAT:
                raise ValueError(f"its format is {data['format']!r}, expected {_FORMAT}")
            ledger = cls()
            for entry in data["entries"]:
                ledger = ledger.add(Mechanism.from_dict(entry["mechanism"]), entry["count"])
            return ledger
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Not a readable ledger: {error}.") from None

    def save(self, path: str | Path) -> None:
        """Write the ledger as JSON, atomically."""
        write_atomically(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Ledger:
        """Read a ledger; ValueError names the file where it is missing or broken."""
        try:
            return cls.from_json(Path(path).read_text())
        except OSError as error:
            raise ValueError(f"Cannot read the ledger {str(path)!r}: {error.strerror}.") from None
        except ValueError as error:
            raise ValueError(f"{str(path)!r}: {error}") from None


class Accountant(Protocol):
    """Composes mechanisms and answers with proved upper bounds.

    **Guarantees.** :meth:`delta` and :meth:`epsilon` are upper bounds for the adaptive composition
    of everything in :attr:`ledger`, under add/remove of one record; both directions are composed
    separately and the worse is taken at the end.
    """

    @property
    def ledger(self) -> Ledger:
        """What has been composed."""
        ...

    def compose(self, mechanism: Mechanism, count: int = 1) -> Self:
        """A new accountant with ``count`` more runs of ``mechanism``."""
        ...

    def delta(self, epsilon: float) -> float:
        """An upper bound on delta at ``epsilon``."""
        ...

    def epsilon(self, delta: float) -> float:
        """An upper bound on epsilon at ``delta`` (inf if there is none)."""
        ...

    def lower_epsilon(self, delta: float) -> float | None:
        """A lower bound on epsilon at ``delta``, or None where the accountant has none."""
        ...

    def compose_ledger(self, ledger: Ledger) -> Self:
        """A new accountant with everything in ``ledger`` added."""
        ...

    def epsilon_interval(self, delta: float) -> tuple[float | None, float]:
        """(lower_epsilon, epsilon) at ``delta``, from one computation where there is one."""
        ...

    def delta_interval(self, epsilon: float) -> tuple[float | None, float]:
        """(a lower bound or None, delta) at ``epsilon``, likewise."""
        ...


class Composer(ABC):
    """What every accountant does in the same way."""

    @abstractmethod
    def compose(self, mechanism: Mechanism, count: int = 1) -> Self:
        """A new accountant with ``count`` more runs of ``mechanism``."""

    @abstractmethod
    def delta(self, epsilon: float) -> float:
        """An upper bound on delta at ``epsilon``."""

    @abstractmethod
    def epsilon(self, delta: float) -> float:
        """An upper bound on epsilon at ``delta``."""

    @abstractmethod
    def lower_epsilon(self, delta: float) -> float | None:
        """A lower bound on epsilon at ``delta``, or None."""

    def compose_ledger(self, ledger: Ledger) -> Self:
        """A new accountant with everything in ``ledger`` added."""
        accountant = self
        for mechanism, count in ledger.entries:
            accountant = accountant.compose(mechanism, count)
        return accountant

    def epsilon_interval(self, delta: float) -> tuple[float | None, float]:
        """(lower_epsilon, epsilon) at ``delta``."""
        return self.lower_epsilon(delta), self.epsilon(delta)

    def delta_interval(self, epsilon: float) -> tuple[float | None, float]:
        """(None, delta) at ``epsilon``: no lower bound."""
        return None, self.delta(epsilon)
