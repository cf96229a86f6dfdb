"""The page that `zeroth_order.py` writes."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

_PACKAGES = ("numpy", "scipy", "torch", "transformers", "cvxpy")
_HEAD = """# Zeroth-order training, and what searched noise buys in it

A step of [zeroth-order training](mathematics.md) releases **one** number: the sum, over a Poisson
sample, of each record's clipped difference quotient along a public random direction, plus noise.
So the query has dimension 1, and the law that `dpmech search` finds for scalars may be used with
its whole proof. This page measures what that is worth, twice: in variance, and in accuracy. How to
run it: [train with one number a step](../how-to/train-zeroth-order.md).

## The noise

Least variance of the noise on the sum that keeps (ε, δ) over all steps, in units of the clip
squared, certified by the PLD accountant (`optimizer_search.search`, which starts from every closed
form).
"""
_SETUP = """
## The accuracy

A linear head on the features of a frozen MiniLM, each text encoded alone; it starts from public
descriptions of the classes (the intents' names; eight short phrases a sentiment). SST-2: 10 000
random training sentences; Banking77: all 10 003. *Central*: a record is a text. *Federated*: a
record is a user with 10 texts, and its number the quotient of its mean loss; a client is sent a
seed and then 8 bytes a step, and sends 8 bytes whenever it is sampled. All runs of a row share
directions and samples, and differ in noise only. Step sizes (five, falling linearly; the chosen
one stands behind the @) were tuned for every noise by itself, over three seeds, on a fifth of the
users of the training set; clips and the scale of the start were chosen there before. The test set
was read three times: by a trial of 100 steps that decided nothing; by a first version, tuned over
one seed, some of whose gains were chance in its step sizes; and for this page, run as four
processes of the same code, with DP-SGD's rows carried over from the first version. Tuning is not
private, here or anywhere, unless it is paid for. *Start* is the head before training. Intervals
are 95 %, Student's t over the seeds; that of the gain is paired. Of 16, about one may err.
"""
_READ = """
## How to read it

A sample of qN records has a sampling error of its own, whose variance is about qN·C² at the clip.
The last column is the Gaussian's variance over that: where it is small, noise was never the
problem and a smaller one changes nothing. It is σ²/(qN), so optimised noise can pay for **few
records and many steps**, small federations above all. It need not: where no run improves much on
its start, with or without noise, there is nothing for the law to save. On all 67 349 sentences of
SST-2 the column would read {share:.1%} at q = .0016, ε = 1. With this many intervals one in twenty
may err. DP-SGD, where whole gradients can be sent, is better in every row; its step size was tuned
in the same way, over one seed.
"""


@dataclass(frozen=True, kw_only=True)
class Proved:
    """What the search proved for one (q, T, ε): variances in units of the clip squared."""

    rate: float
    steps: int
    epsilon: float
    delta: float
    gaussian: float
    searched: float
    proved: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row of settings: accuracies (seeds,) and step sizes by arm; probes by ε."""

    source: str
    by_user: bool
    rate: float
    records: int
    clip: float
    dim: int
    start: float
    lr: Mapping[str, float]
    accuracy: Mapping[str, Sequence[float]]
    probe: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    seconds: float = 0.0


def page(proved: Sequence[Proved], rows: Sequence[Measured], *, command: str) -> str:
    """The whole page."""
    parts = [_HEAD, *_noise_table(proved), _SETUP]
    for title in dict.fromkeys(row.source for row in rows):
        those = [row for row in rows if row.source == title]
        parts += [f"### {title}", "", *_accuracy_table(those, proved), "", *_probes(those), ""]
    parts += ["## What it bought", "", *_verdict(rows, proved), _READ.format(share=_share(proved))]
    parts += [f"Made by `{command}`. {_setting(rows)}", ""]
    return "\n".join(parts)


def _noise_table(proved: Sequence[Proved]) -> Iterator[str]:
    yield _line("q", "T", "ε", "Gaussian", "searched", "variance saved", "ε proved")
    yield "|---" * 7 + "|"
    for p in proved:
        saved = 1 - p.searched / p.gaussian
        cells = (f"{p.gaussian:.4g}", f"{p.searched:.4g}", f"**{saved:.0%}**", f"{p.proved:.5f}")
        yield _line(f"{p.rate:g}", f"{p.steps}", f"{p.epsilon:g}", *cells)


def _accuracy_table(rows: Sequence[Measured], proved: Sequence[Proved]) -> Iterator[str]:
    yield _line(
        "", "q", "qN", "start", "no noise", "ε", "Gaussian", "searched", "gain, points", "σ²/qN"
    )
    yield "|---" * 10 + "|"
    for row in rows:
        for p in proved:
            if p.rate == row.rate:
                yield _accuracy_line(row, p)


def _accuracy_line(row: Measured, p: Proved) -> str:
    expected = row.rate * row.records
    gain, half = _gain(row, p.epsilon)
    return _line(
        "federated" if row.by_user else "central",
        f"{row.rate:g}",
        f"{expected:.2g}",
        f"{row.start:.1%}",
        _at(row, "none"),
        f"{p.epsilon:g}",
        _at(row, f"gaussian {p.epsilon:g}"),
        _at(row, f"searched {p.epsilon:g}"),
        f"{'**' if gain > half else ''}{gain:+.1f} ± {half:.1f}{'**' if gain > half else ''}",
        f"{p.gaussian / expected:.0%}",
    )


def _at(row: Measured, arm: str) -> str:
    """The accuracy of an arm, and its step size."""
    return f"{_percent(row.accuracy[arm])} @{row.lr[arm]:.3g}".replace("@0.", "@.")


def _gain(row: Measured, epsilon: float) -> tuple[float, float]:
    """Searched over Gaussian in points, and half the paired interval."""
    searched = np.asarray(row.accuracy[f"searched {epsilon:g}"])
    difference = 100 * (searched - np.asarray(row.accuracy[f"gaussian {epsilon:g}"]))
    return float(difference.mean()), _half(difference)


def _half(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean."""
    n = len(values)
    if n < 2:
        return float("inf")
    return float(stats.t.isf(0.025, n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def _percent(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * _half(values):.1f}"


def _probes(rows: Sequence[Measured]) -> Iterator[str]:
    """What first-order training reaches on the same head, one sentence a unit."""
    for row in rows:
        if row.probe:
            unit = "each user a record" if row.by_user else "each text a record"
            found = "; ".join(f"ε = {e}: {_percent(v)} %" for e, v in row.probe.items())
            yield (
                f"DP-SGD on the same head from the same start, {unit}: {found} (it sends"
                f" {row.dim} numbers where a zeroth-order step sends one)."
            )


def _verdict(rows: Sequence[Measured], proved: Sequence[Proved]) -> Iterator[str]:
    """Where the interval of the gain is above 0, and where it is not; counted, not judged."""
    cases = [(row, p.epsilon) for row in rows for p in proved if p.rate == row.rate]
    better = [case for case in cases if _gain(*case)[0] > _gain(*case)[1]]
    worse = [case for case in cases if _gain(*case)[0] < -_gain(*case)[1]]
    nothing = [case for case in cases if case not in better and case not in worse]
    yield (
        f"At equal (ε, δ) the searched law is better than the Gaussian beyond the interval in"
        f" {len(better)} of {len(cases)} cases, worse in {len(worse)}, and in {len(nothing)} **the"
        " saving bought nothing that these seeds can show**:"
    )
    yield ""
    for name, those in (("better", better), ("worse", worse), ("nothing shown", nothing)):
        if those:
            yield f"- {name}: " + "; ".join(_case(row, epsilon) for row, epsilon in those)
    yield ""
    left = [
        f"{_case(row, e)} ({law})"
        for row, e in cases
        for law in ("gaussian", "searched")
        if np.mean(row.accuracy[f"{law} {e:g}"]) <= row.start
    ]
    if left:
        yield "Training ended no better than where it started in: " + "; ".join(left) + "."


def _case(row: Measured, epsilon: float) -> str:
    unit = "federated" if row.by_user else "central"
    return f"{row.source} {unit}, q={row.rate:g}, ε={epsilon:g}"


def _share(proved: Sequence[Proved]) -> float:
    """σ²/qN of the first row on all of SST-2."""
    return proved[0].gaussian / (proved[0].rate * 67_349)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _setting(rows: Sequence[Measured]) -> str:
    """What the figures were measured with."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    seeds = len(next(iter(rows[0].accuracy.values()))) if rows else 0
    return (
        f"{datetime.date.today()}; {seeds} seeds;"
        f" {sum(row.seconds for row in rows) / 60:.0f} minutes of processor time after the texts"
        f" were encoded; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')};"
        f" {platform.system()} {platform.machine()}, Python {platform.python_version()},"
        f" {', '.join(found)}."
    )
