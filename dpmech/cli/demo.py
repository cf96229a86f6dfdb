"""``dpmech demo``: search a noise, account for it, train with it, plot and report."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmech.cli._demo_report import ScalarLaw, write_report
from dpmech.cli._group import subcommand
from dpmech.cli._output import AsJson, print_json, talk
from dpmech.cli._requests import request_of, settings_of
from dpmech.cli._settings import Settings, read, written

if TYPE_CHECKING:
    from dpmech import Noise
    from fl_integration import TrainReport, TrainRequest
    from fl_integration.ladder import Rung
    from optimizer_search import SearchProblem, SearchResult

app = subcommand()

# The scalar query of the first half, and the four training runs of the second.
_EPSILON, _DELTA = 1.0, 1e-6
_FORECASTS = ((2.0, 100_000), (0.5, 1_000_000))
_HONEST_EPSILON = 8.0
_SYSTEM = "dp-dylora"
_TEXTS: Settings = {"dealing": {"size": 8}}  # of a user, at most: features are what takes long


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("demo"),
    model: Annotated[str, typer.Option(help="minilm, tiny, a folder or a hub id.")] = "minilm",
    rounds: Annotated[int, typer.Option(help="Rounds of each training run.")] = 20,
    cohort: Annotated[float, typer.Option(help="Expected users in a round.")] = 100.0,
    processes: Annotated[int, typer.Option(help="Training runs at the same time.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Run the whole way once, on real text and a real model, and write a report.

    An interrupted demo continues where it stopped; a finished run is not repeated.
    """
    began = time.perf_counter()
    from dpmech.plotting import require_matplotlib

    require_matplotlib()
    import fl_integration  # the missing extra is named before anything is computed

    del fl_integration
    out.mkdir(parents=True, exist_ok=True)
    _say(began, "searching the LMO grid for a scalar query")
    problem, result = _searched(out)
    _say(began, "calibrating the closed-form laws to the same privacy")
    laws = _at_equal_privacy(out, problem, result)
    _say(began, "reading the docstrings of the installed libraries (built once, then cached)")
    rungs = _rungs(out, model=model, rounds=rounds, cohort=cohort)
    _say(began, f"training {len(rungs)} runs, {processes} at a time")
    reports = _trained(rungs, processes, lambda text: _say(began, text))
    _say(began, "drawing and writing the report")
    _plots(out, laws, reports)
    _keep_private_run(out)
    write_report(out / "report.md", problem, result, laws, reports, time.perf_counter() - began)
    _say(began, f"done; read {out / 'report.md'}")
    if as_json:
        print_json({"out": str(out), **{n: json.loads(r.to_json()) for n, r in reports.items()}})
    else:
        typer.echo((out / "report.md").read_text())


def _say(began: float, text: str) -> None:
    talk(f"[{time.perf_counter() - began:5.0f} s] {text}")


def _searched(out: Path) -> tuple[SearchProblem, SearchResult]:
    from dpmech import Target
    from optimizer_search import Cost, SearchProblem, save_result, search_lmo_grid

    problem = SearchProblem(
        target=Target(epsilon=_EPSILON, delta=_DELTA), cost=Cost(name="l1"), accounting="exact"
    )
    result = search_lmo_grid(problem)
    save_result(result, out / "lmo.npz")
    return problem, result


def _at_equal_privacy(out: Path, problem: SearchProblem, result: SearchResult) -> list[ScalarLaw]:
    """Closed-form laws, the LMO winner and the best law there is, all at the scalar target."""
    from optimizer_search import certified, save_result, search

    best = search(problem)
    save_result(best, out / "best.npz")
    tuned = {row.family: row for row in best.baselines}
    found = {
        "Gaussian": tuned["gaussian"],
        "generalised Gaussian": tuned["gg"],
        "Laplace": tuned["laplace"],
        "staircase": tuned["staircase"],
        "LMO (winner, rescaled)": certified(problem, result.law),
        "best found (best.npz)": best,
    }
    return [
        ScalarLaw(label=label, noise=b.law, epsilon=b.epsilon, vector=_as_vector(b.law))
        for label, b in found.items()
    ]


def _as_vector(noise: Noise) -> str:
    """What is proved for the law on a clipped vector: an epsilon, or the refusal and a forecast.

    The forecast is the Gaussian limit of the neighbour that spreads over all coordinates
    (mathematics.md §6.5): no bound at any finite dimension, so it is called an estimate.
    """
    from accountants import PLD
    from dpmech import Gaussian, Mechanism, NoDominatingPair, Sensitivity

    vector = Sensitivity(norm="l2", bound=1.0, dim=80_000)
    try:
        proved = PLD().compose(Mechanism(noise=noise, sensitivity=vector)).epsilon(_DELTA)
        return f"ε ≤ {proved:.4f}, proved"
    except NoDominatingPair:
        if math.isinf(noise.fisher_information):
            return "refused: no proof (its density jumps: for large d nothing is left of privacy)"
        spread = Gaussian(sigma=noise.fisher_information**-0.5)
        limit = PLD().compose(Mechanism(noise=spread)).lower_epsilon(_DELTA)
        return f"refused: no proof (estimate for large d: ε ≈ {limit:.2f} at least)"


def _rungs(out: Path, *, model: str, rounds: int, cohort: float) -> list[Rung]:
    """The training runs, in the order in which they start."""
    from fl_integration import TrainRequest, load_data
    from fl_integration.ladder import Rung

    data = load_data("docstrings")  # built here, so that the runs below find it in the cache
    common: Settings = {**read(_SYSTEM), **_TEXTS, "model": model, "cohort": cohort}
    settings: dict[str, Settings] = {
        f"forecast-{epsilon:g}": {
            **common,
            "rounds": rounds,
            "epsilon": epsilon,
            "population": population,
        }
        for epsilon, population in _FORECASTS
    }
    settings["non-private"] = {**common, "rounds": rounds, "non_private": True}
    settings["private"] = {**common, "epsilon": _HONEST_EPSILON}
    rungs: list[Rung] = []
    for name, given in settings.items():
        request = request_of(given, out / "runs" / name)
        if isinstance(request, TrainRequest):
            if name == "private":
                request = _head_alone(request, users=len(data.clients))
            text = written(settings_of(request, given))
            rungs.append(Rung(name=name, request=request, settings=text))
    return rungs


def _head_alone(request: TrainRequest, *, users: int) -> TrainRequest:
    """The head start of the others with all of epsilon, and nothing after it.

    So few users cannot pay for the noise on an adapter, but for that on a head they can: everybody
    takes part in every round, which costs little where features are computed once.
    """
    from fl_integration.plans import probe_of

    start = request.config.head_start
    if start is None:
        raise ValueError(f"Expected the preset {_SYSTEM} with a head start.")
    probe = probe_of(request.config, start, clients=users)
    return replace(request, config=replace(probe, eval_every=start.rounds))


def _trained(
    rungs: list[Rung], processes: int, say: Callable[[str], None]
) -> dict[str, TrainReport]:
    """The reports, in the order of a reader: the reference, the forecasts, what these users get."""
    from fl_integration import TrainReport
    from fl_integration.ladder import Outcome, climb

    def tell(name: str, outcome: Outcome) -> None:
        if isinstance(outcome, TrainReport):
            accuracy = outcome.final_accuracy or 0
            say(f"  {name}: accuracy {accuracy:.3f} in {outcome.seconds:.0f} s")

    done: dict[str, TrainReport] = {}
    for name, outcome in climb(rungs, processes=processes, progress=tell).items():
        if not isinstance(outcome, TrainReport):
            raise ValueError(f"The run {name!r} failed: {outcome.reason}")
        done[name] = outcome
    order = sorted(done, key=lambda name: (name == "private", name != "non-private", name))
    return {name: done[name] for name in order}


def _plots(out: Path, laws: list[ScalarLaw], reports: dict[str, TrainReport]) -> None:
    from dpmech.plotting import (
        AccuracyPoint,
        blank_axes,
        plot_accuracy_against_epsilon,
        plot_densities,
        save_figure,
    )

    axes = plot_densities(
        [law.noise for law in laws], blank_axes(), labels=[law.label for law in laws], log=True
    )
    points: list[AccuracyPoint] = []
    for report in reports.values():
        if report.final_accuracy is None or report.epsilon is None:
            continue
        forecast = report.hypothetical
        points.append(
            AccuracyPoint(
                label="this population" if forecast is None else "larger population (forecast)",
                epsilon=report.epsilon if forecast is None else forecast.epsilon,
                accuracies=(report.final_accuracy,),
                hypothetical=forecast is not None,
            )
        )
    reference = reports["non-private"]
    accuracy = plot_accuracy_against_epsilon(
        points,
        blank_axes(),
        majority=reference.majority_share,
        non_private=(reference.final_accuracy or 0.0,),
    )
    for name, drawn in (("densities", axes), ("accuracy", accuracy)):
        for kind in ("png", "svg"):
            save_figure(drawn, out / f"{name}.{kind}")


def _keep_private_run(out: Path) -> None:
    """Put what the private run may release beside the report."""
    run = out / "runs" / "private"
    for name in ("plan.json", "ledger.json"):
        shutil.copyfile(run / name, out / name)
    shutil.copytree(run / "adapters", out / "adapters", dirs_exist_ok=True)
    json.loads((out / "plan.json").read_text())  # a half-written copy must not pass for a plan
