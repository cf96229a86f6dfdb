"""From a request to a folder: data, losses, plan, zeroth-order steps, results, a report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from accountants.calibrate import calibrate_scale
from dpmech import Gaussian, Noise, PrivacyPlan, Target
from fl_integration.adapters import AdapterSpace
from fl_integration.client import Tokens
from fl_integration.data import FederatedData, as_examples, load_data
from fl_integration.dealing import Dealing
from fl_integration.evaluation import score
from fl_integration.models import load_model
from fl_integration.options import checked_whole, one_of
from fl_integration.plans import default_delta
from fl_integration.report import versions
from fl_integration.run_folder import LEDGER_FILE, PLAN_FILE, STATE_FOLDER, opened
from fl_integration.zeroth_order import ZerothOrderRun, replayed
from fl_integration.zo_adapter import adapter_losses
from fl_integration.zo_config import ACCOUNTANT, ZerothOrderConfig, zeroth_order_mechanism
from fl_integration.zo_head import Features, HeadLosses, HeadOptions, LinearHead, public_head
from fl_integration.zo_quotients import Losses
from fl_integration.zo_report import ZerothOrderReport
from fl_integration.zo_state import ReleaseLog, Releases

Progress = Callable[[int, int], None]  # steps spent, steps in all
HEAD_FILE = "head.safetensors"


@dataclass(frozen=True, kw_only=True)
class ZerothOrderRequest:
    """One zeroth-order run as a user asks for it.

    Arguments:
        config: rate, steps, clip, ρ, step size and seeds.
        out: folder for what was trained, report, plan, ledger and the state of an interrupted run.
        data, data_dir, model: names for `load_data` and `load_model`.
        unit: a ``"user"`` with all its texts is one record, or every text is: ``"example"``.
        layers: ``"head"`` trains a linear head on features of the frozen encoder, in batches;
            ``"adapter"`` trains LoRA of ``rank`` and the head, one forward pass a record.
        head: how features are made, and where the head starts.
        max_texts: texts of a user that are used. max_length: tokens a text.
        epsilon, delta: the target; without ``epsilon`` and ``plan`` the run is not private. δ is
            by default a tenth of one over the number of records.
        noise: the family that is calibrated to the target (its scale does not matter).
        plan: a finished plan instead of a target, as a search makes it.
        keep_every: steps between two states on disk, and what a kill may burn.

    Raises:
        ValueError: a target and a plan together, or a value outside its range.
    """

    config: ZerothOrderConfig
    out: Path
    data: str = "docstrings"
    data_dir: Path | None = None
    model: str = "minilm"
    unit: Literal["user", "example"] = "user"
    layers: Literal["head", "adapter"] = "head"
    head: HeadOptions = field(default_factory=HeadOptions)
    rank: int = 4
    max_texts: int = 64
    max_length: int = 32
    epsilon: float | None = None
    delta: float | None = None
    noise: Noise = field(default_factory=lambda: Gaussian(sigma=1.0))
    plan: PrivacyPlan | None = None
    keep_every: int = 200

    def __post_init__(self) -> None:
        """Refuse requests that contradict themselves."""
        one_of("unit", self.unit, ("user", "example"))
        one_of("layers", self.layers, ("head", "adapter"))
        for name in ("rank", "max_texts", "keep_every"):
            checked_whole(name, getattr(self, name), least=1)
        if self.plan is not None and self.epsilon is not None:
            raise ValueError(f"Expected a plan or epsilon={self.epsilon}, not both.")
        if self.layers == "adapter" and self.config.batch != 1:
            raise ValueError(
                f"Expected batch={self.config.batch} to be 1 with layers='adapter': a record's loss"
                " must not depend on the rounding of a batch."
            )

    def privacy(self, records: int) -> PrivacyPlan | None:
        """The plan of this request for N records: given, calibrated, or none."""
        if self.epsilon is None:
            return self.plan
        delta = default_delta(records) if self.delta is None else self.delta
        return calibrate_scale(
            zeroth_order_mechanism(self.config, self.noise),
            Target(epsilon=self.epsilon, delta=delta),
            steps=self.config.steps,
        )

    def fingerprint(self, data: FederatedData, plan: PrivacyPlan | None) -> dict[str, Any]:
        """What must be the same for an interrupted run to be continued."""
        names = ("model", "unit", "layers", "rank", "max_texts", "max_length")
        return {
            **{name: getattr(self, name) for name in names},
            "config": self.config.to_dict(),
            "head": [self.head.texts(data.labels), self.head.dim, self.head.start_scale],
            "plan": None if plan is None else json.loads(plan.to_json()),
            "data": [data.name, len(data.clients), list(data.labels)],
        }


def train_zo(request: ZerothOrderRequest, *, progress: Progress | None = None) -> ZerothOrderReport:
    """Run a request and leave its results in ``request.out``.

    **Guarantees**

    * As for `train_zeroth_order`; ``plan.json`` is written before the first step, ``report.json``,
      ``ledger.json`` and the trained head or adapter after the last.
    * A folder that another run uses, or began, or that lost its state is refused, and stays as it
      is.
    * An interrupted run continues when it is asked for again, from the last state on disk; steps
      whose noise may have been drawn count as spent and are never taken again, so the ledger is
      that of an uninterrupted run. A finished run is not repeated.
    * Nothing about θ, a loss or a sample leaves before the release it follows from is on disk.

    Arguments:
        progress: called with the steps spent and all steps, after each state is on disk.

    Raises:
        ValueError, NoDominatingPair, Unattainable: before a record is read.
    """
    began = time.perf_counter()
    data = _data_for(request)
    plan = request.privacy(len(data.clients))
    given = request.plan is not None
    with opened(Path(request.out), plan_is_given=given, head_start=False):
        report = _reported(request, data, plan, progress)
        report = replace(report, seconds=round(time.perf_counter() - began, 1), versions=versions())
        report.save(Path(request.out) / "report.json")
    return report


def _reported(
    request: ZerothOrderRequest,
    data: FederatedData,
    plan: PrivacyPlan | None,
    progress: Progress | None,
) -> ZerothOrderReport:
    """The steps of a run in a folder that is its own, what they trained, and their ledger."""
    out = Path(request.out)
    log = ReleaseLog(out / STATE_FOLDER, request.fingerprint(data, plan))
    with _trained(request, data) as trained:
        run = ZerothOrderRun.checked(
            trained.losses, trained.start, len(data.clients), request.config, (plan, None)
        )
        log.commit(log.restore())  # refuses the folder of another run
        if plan is not None:
            plan.save(out / PLAN_FILE)
        releases = resumed(run, log, keep_every=request.keep_every, progress=progress)
    theta = replayed(run.start, run.config, releases.values, records=run.records)
    result = run.result(theta, releases.values)
    report = ZerothOrderReport.of(
        result,
        request=_described(request, data),
        burnt=releases.burnt,
        accuracy=trained.accuracy(theta),
        majority_share=data.majority_share,
    )
    trained.save(theta, out)
    result.ledger.save(out / LEDGER_FILE)
    return report


def resumed(
    run: ZerothOrderRun, log: ReleaseLog, *, keep_every: int, progress: Progress | None = None
) -> Releases:
    """All releases of a run, those of its last state first; never a step twice.

    Arguments:
        run: what to take. log: its folder. keep_every: steps between two states on disk.
        progress: called after each state is on disk.
    """
    releases, config = log.restore(), run.config
    here = replayed(run.start, config, releases.values, records=run.records)
    while len(releases) < config.steps:
        first = len(releases)
        burnt = log.intended(first)
        if burnt is not None and config.noise_seed is None and run.mechanism is not None:
            releases = releases.without(burnt)
        else:
            last = min(first + keep_every, config.steps)
            log.intend(first, last)
            here, released = run.released(here, first, last)
            releases = releases.then(released)
        log.commit(releases)
        if progress is not None:
            progress(len(releases), config.steps)
    return releases


@contextmanager
def _trained(request: ZerothOrderRequest, data: FederatedData) -> Generator[_Head | _Adapter]:
    """The losses of a request, as long as they are needed."""
    seed, adapter = request.config.seed, request.layers == "adapter"
    model, tokenizer = load_model(
        request.model,
        labels=len(data.labels),
        seed=seed,
        dtype="float32" if adapter else "auto",  # a short probe vanishes in half precision
    )
    tokens = Tokens(data, tokenizer, max_length=request.max_length)
    if not adapter:
        shape, start = public_head(model, tokenizer, data.labels, request.head)
        features = Features(model, tokens, shape, max_texts=request.max_texts)
        losses = HeadLosses(features=features, classes=len(data.labels))
        yield _Head(losses, start, features, tokens)
        return
    draw = torch.Generator().manual_seed(seed)
    space = AdapterSpace(model, rank=request.rank, generator=draw)
    start = space.flatten(space.rank)
    with adapter_losses(space, tokens, max_texts=request.max_texts) as losses:
        yield _Adapter(losses, start, space, tokens)


@dataclass(frozen=True, eq=False)
class _Head:
    losses: HeadLosses
    start: Tensor
    features: Features
    tokens: Tokens

    def accuracy(self, theta: Tensor) -> float:
        """On the public test texts."""
        logits = self._head(theta).logits(self.features.test())
        return float((logits.argmax(axis=1) == self.tokens.test_targets()).mean())

    def save(self, theta: Tensor, folder: Path) -> None:
        """The head and the map of its features."""
        self._head(theta).save(folder / HEAD_FILE)

    def _head(self, theta: Tensor) -> LinearHead:
        matrix = theta.numpy().reshape(self.features.shape.dim, -1)
        return LinearHead(shape=self.features.shape, matrix=matrix, labels=self.features.labels)


@dataclass(frozen=True, eq=False)
class _Adapter:
    losses: Losses
    start: Tensor
    space: AdapterSpace
    tokens: Tokens

    def accuracy(self, theta: Tensor) -> float:
        """On the public test texts."""
        self.space.assign(theta.float(), self.space.rank)
        return score(self.space.classifier, self.tokens.test(), self.tokens.test_targets()).accuracy

    def save(self, theta: Tensor, folder: Path) -> None:
        """The adapter and its head, as peft reads them."""
        self.space.assign(theta.float(), self.space.rank)
        self.space.export(folder / "adapters" / f"rank-{self.space.rank}", self.space.rank)


def _data_for(request: ZerothOrderRequest) -> FederatedData:
    """The records of a request: users, or single texts, none of which decides about another."""
    data = load_data(
        request.data,
        data_dir=request.data_dir,
        seed=request.config.seed,
        dealing=Dealing().for_unit(request.unit),
    )
    return as_examples(data) if request.unit == "example" else data


def _described(request: ZerothOrderRequest, data: FederatedData) -> dict[str, Any]:
    """What a report says of the request."""
    names = ("model", "unit", "layers", "max_texts", "max_length")
    return {
        **{name: getattr(request, name) for name in names},
        "data": data.name,
        "records": len(data.clients),
        "accountant": ACCOUNTANT,
    }
