"""State on disk that survives a kill at any moment without losing or doubling a release.

The order of a private round is: **intend** (the spend is written and synced) → draw the noise →
move the weights → **commit** (weights and ledger in one file, replaced atomically). A kill
  * before *intend* spends nothing: the round is run again;
  * between *intend* and *commit* may have drawn noise that nobody saw: with noise from the
    operating system the round is *burnt* (counted, never repeated), with a noise seed for
    experiments it is replayed to the bit and counted once;
  * after *commit* the round is done.
So the ledger can over-count a release, never miss one, and a run never exceeds its plan: a burnt
round takes the place of one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from accountants import Ledger
from dpmech.files import write_atomically
from fl_integration.model_privacy import Overheard
from fl_integration.report import RoundMetrics
from fl_integration.run_folder import RunFolder
from fl_integration.server import ServerState

STATE_FILE = "state.safetensors"
INTENT_FILE = "intent.json"
_TENSORS = ("weights", "first", "second", "visits", "averaged")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainState:
    """A run between two rounds: rounds done, server state, ledger of what ran, metrics, clip.

    What clients overheard of the broadcasts is not stored: after a resume it is shorter.

    **Guarantees**

    * ``round`` rounds were spent; their mechanisms, and no others, are in ``ledger``.
    """

    round: int
    server: ServerState
    ledger: Ledger
    metrics: tuple[RoundMetrics, ...] = ()
    clip: float | None = None
    overheard: Overheard = field(default_factory=Overheard)

    def after(self, server: ServerState, spent: Ledger, metrics: RoundMetrics) -> TrainState:
        """The state one round later, ``spent`` being what the round released."""
        ledger = self.ledger
        for mechanism, count in spent.entries:
            ledger = ledger.add(mechanism, count)
        return replace(
            self,
            round=self.round + 1,
            server=server,
            ledger=ledger,
            metrics=(*self.metrics, metrics),
        )

    def evaluated(self, accuracy: float) -> TrainState:
        """The same state, the last round's accuracy filled in."""
        last = replace(self.metrics[-1], accuracy=accuracy)
        return replace(self, metrics=(*self.metrics[:-1], last))


class Checkpoint(RunFolder):
    """The folder of a run of the loop: its state, and the round that it is about to release."""

    kept = "checkpoint"

    def intend(self, round: int, spent: Ledger) -> None:
        """Write, before any noise is drawn, what a round is about to release."""
        if self.folder is not None:
            text = json.dumps({"round": round, "spent": json.loads(spent.to_json())})
            write_atomically(self.folder / INTENT_FILE, text.encode())

    def commit(self, state: TrainState) -> None:
        """Write weights, optimiser memory, ledger and metrics in one atomic step."""
        if self.folder is None:
            return
        header = {
            "round": state.round,
            "clip": state.clip,
            "ledger": json.loads(state.ledger.to_json()),
            "metrics": [metrics.to_dict() for metrics in state.metrics],
            "fingerprint": self.fingerprint,
        }
        tensors = {name: getattr(state.server, name).contiguous() for name in _TENSORS}
        write_atomically(
            self.folder / STATE_FILE, save(tensors, metadata={"state": json.dumps(header)})
        )

    def restore(self) -> TrainState | None:
        """The last committed state, or ``None`` for a fresh folder.

        Raises:
            ValueError: when the state is damaged, belongs to another run, or is older than its last
                release.
        """
        if self.folder is None or not (self.folder / STATE_FILE).exists():
            self.intended(0)
            return None
        path = self.folder / STATE_FILE
        try:
            header, server = _read(path)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Expected a checkpoint in {path}, cannot read it: {error}."
            ) from error
        self._same_run(header["fingerprint"])
        self.intended(int(header["round"]))
        return TrainState(
            round=int(header["round"]),
            server=server,
            ledger=Ledger.from_json(json.dumps(header["ledger"])),
            metrics=tuple(RoundMetrics(**fields) for fields in header["metrics"]),
            clip=header["clip"],
        )

    def intended(self, round: int) -> Ledger | None:
        """What ``round`` was to release, if it was intended and never committed."""
        if self.folder is None or not (self.folder / INTENT_FILE).exists():
            return None
        intent = json.loads((self.folder / INTENT_FILE).read_text(encoding="utf-8"))
        if intent["round"] > round:
            raise ValueError(
                f"Expected an intent for round {round} at most, got {intent['round']}: the state in"
                f" {self.folder} is older than its last release; do not continue from it."
            )
        return Ledger.from_json(json.dumps(intent["spent"])) if intent["round"] == round else None


def _read(path: Path) -> tuple[dict[str, Any], ServerState]:
    """Header and server state of a checkpoint file."""
    with cast(Any, safe_open(path, framework="pt")) as file:
        header = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in _TENSORS}
    return header, ServerState(**tensors)
