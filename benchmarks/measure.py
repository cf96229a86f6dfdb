"""One call in its own forked process: its answer, its time, the memory it took.

A fork has everything imported, and remembers nothing from the calls before; a call
that hangs or explodes takes nothing else with it. POSIX only.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

# Seconds a call may take; beyond _ONCE it is not repeated.
LIMIT, _ONCE, _REPEATS = 75.0, 5.0, 3
# Bytes a call may take beyond what was there before it.
MEMORY = 6 << 30
_MEBIBYTE = float(1 << 20)
# getrusage counts kibibytes on Linux and bytes on macOS.
_UNIT = 1 if sys.platform == "darwin" else 1024
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An answer with the median seconds and the peak of the memory it took, in MiB."""

    value: float
    seconds: float
    memory: float


def _child(call: Callable[[], float], pipe: Connection) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _limit_memory()
    began = time.perf_counter()
    try:
        value: float | str = float(call())
    except MemoryError:
        value = f"more than {MEMORY >> 30} GiB"
    except Exception as error:  # whatever a peer raises is its answer
        value = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _UNIT / _MEBIBYTE
    pipe.send((value, seconds, grown))


def _limit_memory() -> None:
    """Where the system says how large the process is: Linux."""
    try:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
    except OSError:
        return
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def once(call: Callable[[], float]) -> tuple[float | str, float, float]:
    """(answer or what went wrong, seconds, MiB)."""
    here, there = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_child, args=(call, there))
    process.start()
    there.close()
    try:
        if not here.poll(LIMIT):
            return f"more than {LIMIT:.0f} s", LIMIT, 0.0
        return here.recv()
    except EOFError:
        return "killed", 0.0, 0.0
    finally:
        process.kill()
        process.join()


def measured(call: Callable[[], float]) -> Measured | str:
    """The median of three calls (of one, if that is slow), or why there is no answer."""
    runs = [once(call)]
    if runs[0][1] < _ONCE:
        runs += [once(call) for _ in range(_REPEATS - 1)]
    for value, _, _ in runs:
        if isinstance(value, str):
            return value
    values, seconds, memory = zip(*runs, strict=True)
    return Measured(value=float(values[0]), seconds=statistics.median(seconds), memory=max(memory))
