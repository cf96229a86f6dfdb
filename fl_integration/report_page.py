"""A run's report as a page to be read in a minute; every number is the report's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fl_integration.config import FederatedConfig
from fl_integration.extrapolate import rounded_up
from fl_integration.report import SECRET, SEEDED, WITHHELD, TrainReport

_UNITS = {
    "user": "a user with all its texts",
    "example": "one example (a text)",
}
_KILO = 1000


def report_page(report: TrainReport) -> str:
    """Return the report as Markdown.

    **Guarantees**: what the run cost its own clients and what a forecast says are rows of their
    own; a bound is rounded up; a run that may not be called private says so, and why, first.
    """
    system = report.config.get("system", "run")
    lines = [
        f"# {system} on {report.data}",
        "",
        f"{_accuracy(report)} {_verdict(report)}",
        "",
        "## Privacy",
        "",
        *_table(_privacy(report)),
        "",
        "## What ran",
        "",
        *_table(_run(report)),
        "",
        "## What no number here covers",
        "",
        *(f"- {text[0].upper()}{text[1:].rstrip('.')}." for text in _uncovered(report)),
    ]
    return "\n".join(lines) + "\n"


def bytes_text(count: int | None) -> str:
    """A number of bytes as it is read.

    >>> bytes_text(1_234_567), bytes_text(12), bytes_text(None)
    ('1.23 MB', '12 B', 'nothing is sent')
    """
    if count is None:
        return "nothing is sent"
    size, units = float(count), ["B", "kB", "MB", "GB"]
    while size >= _KILO and len(units) > 1:
        size, units = size / _KILO, units[1:]
    return f"{size:.3g} {units[0]}"


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Rows of two columns; what separates columns is taken literally."""
    written = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows]
    return ["| | |", "|---|---|", *written]


def _accuracy(report: TrainReport) -> str:
    if report.final_accuracy is None:
        return "Accuracy was not measured."
    largest = report.majority_share
    beside = "" if largest is None else f" (always the largest class: {largest:.4f})"
    return f"Accuracy {report.final_accuracy:.4f} on the test set, taken to be public{beside}."


def _verdict(report: TrainReport) -> str:
    reason = report.why_not_private
    return "**Private**, as said below." if reason is None else f"**Not private**: {reason}."


def _privacy(report: TrainReport) -> list[tuple[str, str]]:
    """The terms of the claim; of a run without noise, that there is none."""
    if report.ledger is None or report.epsilon is None:
        return [("ε", "none: no noise was added, nothing is claimed")]
    rows = [
        (
            "ε that this run cost",
            f"at most {rounded_up(report.epsilon)} at δ = {rounded_up(report.delta or 0)}, derived"
            f" from the ledger by {report.accountant}",
        ),
        ("Protects", f"{_UNITS.get(report.unit, report.unit)} ({report.relation})"),
        ("Sampling", _sampling(report)),
        ("Trusted", report.trusted),
        ("Randomness", SEEDED if report.reproducible_noise else SECRET),
        *(("Released", line) for line in _releases(report)),
    ]
    forecast = report.hypothetical
    if forecast is None:
        return rows
    return [
        *rows,
        (
            "Hypothetical ε",
            f"{rounded_up(forecast.epsilon)} at δ = {rounded_up(forecast.delta)}, if"
            f" {forecast.cohort:g} of {forecast.population:,} clients took part in a round: a"
            " forecast, which protects nobody here",
        ),
    ]


def _releases(report: TrainReport) -> Iterable[str]:
    """The ledger's mechanisms; those that differ in their coordinates alone are one line."""
    counts: Counter[tuple[str, str, float]] = Counter()
    dims: dict[tuple[str, str, float], int] = {}
    for mechanism, count in () if report.ledger is None else report.ledger.entries:
        of = mechanism.sensitivity
        key = (str(mechanism.noise), f"{of.norm} sensitivity {of.bound:g}", mechanism.sampling.rate)
        counts[key] += count
        dims[key] = max(dims.get(key, 0), of.dim)
    for key, count in counts.items():
        noise, bound, rate = key
        where = "one number" if dims[key] == 1 else f"at most {dims[key]:,} coordinates"
        yield f"{count} × {noise} on a sum of {bound}, {where}, sampling rate {rate:.4g}"


def _sampling(report: TrainReport) -> str:
    """Who is drawn from what."""
    if report.config.get("silos"):
        return f"{report.sampling}, in each step of each of {report.clients:,} silos"
    return f"{report.sampling}, in each round from {report.clients:,} {report.unit}s"


def _run(report: TrainReport) -> list[tuple[str, str]]:
    rows = [
        ("Model", report.model or "not named"),
        ("Clients", f"{report.clients:,}"),
        ("Rounds", _rounds(report)),
        ("Settings that are not the default", _settings(report)),
        ("Seed of what is public", str(report.config.get("seed"))),
        ("Accuracy by round", _by_round(report)),
        ("Accuracy by rank", _listed(report.accuracy_by_rank.items(), "rank")),
        ("Accuracy by client", _by_client(report)),
        ("A client received, sent", _sent(report)),
        ("What clients have of the model", _of_the_model(report)),
        ("Seconds", f"{report.seconds:g}"),
        ("Versions", ", ".join(f"{name} {v}" for name, v in report.versions.items())),
    ]
    return [(name, value) for name, value in rows if value]


def _rounds(report: TrainReport) -> str:
    burnt = sum(metrics.burnt for metrics in report.rounds)
    lost = f", of which {burnt} were interrupted: paid for, and without effect" if burnt else ""
    return f"{len(report.rounds)}{lost}"


def _settings(report: TrainReport) -> str:
    """What differs from the defaults of a configuration."""
    usual = FederatedConfig().to_dict()
    config = report.config.items()
    return ", ".join(f"{k}={v}" for k, v in config if k != "seed" and v != usual.get(k))


def _by_round(report: TrainReport) -> str:
    measured = [(m.round + 1, m.accuracy) for m in report.rounds if m.accuracy is not None]
    return _listed(measured, "round")


def _by_client(report: TrainReport) -> str:
    """How accuracy is spread over the clients that the test texts are of."""
    found = report.accuracy_by_group
    if found is None:
        return ""
    thirds = ", ".join(f"{share:.3f}" for share in found.by_size)
    return (
        f"mean of {found.groups} test clients {found.mean:.3f}, of the worst tenth"
        f" {found.worst_decile:.3f}; small, middle, large ones {thirds}"
    )


def _listed(pairs: Iterable[tuple[int, float]], what: str) -> str:
    return ", ".join(f"{what} {at}: {value:.3f}" for at, value in pairs)


def _sent(report: TrainReport) -> str:
    """Bytes of the whole run, expected."""
    if report.bytes_down is None or report.bytes_full is None:
        return "nothing: the data are in one place"
    return (
        f"{bytes_text(report.bytes_down)}, {bytes_text(report.bytes_up)} in the whole run,"
        f" expected ({bytes_text(report.bytes_full)} each way for all weights of the model)"
    )


def _of_the_model(report: TrainReport) -> str:
    """By how much the server's accuracy is above what clients make of its coarse broadcasts."""
    found = report.model_privacy
    if found is None:
        return ""
    named = {
        "received": "as received",
        "trained": "after training on their own texts",
        "averaged": f"averaging the last {found.last} broadcasts",
    }
    gaps = ", ".join(f"{gap:.3f} {named[name]}" for name, gap in found.gaps.items())
    return f"the server's accuracy {found.server:.3f} is above theirs by {gaps}"


def _uncovered(report: TrainReport) -> list[str]:
    withheld = [] if report.ledger is None else [WITHHELD]
    return [report.selection, *withheld, *report.uncovered]
