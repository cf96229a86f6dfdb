"""The folder of one run, which no other run may continue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar


class RunFolder:
    """The folder of one run; ``None`` as folder keeps nothing.

    Arguments:
        folder: where the run's files live; made when missing.
        fingerprint: JSON-ready description of the run; the state of another run is refused.
    """

    kept: ClassVar[str]  # what is in it, for messages

    def __init__(self, folder: Path | None, fingerprint: dict[str, Any]) -> None:
        self.folder = folder
        self.fingerprint = json.loads(json.dumps(fingerprint))

    def _same_run(self, found: dict[str, Any]) -> None:
        """Refuse the state of another run, naming what differs."""
        keys = found.keys() | self.fingerprint.keys()
        different = sorted(k for k in keys if found.get(k) != self.fingerprint.get(k))
        if different:
            raise ValueError(
                f"Expected the {self.kept} in {self.folder} to be of this run, but {different}"
                " differ; choose an empty folder or the same settings."
            )
