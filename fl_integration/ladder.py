"""Many training runs, each in a process of its own: finished ones are kept, failures are told."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import current_thread, main_thread

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
    """Several runs at a time, as they end; on leaving, those under way are ended.

    They may be ended at any moment: their state on disk allows it. Each process has a pipe of its
    own and an interrupt is for this one alone, so that nothing shared is left half held.
    """
    waiting, running = list(rungs), dict[_Worker, str]()
    idle = [_Worker() for _ in range(min(processes, len(rungs)))]
    try:
        while waiting or running:
            while waiting and idle:
                worker, rung = idle.pop(), waiting.pop(0)
                worker.pipe.send(rung.request)
                running[worker] = rung.name
            ready = wait([worker.pipe for worker in running])
            for worker in [worker for worker in running if worker.pipe in ready]:
                outcome = worker.outcome()
                yield running.pop(worker), outcome
                idle.append(worker if worker.process.is_alive() else _Worker())
    finally:
        for worker in (*idle, *running):
            worker.end()


class _Worker:
    """A process that trains what it is sent, with one thread, and sends back what came of it."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _one_thread(), _uninterrupted():
            self.process.start()
        theirs.close()  # else its end would not be noticed here

    def outcome(self) -> Outcome:
        """What came of its run, or that it died."""
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            return Failure(reason=f"its process ended with exit code {self.process.exitcode}")

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.terminate()
        self.process.join()


def _serve(pipe: Connection[Outcome, TrainRequest]) -> None:
    """Train what comes, until nobody is there to ask for more."""
    with suppress(EOFError):
        while True:
            pipe.send(_run(pipe.recv()))


def _run(request: TrainRequest) -> Outcome:
    """One run, as its process sees it."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return train(request)
    except Exception as error:  # some do not survive the way between processes
        return Failure(reason=f"{type(error).__name__}: {' '.join(str(error).split())}")


@contextmanager
def _one_thread() -> Generator[None]:
    """What a new process finds when it loads torch, before anything of ours runs there.

    With more threads than cores the processes would wait for each other, and take four times as
    long.
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


@contextmanager
def _uninterrupted() -> Generator[None]:
    """Let new processes ignore Ctrl-C, which a terminal sends to all: this one ends them."""
    if current_thread() is not main_thread():  # which alone may say so
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
