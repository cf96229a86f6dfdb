"""What searched noise buys in zeroth-order fine-tuning (`docs/explanation/zeroth-order.md`).

    python benchmarks/zeroth_order.py --data-dir DATA -o FILE    DATA has folders sst2 and banking77
    python benchmarks/zeroth_order.py --steps 500 --seeds 2      docstrings, in some minutes

Encoded texts, searched laws and finished settings are kept under --cache, so it can be continued.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from zeroth_order_data import SOURCES, Problem, Source, load_problem
from zeroth_order_page import Measured, Proved, page
from zeroth_order_runs import Arm, Probe, Setting, accuracies, check, train_arms

from dpmech import Noise, Sampling, Target
from dpmech.files import write_atomically
from optimizer_search import Cost, SearchProblem, search
from optimizer_search.store import load_result, save_result

_RATES, _EPSILONS, _DELTA = (1.6e-3, 1.6e-4), (1.0, 4.0), 1e-5
_FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0)  # of the step sizes below
# (clip, {(by user, rate): step size}): around these the step size of every arm is tuned.
_AROUND = {
    "sst2": (0.15, {(0, 1.6e-3): 0.4, (0, 1.6e-4): 0.02, (1, 1.6e-3): 0.05, (1, 1.6e-4): 0.01}),
    "banking77": (0.5, {(0, 1.6e-3): 0.2, (0, 1.6e-4): 0.04, (1, 1.6e-3): 0.1, (1, 1.6e-4): 0.02}),
    "docstrings": (0.5, {(0, 1.6e-3): 0.2, (0, 1.6e-4): 0.04, (1, 1.6e-3): 0.1, (1, 1.6e-4): 0.02}),
}
_PROBE = {False: (2000.0, 0.3), True: (200.0, 0.1)}  # expected records a step, clip
_PROBE_RATES = (16.0, 64.0, 256.0)
_TUNING_SEEDS = (1000, 1001, 1002)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What was asked for."""

    cache: Path
    steps: int
    seeds: int

    def law(self, rate: float, epsilon: float) -> tuple[Noise, Noise, Proved]:
        """The calibrated Gaussian, the searched law of least variance, and what was proved."""
        path = self.cache / f"law-{rate:g}-{self.steps}-{epsilon:g}.npz"
        if not path.exists():
            _say(f"search: q={rate:g}, epsilon={epsilon:g}")
            problem = SearchProblem(
                target=Target(epsilon=epsilon, delta=_DELTA),
                steps=self.steps,
                sampling=Sampling(rate=rate),
                cost=Cost(name="variance"),
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            save_result(search(problem, bound=False), path)
        found = load_result(path)
        gaussian = next(b for b in found.baselines if b.family == "gaussian")
        proved = Proved(
            rate=rate,
            steps=self.steps,
            epsilon=epsilon,
            delta=_DELTA,
            gaussian=gaussian.cost,
            searched=found.cost,
            proved=found.epsilon,
        )
        return gaussian.law, found.law, proved

    def arms(self, setting: Setting) -> dict[str, Noise | None]:
        """The noises that are compared."""
        found: dict[str, Noise | None] = {"none": None}
        for epsilon in _EPSILONS:
            gaussian, searched, _ = self.law(setting.rate, epsilon)
            found |= {f"gaussian {epsilon:g}": gaussian, f"searched {epsilon:g}": searched}
        return found

    def measure(self, problem: Problem, setting: Setting) -> Measured:
        """Tune every arm on a held-out part of the training set, then run all of them anew."""
        source = problem.source
        around = _AROUND[source.name][1][int(setting.by_user), setting.rate]
        noises = self.arms(setting)
        tried = [
            Arm(name=name, lr=around * factor, noise=noise)
            for name, noise in noises.items()
            for factor in _FACTORS
        ]
        halves = problem.halves()
        found = np.mean(
            [
                accuracies(train_arms(halves, setting, tried, seed=s), halves.test)
                for s in _TUNING_SEEDS
            ],
            axis=0,
        )
        best = found.reshape(len(noises), -1).argmax(axis=1)
        arms = [tried[i * len(_FACTORS) + int(b)] for i, b in enumerate(best)]
        runs = [
            accuracies(train_arms(problem, setting, arms, seed=seed), problem.test)
            for seed in range(self.seeds)
        ]
        records = _records(problem, setting.by_user)
        return Measured(
            source=source.title,
            by_user=setting.by_user,
            rate=setting.rate,
            records=records,
            clip=setting.clip,
            dim=problem.start.size,
            start=_start(problem),
            lr={arm.name: arm.lr for arm in arms},
            accuracy={arm.name: [float(run[i]) for run in runs] for i, arm in enumerate(arms)},
        )

    def probes(self, problem: Problem, by_user: bool) -> dict[str, list[float]]:
        """DP-SGD on the same head, tuned in the same way."""
        halves, found = problem.halves(), dict[str, list[float]]()
        for epsilon in _EPSILONS:
            probe = Probe(
                epsilon=epsilon,
                delta=_DELTA,
                by_user=by_user,
                cohort=min(_PROBE[by_user][0], _records(halves, by_user) / 4),
                clip=_PROBE[by_user][1],
            )
            scores = [
                accuracies(probe.train(halves, lr=lr, seed=_TUNING_SEEDS[0]), halves.test)[0]
                for lr in _PROBE_RATES
            ]
            lr = _PROBE_RATES[int(np.argmax(scores))]
            found[f"{epsilon:g}"] = [
                float(accuracies(probe.train(problem, lr=lr, seed=seed), problem.test)[0])
                for seed in range(self.seeds)
            ]
        return found

    def source(self, source: Source, data_dir: Path | None) -> list[Measured]:
        """All settings of one data set; those that were measured before are read."""
        names = {(u, q): self._path(source, u, q) for u in (False, True) for q in _RATES}
        if not all(path.exists() for path in names.values()):
            problem = load_problem(source, data_dir, self.cache)
            for (by_user, rate), path in names.items():
                if not path.exists():
                    self._write(path, problem, by_user=by_user, rate=rate)
        return [Measured(**json.loads(path.read_text())) for path in names.values()]

    def _path(self, source: Source, by_user: bool, rate: float) -> Path:
        unit = "user" if by_user else "example"
        return self.cache / f"{source.name}-{unit}-{rate:g}-{self.steps}-{self.seeds}.json"

    def _write(self, path: Path, problem: Problem, *, by_user: bool, rate: float) -> None:
        began = time.process_time()
        clip = _AROUND[problem.source.name][0]
        setting = Setting(rate=rate, steps=self.steps, clip=clip, by_user=by_user)
        off = check(problem, setting)
        if not off < 1e-3:
            raise ValueError(f"Expected the package's own loop to agree to .001, got {off:.3g}.")
        measured = self.measure(problem, setting)
        probes = self.probes(problem, by_user) if rate == _RATES[0] else {}
        seconds = time.process_time() - began
        content = {**asdict(measured), "probe": probes, "seconds": seconds}
        write_atomically(path, json.dumps(content, indent=1))
        _say(f"{path.stem}: {seconds:.0f} s of processor time")


def _records(problem: Problem, by_user: bool) -> int:
    return int(problem.train.owner.max()) + 1 if by_user else len(problem.train.labels)


def _start(problem: Problem) -> float:
    """The test accuracy of the head where it starts."""
    W = problem.start.reshape(problem.shape.dim, problem.classes, 1)
    return float(accuracies(W, problem.test)[0])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _command(asked: argparse.Namespace) -> str:
    """The command again, without anybody's folders."""
    data = " --data-dir DATA" if asked.data_dir else ""
    return f"python benchmarks/zeroth_order.py{data} --steps {asked.steps} --seeds {asked.seeds}"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="write here instead of stdout")
    parser.add_argument("--data-dir", type=Path, help="folder with sst2 and banking77")
    parser.add_argument("--cache", type=Path, default=Path("zeroth-order-cache"))
    parser.add_argument("-k", default="", help="only data sets whose name contains this")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    names = ("sst2", "banking77") if asked.data_dir else ("docstrings",)
    bench = Bench(cache=asked.cache, steps=asked.steps, seeds=asked.seeds)
    proved = [bench.law(rate, epsilon)[2] for rate in _RATES for epsilon in _EPSILONS]
    rows = [
        row
        for name in names
        if asked.k in name
        for row in bench.source(SOURCES[name], asked.data_dir)
    ]
    text = page(proved, rows, command=_command(asked))
    if asked.output:
        write_atomically(asked.output, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
