"""What a zeroth-order run leaves on disk: its releases, which are enough to rebuild θ.

Steps are taken in chunks. Before the first of a chunk is drawn the whole chunk is **intended** (the
spend is written and synced); after the last its releases are **committed** in one atomic step. A
kill in between may have drawn noise: with noise from the operating system the chunk is *burnt*, its
steps count as spent, release 0 and are never taken again; with a noise seed it is replayed to the
bit. So a run never takes more steps than it has paid for.

This folder is for resuming. What is in it was released, and may be published with the result.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dpmech.files import write_atomically
from dpmech.noise import Floats
from fl_integration.run_folder import RunFolder

STATE_FILE = "releases.safetensors"
INTENT_FILE = "intent.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Releases:
    """The numbers that the steps so far released; of ``burnt`` (ranges first..last−1) nothing."""

    values: Floats = field(default_factory=lambda: np.zeros(0))
    burnt: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        """The steps that are spent."""
        return len(self.values)

    def then(self, released: list[float]) -> Releases:
        """With the numbers of the next steps."""
        return Releases(values=np.append(self.values, released), burnt=self.burnt)

    def without(self, last: int) -> Releases:
        """With the steps up to ``last`` burnt: θ does not move in them."""
        steps = last - len(self)
        return Releases(
            values=np.append(self.values, np.zeros(steps)),
            burnt=(*self.burnt, (len(self), last)),
        )


class ReleaseLog(RunFolder):
    """The folder of a zeroth-order run: its releases, and the chunk that it is about to take."""

    kept = "state"

    def intend(self, first: int, last: int) -> None:
        """Write, before anything of it is drawn, that first..last−1 are about to be released."""
        if self.folder is not None:
            text = json.dumps({"first": first, "last": last, "fingerprint": self.fingerprint})
            write_atomically(self.folder / INTENT_FILE, text)

    def commit(self, releases: Releases) -> None:
        """Write all releases in one atomic step."""
        if self.folder is not None:
            header = {"burnt": releases.burnt, "fingerprint": self.fingerprint}
            blob = save({"releases": releases.values}, metadata={"state": json.dumps(header)})
            write_atomically(self.folder / STATE_FILE, blob)

    def restore(self) -> Releases:
        """The releases that were committed; none in a fresh folder.

        Raises:
            ValueError: a damaged state, that of another run, or one older than the last release.
        """
        if self.folder is None or not (self.folder / STATE_FILE).exists():
            self.intended(0)
            return Releases()
        path = self.folder / STATE_FILE
        try:
            with cast(Any, safe_open(str(path), framework="numpy")) as file:
                header: dict[str, Any] = json.loads(file.metadata()["state"])
                values = np.asarray(file.get_tensor("releases"), dtype=np.float64)
            burnt = tuple((int(first), int(last)) for first, last in header["burnt"])
            found = header["fingerprint"]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Expected releases in {path}, cannot read it: {error}.") from error
        self._same_run(found)
        self.intended(len(values))
        return Releases(values=values, burnt=burnt)

    def intended(self, done: int) -> int | None:
        """Where the chunk ends that was intended after ``done`` steps and never committed.

        Raises:
            ValueError: a damaged intent, that of another run, or one that is ahead of the state.
        """
        if self.folder is None or not (self.folder / INTENT_FILE).exists():
            return None
        path = self.folder / INTENT_FILE
        try:
            intent: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            first, last, found = int(intent["first"]), int(intent["last"]), intent["fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Expected an intent in {path}, cannot read it: {error}.") from error
        self._same_run(found)
        if first > done:
            raise ValueError(
                f"Expected an intent of step {done} at most in {self.folder}, got {first}: the"
                " releases there are older than the last; do not continue from them."
            )
        return last if first == done else None
