"""``dpmech compare-systems``: several systems at several ε with several seeds, in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmech.cli._group import FAILED, subcommand
from dpmech.cli._output import AsJson, print_json, print_table, strict, talk
from dpmech.cli._requests import request_of, settings_of
from dpmech.cli._settings import Settings, assigned, layered, read, written
from dpmech.cli._systems_table import HEADER, Row, page
from dpmech.files import write_atomically

if TYPE_CHECKING:
    from fl_integration.ladder import Outcome, Rung

app = subcommand()

_REFERENCE = "non-private"


@app.command()
def compare_systems(
    *,
    config: Annotated[
        str, typer.Option(help="Presets or TOML files, with commas.", show_default=False)
    ],
    epsilon: Annotated[
        str | None, typer.Option(help="Target epsilons, with commas.", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each, with seeds 0, 1, …")] = 5,
    reference: Annotated[bool, typer.Option(help="Run each system without noise, too.")] = True,
    data: Annotated[str | None, typer.Option(help="As of train.", show_default=False)] = None,
    data_dir: Annotated[Path | None, typer.Option(help="As of train.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="As of train.", show_default=False)] = None,
    delta: Annotated[float | None, typer.Option(help="As of train.", show_default=False)] = None,
    population: Annotated[int | None, typer.Option(help="As of train.", show_default=False)] = None,
    population_cohort: Annotated[
        float | None, typer.Option(help="As of train.", show_default=False)
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="As of train.", show_default=False)] = None,
    cohort: Annotated[float | None, typer.Option(help="As of train.", show_default=False)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="As of train.", show_default=False),
    ] = None,
    processes: Annotated[int, typer.Option(help="Runs at the same time, one thread each.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("systems"),
    as_json: AsJson = False,
) -> None:
    """Compare federated systems: accuracy against epsilon with intervals, bytes, seconds.

    Example: dpmech compare-systems --config dp-dylora,ffa-lora --epsilon .3,2 --out systems

    Asked for again it continues: finished runs are not repeated. The folder
    then holds table.md, table.json, accuracy.png, accuracy.svg, and every run
    below runs/.
    """
    said = {name: value for name, value in locals().items() if value is not None}
    common = {name: said[name] for name in _COMMON if name in said}
    tasks = _tasks(config, _numbers(epsilon), layered(assigned(set_ or ()), common), seeds)
    if epsilon is not None:
        from dpmech.plotting import require_matplotlib

        require_matplotlib()  # before hours of training, not after them
    if not reference:
        tasks = [task for task in tasks if task.target is not None or task.bare]
        if not tasks:
            raise ValueError("Expected --epsilon with --no-reference: there is nothing to run.")
    talk("Loading the training libraries …")
    outcomes = _outcomes(tasks, out, processes)
    rows, failures = _gathered(tasks, outcomes)
    about = {"data": str(common.get("data", "as configured")), "seeds": str(seeds)}
    _keep(rows, about | _asked(common), failures, out)
    if as_json:
        print_json({"out": str(out), **_table(rows, failures)})
    else:
        print_table(HEADER, [row.cells() for row in rows])
        typer.echo(f"results: {out}")
    if failures:
        talk("\n".join(f"failed: {name}: {why}" for name, why in failures.items()))
        raise typer.Exit(FAILED)


_COMMON = (
    "data", "data_dir", "model", "delta", "population", "population_cohort", "rounds", "cohort",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One run: a system, its target (None: without noise), a seed, and all that it is told.

    bare: the system has no noise by nature.
    """

    system: str
    target: float | None
    seed: int
    settings: Settings
    bare: bool

    @property
    def name(self) -> str:
        """The run's name, and its folder below runs/."""
        target = _REFERENCE if self.target is None else f"epsilon-{self.target:g}"
        return f"{self.system}/{target}/seed-{self.seed}"


def _numbers(text: str | None) -> list[float]:
    """Target epsilons as they are written, largest first."""
    try:
        found = {float(part) for part in text.split(",")} if text else set[float]()
    except ValueError:
        raise ValueError(f"Expected epsilons such as .3,2, got {text!r}.") from None
    return sorted(found, reverse=True)


def _tasks(config: str, targets: Sequence[float], common: Settings, seeds: int) -> list[_Task]:
    """All runs, system by system; that without noise first."""
    if seeds < 1:
        raise ValueError(f"Expected seeds={seeds} >= 1.")
    found: list[_Task] = []
    for text in config.split(","):
        settings, system = read(text.strip()), Path(text.strip()).stem
        bare = bool(settings.get("non_private"))
        if "silos" in settings and "population" in common:
            talk(f"{system}: a silo's noise does not shrink with their number, so no forecast.")
        for target in (None, *(() if bare else targets)):
            for seed in range(seeds):
                told = _told(settings, common, target, seed)
                found.append(
                    _Task(system=system, target=target, seed=seed, settings=told, bare=bare)
                )
    return found


def _told(settings: Settings, common: Settings, target: float | None, seed: int) -> Settings:
    """The settings of one run."""
    cost = {"non_private": True} if target is None else {"epsilon": target}
    merged = layered(layered(settings, common), {**cost, "seed": seed})
    if "silos" in merged:
        merged = {k: v for k, v in merged.items() if not k.startswith("population")}
    return merged


def _outcomes(tasks: Sequence[_Task], out: Path, processes: int) -> Mapping[str, Outcome]:
    """What came of every run."""
    from fl_integration.ladder import Failure, climb

    rungs = [_rung(task, out) for task in tasks]
    done = iter(range(1, len(rungs) + 1))

    def tell(name: str, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            said = outcome.reason
        else:
            said = f"accuracy {outcome.final_accuracy or 0:.4f} in {outcome.seconds:.0f} s"
        talk(f"[{next(done)} of {len(rungs)}] {name}: {said}")

    return climb(rungs, processes=processes, progress=tell)


def _rung(task: _Task, out: Path) -> Rung:
    from fl_integration import TrainRequest
    from fl_integration.ladder import Rung

    request = request_of(task.settings, out / "runs" / task.name)
    if not isinstance(request, TrainRequest):
        raise ValueError(
            f"Expected systems of the federated loop, got {task.system!r}, which takes steps of"
            " another kind; see docs/explanation/zeroth-order.md for how they compare."
        )
    text = written(settings_of(request, task.settings))
    return Rung(name=task.name, request=request, settings=text)


def _gathered(
    tasks: Sequence[_Task], outcomes: Mapping[str, Outcome]
) -> tuple[list[Row], dict[str, str]]:
    """Rows over seeds, and why runs failed."""
    from fl_integration import TrainReport
    from fl_integration.ladder import Failure

    seeds: dict[tuple[str, float | None], list[TrainReport]] = {}
    failures: dict[str, str] = {}
    for task in tasks:
        outcome = outcomes[task.name]
        if isinstance(outcome, Failure):
            failures[task.name] = outcome.reason
        else:
            seeds.setdefault((task.system, task.target), []).append(outcome)
    return [
        Row.of(system, target, reports) for (system, target), reports in seeds.items()
    ], failures


def _asked(common: Settings) -> dict[str, str]:
    """What was asked of every run, for the head of the table."""
    return {name: str(value) for name, value in common.items() if name != "data"}


def _table(rows: Sequence[Row], failures: Mapping[str, str]) -> dict[str, Any]:
    return {"format": 1, "rows": [row.to_dict() for row in rows], "failures": dict(failures)}


def _keep(
    rows: Sequence[Row], about: Mapping[str, str], failures: Mapping[str, str], out: Path
) -> None:
    """Write the table, and the plot where there is something to draw and something to draw with."""
    table = strict({**_table(rows, failures), "about": dict(about)})
    write_atomically(out / "table.json", json.dumps(table, indent=2, allow_nan=False))
    write_atomically(out / "table.md", page(rows, about, failures))
    points = [point for row in rows if (point := row.point()) is not None]
    if not points:
        return
    from dpmech.plotting import blank_axes, plot_accuracy_against_epsilon, save_figure

    bare = [accuracy for row in rows if row.epsilon is None for accuracy in row.accuracies]
    drawn = plot_accuracy_against_epsilon(points, blank_axes(), non_private=bare)
    for kind in ("png", "svg"):
        save_figure(drawn, out / f"accuracy.{kind}")
