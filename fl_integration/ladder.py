"""Many training runs, each in a process of its own: finished ones are kept, failures are told."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpmech.files import write_atomically
from fl_integration.report import TrainReport
from fl_integration.train import TrainRequest, train

SETTINGS_FILE = "config.toml"
REPORT_FILE = "report.json"
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One run of a ladder.

    Arguments:
        name: of the run. request: what is run; its folder is the run's own. settings: a text that
            is different for different runs; it is kept in the folder, and tells whose it is.
    """

    name: str
    request: TrainRequest
    settings: str

    @property
    def folder(self) -> Path:
        """Where the run leaves its results."""
        return Path(self.request.out)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that ended without a report, and the sentence that says why."""

    reason: str


Outcome = TrainReport | Failure
Told = Callable[[str, Outcome], None]


def climb(
    rungs: Sequence[Rung], *, processes: int = 1, progress: Told = lambda name, outcome: None
) -> dict[str, Outcome]:
    """Run all that is not finished, and return every outcome in the order asked for.

    **Guarantees**

    * A finished run is read and not repeated; an interrupted one continues, and spends nothing
      twice. An interrupt starts no further run and loses none.
    * One run's failure stops no other.
    * A folder that holds another run is refused before anything is run.

    Arguments:
        processes: runs at the same time, each with one thread; 1 runs them in this process.
        progress: called with the name and outcome of each run that ends.

    Raises:
        ValueError: two runs of one name or folder, a folder of another run, no process.
    """
    if processes < 1:
        raise ValueError(f"Expected processes={processes} >= 1.")
    _check(rungs)
    done = {rung.name: report for rung in rungs if (report := _finished(rung)) is not None}
    for rung in rungs:
        if rung.name not in done:
            write_atomically(rung.folder / SETTINGS_FILE, rung.settings)
    waiting = [rung for rung in rungs if rung.name not in done]
    found: dict[str, Outcome] = {**done, **_climbed(waiting, processes, progress)}
    return {rung.name: found[rung.name] for rung in rungs}


def _check(rungs: Sequence[Rung]) -> None:
    """Refuse what would mix two runs."""
    for kind, keys in (
        ("names", [rung.name for rung in rungs]),
        ("folders", [str(rung.folder) for rung in rungs]),
    ):
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"Expected different {kind} of runs, got {sorted(twice)} twice.")
    for rung in rungs:
        kept = rung.folder / SETTINGS_FILE
        if kept.is_file() and kept.read_text(encoding="utf-8") != rung.settings:
            raise ValueError(
                f"Expected {str(kept)!r} to be of the run {rung.name!r}, but it holds other"
                " settings; choose another folder, or the same settings."
            )


def _finished(rung: Rung) -> TrainReport | None:
    """The report of a run that is done; the folder is known to be its own."""
    report = rung.folder / REPORT_FILE
    if not ((rung.folder / SETTINGS_FILE).is_file() and report.is_file()):
        return None
    return TrainReport.from_json(report.read_text(encoding="utf-8"))


def _climbed(rungs: Sequence[Rung], processes: int, tell: Told) -> dict[str, Outcome]:
    """The outcomes of runs, here or in processes of their own."""
    found: dict[str, Outcome] = {}
    each = _here(rungs) if processes == 1 else _in_processes(rungs, processes)
    for name, outcome in each:
        found[name] = outcome
        tell(name, outcome)
    return found


def _here(rungs: Sequence[Rung]) -> Iterator[tuple[str, Outcome]]:
    """One run after the other, in this process."""
    for rung in rungs:
        yield rung.name, _run(rung.request)


def _in_processes(rungs: Sequence[Rung], processes: int) -> Iterator[tuple[str, Outcome]]:
    """Several runs at a time, as they end.

    No run is handed over before there is a process for it: what a pool holds in advance would
    still be run after an interrupt.
    """
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from multiprocessing import get_context

    waiting, running = list(rungs), dict[Future[Outcome], str]()
    with (
        _one_thread_each(),
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
    ):
        while waiting or running:
            while waiting and len(running) < processes:
                rung = waiting.pop(0)
                running[pool.submit(_run, rung.request)] = rung.name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


def _run(request: TrainRequest) -> Outcome:
    """One run, as its process sees it."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return train(request)
    except Exception as error:  # some do not survive the way between processes
        return Failure(reason=f"{type(error).__name__}: {' '.join(str(error).split())}")


@contextmanager
def _one_thread_each() -> Generator[None]:
    """What new processes find when they load torch, before anything of ours runs there.

    With more threads than cores they would wait for each other, and take four times as long.
    """
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before
