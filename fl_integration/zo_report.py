"""What a zeroth-order run has to say for itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from accountants import Ledger
from dpmech.files import write_atomically
from fl_integration.accounting import RELATION
from fl_integration.extrapolate import finite_or_text
from fl_integration.report import SECRET, SEEDED, SELECTION, unproved
from fl_integration.zeroth_order import ZerothOrderResult

FORMAT = 1
NUMBER = 8  # bytes of a seed, of a quotient and of a release
TRUSTED = "server (adds the noise, sees each sampled record's clipped number)"
WITHHELD = (
    "who was sampled, how many, and their losses are functions of private data; they were not"
    " noised and are not reported"
)


@dataclass(frozen=True, kw_only=True)
class ZerothOrderReport:
    """The account of a finished run.

    **Guarantees**

    * ``epsilon`` is re-derived from ``ledger``, which holds every step that may have been released,
      the burnt ones of interrupted processes included.

    request: model, data, unit, layers, records. config: of the run. dim: d. accuracy,
    majority_share: on the public test set. burnt: steps that were spent without a release.
    bytes_down: what a client is sent in the whole run: the seed, then every release, from which it
    rebuilds θ. bytes_up: what it sends, on average: one number whenever it is sampled.
    """

    request: Mapping[str, Any]
    config: Mapping[str, Any]
    dim: int
    accuracy: float
    majority_share: float | None
    burnt: Sequence[tuple[int, int]]
    bytes_down: int
    bytes_up: float
    ledger: Ledger | None
    epsilon: float | None
    delta: float | None
    seconds: float = 0.0
    unit: str = "user"
    relation: str = RELATION
    sampling: str = "poisson"
    trusted: str = TRUSTED
    selection: str = SELECTION
    versions: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(
        cls,
        result: ZerothOrderResult,
        *,
        request: Mapping[str, Any],
        burnt: Sequence[tuple[int, int]],
        accuracy: float,
        majority_share: float | None,
    ) -> Self:
        """The report of a result, before its times are known."""
        config, private = result.config, bool(result.ledger.entries)
        return cls(
            request=request,
            config=config.to_dict(),
            dim=len(result.theta),
            accuracy=accuracy,
            majority_share=majority_share,
            burnt=tuple(burnt),
            bytes_down=NUMBER * (1 + config.steps),
            bytes_up=NUMBER * config.rate * config.steps,
            ledger=result.ledger if private else None,
            epsilon=result.epsilon if private else None,
            delta=result.delta if private else None,
            unit=request["unit"],
        )

    @property
    def why_not_private(self) -> str | None:
        """Why this run may not be called private, ``None`` when it may."""
        return unproved(self.ledger, self.epsilon, self.config["noise_seed"])

    def to_json(self) -> str:
        """The report as strict JSON."""
        flat = {f.name: getattr(self, f.name) for f in fields(self)}
        seeded = self.config["noise_seed"] is not None
        flat |= {
            "format": FORMAT,
            "system": "zeroth-order",
            "ledger": None if self.ledger is None else json.loads(self.ledger.to_json()),
            "epsilon": None if self.epsilon is None else finite_or_text(self.epsilon),
            "randomness": SEEDED if seeded else SECRET,
            "withheld": None if self.ledger is None else WITHHELD,
            "why_not_private": self.why_not_private,
        }
        return json.dumps(flat, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The report that `to_json` wrote (ValueError when it is not one)."""
        try:
            flat = json.loads(text)
            values = {f.name: flat[f.name] for f in fields(cls)}
            values["burnt"] = tuple((int(a), int(b)) for a, b in flat["burnt"])
            if flat["ledger"] is not None:
                values["ledger"] = Ledger.from_json(json.dumps(flat["ledger"]))
                values["epsilon"] = float(flat["epsilon"])
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"Expected the JSON of a zeroth-order report, got {error!r}."
            ) from error
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        write_atomically(Path(path), self.to_json())
