"""One training run as the command line shows it: progress while it lasts, a summary at its end."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmech.cli._output import bounded, talk

if TYPE_CHECKING:
    from dpmech.cli._requests import Request
    from fl_integration import RoundMetrics, TrainReport, TrainRequest
    from fl_integration.zo_report import ZerothOrderReport
    from fl_integration.zo_train import ZerothOrderRequest

    Report = TrainReport | ZerothOrderReport


def lends_a_hand() -> bool:
    """Whether torchrun started this process beside the one that leads the run."""
    return int(os.environ.get("RANK", "0")) > 0


def trained(request: Request) -> Report:
    """Train, with a progress bar on a terminal and a line now and then elsewhere."""
    from fl_integration import TrainRequest

    if not isinstance(request, TrainRequest) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"Expected one process for zeroth-order training, got WORLD_SIZE="
            f"{os.environ['WORLD_SIZE']}: its steps are not shared out."
        )
    if not lends_a_hand():
        talk(f"Training {request.model} on {request.data}.")
    return _federated(request) if isinstance(request, TrainRequest) else _zeroth_order(request)


def _federated(request: TrainRequest) -> TrainReport:
    from fl_integration import train as run

    with _bar(request.config.rounds, "round") as bar:

        def show(metrics: RoundMetrics) -> None:
            bar.update(metrics.round + 1 - bar.n)
            if metrics.accuracy is None:
                return
            bar.set_postfix(accuracy=f"{metrics.accuracy:.3f}")
            if bar.disable:
                done = f"round {metrics.round + 1} of {request.config.rounds}"
                talk(f"{done}: accuracy {metrics.accuracy:.3f}")

        return run(request, progress=show)


def _zeroth_order(request: ZerothOrderRequest) -> ZerothOrderReport:
    from fl_integration.zo_train import train_zo

    with _bar(request.config.steps, "step") as bar:

        def show(done: int, steps: int) -> None:
            bar.update(done - bar.n)
            if bar.disable:
                talk(f"step {done} of {steps}")

        return train_zo(request, progress=show)


@contextmanager
def _bar(total: int, unit: str) -> Generator[Any]:
    from tqdm import tqdm

    hidden = True if lends_a_hand() else None  # None: hidden where this is no terminal
    with tqdm(total=total, unit=unit, disable=hidden) as bar:
        yield bar


def summary(report: Report, out: Path) -> list[str]:
    """The result as the user reads it."""
    from fl_integration import TrainReport

    federated = isinstance(report, TrainReport)
    accuracy = report.final_accuracy if federated else report.accuracy
    shown = "not measured" if accuracy is None else f"{accuracy:.4f}"
    largest = report.majority_share
    beside = "" if largest is None else f" (largest class: {largest:.4f})"
    lines = [f"accuracy {shown}{beside}", f"results: {out}"]
    if report.epsilon is None:
        return [*lines, "not private: no noise was added"]
    accountant = report.accountant if federated else None
    bound = bounded("epsilon", None, report.epsilon, accountant or "pld")
    lines.append(f"this run, {_protected(report)}: {bound}, delta {report.delta:g}")
    if federated and report.hypothetical is not None:
        lines.append(str(report.hypothetical))
    elif report.why_not_private is not None:
        lines.append(f"not to be called private: {report.why_not_private}")
    return lines


def _protected(report: Report) -> str:
    """Whom the bound is about."""
    from fl_integration import TrainReport

    if not isinstance(report, TrainReport):
        return f"{report.request['records']} {report.unit}s"
    if report.config.get("silos"):
        return f"an example of {report.clients} silos"
    return f"{report.clients} {report.unit}s"
