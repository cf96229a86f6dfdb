"""The table of ``dpmech compare-systems``: runs gathered over seeds, with an interval.

Symbols: n seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Self

from dpmech.cli._output import at_most

if TYPE_CHECKING:
    from dpmech.plotting import AccuracyPoint
    from fl_integration import TrainReport

LEVEL = 0.95
HEADER = ("system", "ε", "what it is", "accuracy", "ε of these runs", "down", "up", "seconds")
NOTE = (
    "Accuracy: mean over seeds ± half of the 95 % t-interval. It is about what a seed changes (how"
    " data are dealt, first weights, cohorts, noise), not about which texts are in the test set,"
    " nor about tuning. Bars in the plot: all seeds. Down, up: bytes of one client in a whole run,"
    " expected. Seconds: mean of a run.",
    "proved: upper bound for the clients that took part. hypothetical: a forecast for a larger"
    " population; it protects nobody in these runs, as their own ε shows. Without noise: the same"
    " system, not private.",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system at one target.

    Arguments:
        system: its name. target: ε asked for, ``None`` without noise. kind: proved, hypothetical,
            seeded (reproducible noise) or without noise. epsilon: what holds for all seeds; of a
            forecast, there. actual: what the runs cost their own clients (may be inf).
        accuracies: (n,). seconds: mean. bytes_down, bytes_up: mean, of one client.
    """

    system: str
    target: float | None
    kind: str
    epsilon: float | None
    actual: float | None
    delta: float | None
    accuracies: tuple[float, ...]
    seconds: float
    bytes_down: float | None
    bytes_up: float | None

    @classmethod
    def of(cls, system: str, target: float | None, reports: Sequence[TrainReport]) -> Self:
        """Gather the seeds of one system at one target."""
        first = reports[0]
        claimed = [r.epsilon if r.hypothetical is None else r.hypothetical.epsilon for r in reports]
        delta = first.delta if first.hypothetical is None else first.hypothetical.delta
        return cls(
            system=system,
            target=target,
            kind=_kind(first),
            epsilon=_largest(claimed),
            actual=_largest([r.epsilon for r in reports]),
            delta=delta,
            accuracies=tuple(r.final_accuracy for r in reports if r.final_accuracy is not None),
            seconds=fmean(r.seconds for r in reports),
            bytes_down=_mean([r.bytes_down for r in reports]),
            bytes_up=_mean([r.bytes_up for r in reports]),
        )

    @property
    def mean(self) -> float | None:
        """The mean accuracy, where one was measured."""
        return fmean(self.accuracies) if self.accuracies else None

    @property
    def half(self) -> float | None:
        """Half of the t-interval of the mean, for at least two seeds."""
        n = len(self.accuracies)
        if n < 2:
            return None
        from scipy.special import stdtrit

        return float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stdev(self.accuracies) / math.sqrt(n)

    def cells(self) -> tuple[str, ...]:
        """The row as it is read."""
        from fl_integration.report_page import bytes_text

        mean = "not measured" if self.mean is None else f"{self.mean:.4f}"
        half = "" if self.half is None else f" ± {self.half:.4f}"
        return (
            self.system,
            "none" if self.epsilon is None else at_most(self.epsilon),
            self.kind,
            mean + half,
            "not private" if self.actual is None else at_most(self.actual),
            *(
                bytes_text(None if b is None else round(b))
                for b in (self.bytes_down, self.bytes_up)
            ),
            f"{self.seconds:.1f}",
        )

    def to_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        return {**asdict(self), "mean": self.mean, "half_interval": self.half}

    def point(self) -> AccuracyPoint | None:
        """Where a plot shows it; nowhere without a finite ε or an accuracy."""
        from dpmech.plotting import AccuracyPoint

        if self.epsilon is None or not 0 < self.epsilon < math.inf or not self.accuracies:
            return None
        return AccuracyPoint(
            label=self.system,
            epsilon=self.epsilon,
            accuracies=self.accuracies,
            hypothetical=self.kind == HYPOTHETICAL,
        )


HYPOTHETICAL = "hypothetical"


def page(rows: Sequence[Row], about: Mapping[str, str], failures: Mapping[str, str]) -> str:
    """The table as Markdown, with what it is about, and the runs that failed."""
    lines = ["# Systems compared", "", *(f"- {name}: {value}" for name, value in about.items())]
    lines += ["", f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    lines += ["", *(line for note in NOTE for line in (note, ""))]
    if failures:
        lines += ["## Failed", "", *(f"- {name}: {why}" for name, why in failures.items()), ""]
    return "\n".join(lines)


def _kind(report: TrainReport) -> str:
    """What a run's ε is."""
    if report.epsilon is None:
        return "without noise"
    if report.hypothetical is not None:
        return HYPOTHETICAL
    return "seeded: protects nobody" if report.reproducible_noise else "proved"


def _largest(values: Sequence[float | None]) -> float | None:
    """The largest of the numbers, if there are any."""
    return max((value for value in values if value is not None), default=None)


def _mean(values: Sequence[int | None]) -> float | None:
    """The mean of the numbers, if there are any."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
