"""Reports of training runs, gathered for a plot; read as plain JSON, without torch."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from dpmech.plotting import AccuracyPoint


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a plot needs of one report; ``epsilon`` is None for a run without noise."""

    path: Path
    data: str
    label: str
    epsilon: float | None
    hypothetical: bool
    accuracy: float
    majority: float

    @classmethod
    def read(cls, path: Path) -> Self:
        """The run of a report.json; ValueError names the file where it is not one."""
        try:
            report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            forecast = report["hypothetical"]
            epsilon = report["epsilon"] if forecast is None else forecast["epsilon"]
            return cls(
                path=path,
                data=str(report["data"]),
                label=_label(report),
                epsilon=None if epsilon is None else float(epsilon),
                hypothetical=forecast is not None,
                accuracy=float(report["final_accuracy"]),
                majority=float(report["majority_share"]),
            )
        except OSError as error:
            raise ValueError(f"Cannot read the report {str(path)!r}: {error.strerror}.") from None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} is not the report of a run: {error!r}.") from None


def _label(report: dict[str, Any]) -> str:
    """Runs with the same label differ in seed and epsilon only, as far as a plot is concerned."""
    config, forecast = report["config"], report["hypothetical"]
    of = "" if forecast is None else f", {forecast['population']:,} users"
    return f"{config['system']}, rank {config['rank']}{of}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Reports of one data set, gathered by kind of run and epsilon."""

    points: tuple[AccuracyPoint, ...]
    majority: float
    non_private: tuple[float, ...]
    left_out: tuple[str, ...]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Self:
        """Read report.json files, and all below folders."""
        return cls.of([Run.read(path) for path in _report_files(paths)])

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self:
        """Gather runs; ValueError where they are not about one data set or none is private."""
        from dpmech.plotting import AccuracyPoint

        data = sorted({run.data for run in runs})
        if len(data) > 1:
            raise ValueError(f"Expected reports on one data set, got {', '.join(data)}.")
        kinds: dict[tuple[str, bool, float], list[float]] = defaultdict(list)
        left_out: list[str] = []
        for run in runs:
            if run.epsilon is None:
                continue
            if 0 < run.epsilon < math.inf:
                kinds[run.label, run.hypothetical, _same(run.epsilon)].append(run.accuracy)
            else:
                left_out.append(f"Left out {run.path}: its epsilon is {run.epsilon}.")
        if not kinds:
            raise ValueError(f"Expected a run with a finite epsilon among {len(runs)} reports.")
        return cls(
            points=tuple(
                AccuracyPoint(
                    label=label, epsilon=epsilon, accuracies=tuple(seeds), hypothetical=hypothetical
                )
                for (label, hypothetical, epsilon), seeds in sorted(kinds.items())
            ),
            majority=sum(run.majority for run in runs) / len(runs),
            non_private=tuple(run.accuracy for run in runs if run.epsilon is None),
            left_out=tuple(left_out),
        )

    def to_dict(self) -> dict[str, object]:
        """The summary for JSON."""
        return {
            "points": [asdict(point) for point in self.points],
            "majority": self.majority,
            "non_private": list(self.non_private),
        }


def _same(epsilon: float) -> float:
    """An epsilon in three digits, rounded up: seeds of one target are one point."""
    unit = 10.0 ** (math.floor(math.log10(epsilon)) - 2)
    return float(f"{math.ceil(epsilon / unit - 1e-6) * unit:.3g}")


def _report_files(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and every report.json below the folders."""
    found: list[Path] = []
    for path in paths:
        below = sorted(path.rglob("report.json")) if path.is_dir() else [path]
        if not below:
            raise ValueError(f"Expected a report.json below {str(path)!r}.")
        found += below
    return list(dict.fromkeys(found))
