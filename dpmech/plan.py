"""A privacy target, and the plan that meets it: the one object handed to training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from dpmech.files import write_atomically
from dpmech.mechanism import Mechanism

_FORMAT = 1

# Mechanisms that run beside one another, each with how often.
Entries = tuple[tuple[Mechanism, int], ...]


@dataclass(frozen=True, kw_only=True)
class Target:
    """An (epsilon, delta) to stay within."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"Expected epsilon={self.epsilon} to be a finite number above 0.")
        if not 0 < self.delta < 1:
            raise ValueError(f"Expected delta={self.delta} in (0, 1).")

    def __str__(self) -> str:
        return f"epsilon={self.epsilon:g} at delta={self.delta:g}"


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """``steps`` releases of ``mechanism`` and the epsilon proved for them at ``target.delta``.

    ``others`` are releases beside the main one, each with how often it runs: the scalars of a
    training run, say. All are about neighbours of one relation.

    **Guarantees.** ``epsilon`` is an upper bound by the named accountant for all of ``entries``
    together and is at most ``target.epsilon``. A plan read from JSON is checked for form only:
    whoever trains with it re-derives epsilon from the ledger of what really ran.
    """

    target: Target
    mechanism: Mechanism
    steps: int
    accountant: str
    epsilon: float
    lower_epsilon: float | None = None
    others: Entries = ()

    def __post_init__(self) -> None:
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"Expected steps={self.steps} to be a whole number, 1 or above.")
        checked_others(self.mechanism, self.others)
        if not 0 <= self.epsilon <= self.target.epsilon:
            raise ValueError(
                f"Expected a proved epsilon={self.epsilon} between 0 and the target "
                f"{self.target.epsilon}."
            )

    @property
    def entries(self) -> Entries:
        """Everything that the plan's epsilon is about: what a ledger holds when all of it ran."""
        return ((self.mechanism, self.steps), *self.others)

    def to_json(self) -> str:
        """The plan as JSON; :meth:`from_json` reads it back unchanged."""
        data: dict[str, Any] = {
            "format": _FORMAT,
            "target": asdict(self.target),
            "mechanism": self.mechanism.to_dict(),
            "steps": self.steps,
            "accountant": self.accountant,
            "epsilon": self.epsilon,
            "lower_epsilon": self.lower_epsilon,
        }
        if self.others:  # a plan without any reads as it always did
            data["others"] = [{"mechanism": m.to_dict(), "count": n} for m, n in self.others]
        return json.dumps(data, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that :meth:`to_json` wrote; ValueError where the text is not one."""
        try:
            data = json.loads(text)
            if data["format"] != _FORMAT:
                raise ValueError(f"its format is {data['format']!r}, expected {_FORMAT}")
            return cls(
                target=Target(**data["target"]),
                mechanism=Mechanism.from_dict(data["mechanism"]),
                steps=data["steps"],
                accountant=data["accountant"],
                epsilon=data["epsilon"],
                lower_epsilon=data["lower_epsilon"],
                others=_read_others(data.get("others", [])),
            )
        except (KeyError, TypeError, ValueError) as error:
            reason = str(error).rstrip(".")
            raise ValueError(f"Not a readable privacy plan: {reason}.") from None

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically."""
        write_atomically(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan; ValueError names the file where it is missing or broken."""
        try:
            return cls.from_json(Path(path).read_text())
        except OSError as error:
            raise ValueError(f"Cannot read the plan {str(path)!r}: {error.strerror}.") from None
        except ValueError as error:
            raise ValueError(f"{str(path)!r}: {error}") from None


def checked_others(main: Mechanism, others: Sequence[tuple[Mechanism, int]]) -> Entries:
    """The releases beside the main one, if they can be composed with it; ValueError otherwise."""
    for mechanism, count in others:
        if not (isinstance(count, int) and not isinstance(count, bool) and count >= 1):
            raise ValueError(
                f"Expected count={count!r} of {mechanism.noise} to be a whole number, 1 or above."
            )
        if mechanism.relation != main.relation:
            raise ValueError(
                f"Expected every release under relation={main.relation!r}, got "
                f"{mechanism.relation!r} for {mechanism.noise}: costs for different neighbours do "
                "not add up."
            )
    return tuple(others)


def _read_others(entries: list[dict[str, Any]]) -> Entries:
    return tuple((Mechanism.from_dict(entry["mechanism"]), entry["count"]) for entry in entries)
