"""The folder of one run, which no other run may continue, nor use at the same time."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"  # not shown among the results
STATE_FOLDER, HEAD_START = "checkpoint", "head-start"
PLAN_FILE, LEDGER_FILE = "plan.json", "ledger.json"


@contextmanager
def held(folder: Path | None) -> Generator[None]:
    """Keep a folder for this run until the block ends, or its process does, however it ends.

    Two runs on one folder would both draw noise, and each ledger would count its own alone.
    Entered again by the thread that holds it, it changes nothing; ``None`` is nobody's.

    Raises:
        ValueError: where another run holds the folder (nothing is waited for), or a file is there.
    """
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(
            f"Expected a folder or nothing at {str(folder)!r}, got a file; choose another."
        ) from None
    lock = FileLock(folder.resolve() / LOCK_FILE, is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"Expected {str(folder)!r} to be free, but another run is using it; wait for it, or"
            " choose another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def opened(out: Path, *, plan_is_given: bool, head_start: bool = True) -> Generator[None]:
    """`held`, for the folder of a request that has lost nothing of what it released.

    A plan is written after the first state (a given one may have been there before), a ledger
    after the last. Where the state is gone, the same noise would be paid once and drawn twice.
    A head start that is there must be one of the request, or no ledger would hold it.

    Raises:
        ValueError: another run holds it, its state is missing, or it has another's head start.
    """
    with held(out):
        if not head_start and (out / HEAD_START / STATE_FOLDER).exists():
            raise ValueError(
                f"Expected no head start in {str(out)!r}: what it released would be in no ledger of"
                " this run; choose another folder."
            )
        for phase in (out / HEAD_START, out):
            signs = (LEDGER_FILE,) if phase == out and plan_is_given else (PLAN_FILE, LEDGER_FILE)
            left = [name for name in signs if (phase / name).exists()]
            if left and not (phase / STATE_FOLDER).exists():
                raise ValueError(
                    f"Expected {str(phase / STATE_FOLDER)!r} beside {left[0]}, but it is missing:"
                    " what its run released is not known; put it back, or start in a new folder."
                )
        yield


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
