"""From a request to a folder: data, model, plan, training, adapters, report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from accountants.base import checked_delta
from dpmech import Gaussian, Noise, PrivacyPlan
from dpmech.files import write_atomically
from dpmech.noise import checked_positive
from fl_integration.checkpoint import Checkpoint
from fl_integration.client import Tokens
from fl_integration.cohort import Cohort, Executor
from fl_integration.config import FederatedConfig
from fl_integration.data import FederatedData, load_data
from fl_integration.dealing import Dealing
from fl_integration.distributed import Group, by_first, joined, together
from fl_integration.extrapolate import Extrapolation
from fl_integration.federate import Progress, begun, completed
from fl_integration.models import load_model
from fl_integration.plans import plans_for, probe_of
from fl_integration.report import TrainReport
from fl_integration.report_page import report_page
from fl_integration.rows import Task
from fl_integration.run import Run
from fl_integration.run_folder import HEAD_START, LEDGER_FILE, PLAN_FILE, STATE_FOLDER, opened
from fl_integration.sampler import Randomness
from fl_integration.scales import check_rank
from fl_integration.spaces import FlatSpace
from fl_integration.systems import head_space_for, space_for
from fl_integration.units import as_unit


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """One training run as a user asks for it.

    Arguments:
        out: folder for adapters, report, plan, ledger and the checkpoint of an interrupted run.
        data, data_dir, test_path, dealing: what and how `load_data` loads. task: what for.
        model, pooled: for `load_model`.
        config: of the federation.
        epsilon, delta: the target; without ``epsilon`` and ``plan`` the run is not private. δ is
            by default a tenth of one over the number of users protected.
        noise: the family that is calibrated to the target (its scale does not matter).
        plan: a finished plan instead of a target.
        scalar_noise, scalar_share: the family of the scalars' noise, such as a searched law, and
            the part of ε that they would cost by themselves.
        population, population_cohort: forecast for N' users and c' = q'·N' of them a round
            (default: the simulation's own sampling rate).
        ranks: ranks to export (default 1, 2, 4, … R). max_length: tokens a text.

    Raises:
        ValueError: a target and a plan together, or a cohort without a population.
    """

    out: Path
    data: str = "docstrings"
    data_dir: Path | None = None
    test_path: Path | None = None
    dealing: Dealing = field(default_factory=Dealing)
    task: Task = "sequence-classification"
    model: str = "minilm"
    pooled: int = 1
    config: FederatedConfig = field(default_factory=FederatedConfig)
    epsilon: float | None = None
    delta: float | None = None
    noise: Noise = field(default_factory=lambda: Gaussian(sigma=1.0))
    plan: PrivacyPlan | None = None
    scalar_noise: Noise = field(default_factory=lambda: Gaussian(sigma=1.0))
    scalar_share: float = 0.1
    population: int | None = None
    population_cohort: float | None = None
    ranks: tuple[int, ...] = ()
    max_length: int = 32

    def __post_init__(self) -> None:
        """Refuse requests that contradict themselves."""
        if self.plan is not None and self.epsilon is not None:
            raise ValueError(f"Expected a plan or epsilon={self.epsilon}, not both.")
        if self.epsilon is not None:
            checked_positive("epsilon", self.epsilon)
        if self.delta is not None:
            checked_delta(self.delta)
        for rank in self.ranks:
            check_rank(rank, self.config.rank)
        for name in ("population", "population_cohort"):
            if getattr(self, name) is not None:
                checked_positive(name, getattr(self, name))
        if not 0 < self.scalar_share < 1:
            raise ValueError(f"Expected scalar_share={self.scalar_share} in (0, 1).")
        if self.population is None and self.population_cohort is not None:
            raise ValueError(
                f"Expected population_cohort={self.population_cohort} with a population."
            )
        if self.population is not None and self.plan is None and self.epsilon is None:
            raise ValueError(
                f"Expected a plan or an epsilon with population={self.population}: without noise"
                " there is nothing to extrapolate."
            )

    @property
    def exported(self) -> tuple[int, ...]:
        """The ranks to export, 1..R."""
        trained = self.config.trained_ranks
        return trained if self.config.system == "full" else self.ranks or trained


def train(request: TrainRequest, *, progress: Progress | None = None) -> TrainReport:
    """Run a request and leave its results in ``request.out``.

    **Guarantees**

    * ``plan.json`` is written before the first release, ``report.json``, ``report.md`` and
      ``ledger.json`` after the last; each ``adapters/rank-b/`` holds weights and a ``privacy.json``
      that says what they may be called.
    * An interrupted run continues when it is asked for again; a finished one is not repeated.
    * A folder that another run uses, or began, or that lost a part of its state is refused, and
      stays as it is.
    * Started by ``torchrun``, all processes train and return the same; the first alone draws
      cohorts and noise, keeps the ledger and writes files.

    Raises:
        ValueError, NoDominatingPair, Unattainable: before any client is asked.
    """
    config, out = request.config, Path(request.out)
    data = data_for(request)
    classifier, tokenizer = load_model(
        request.model,
        labels=len(data.labels),
        task=request.task,
        seed=config.seed,
        pooled=request.pooled,
    )
    space = space_for(classifier, config)
    plans = plans_for(request, space, clients=len(data.clients))
    tokens = Tokens(data, tokenizer, max_length=request.max_length)
    given, head_start = request.plan is not None, config.head_start is not None
    folder = opened(out, plan_is_given=given, head_start=head_start)
    with joined() as group, by_first(folder, group):
        phase, before = partial(_phase, tokens, group=group), 0.0
        if config.head_start is not None:
            probe = probe_of(config, config.head_start, clients=len(data.clients))
            head = head_space_for(classifier, config)
            first = phase(head, probe, plans.head_start, out / HEAD_START, later=out / STATE_FOLDER)
            before = first.seconds
        report = phase(space, config, plans.main, out, progress=progress)
        report = replace(report, model=request.model, seconds=round(before + report.seconds, 1))
        if group.rank == 0:
            _written(request, report, space)
    return report


def _phase(  # noqa: PLR0913  # what a run is, and with whom
    tokens: Tokens,
    space: FlatSpace,
    config: FederatedConfig,
    privacy: PrivacyPlan | Extrapolation | None,
    out: Path,
    *,
    group: Group,
    progress: Progress | None = None,
    later: Path | None = None,
) -> TrainReport:
    """One run of the loop, its plan written before it; what it trained stays in the space.

    Once the folder ``later`` of the phase that starts from this one is there, it must be finished.
    """
    # what the other processes train is drawn on rank 0: they need no secret of their own
    randomness = Randomness(seed=config.seed, secret_seed=None)
    cohort = Cohort(space=space, tokens=tokens, config=config, randomness=randomness)

    def train(executor: Executor) -> TrainReport:
        run = Run.prepare(space, tokens, config, privacy, executor)
        checkpoint = Checkpoint(out / STATE_FOLDER, run.fingerprint())
        if later is not None and later.exists():
            _check_finished(checkpoint, config, later)
        state = begun(run, checkpoint)
        if privacy is not None:  # the folder is this run's, and nothing is released yet
            plan = privacy.plan if isinstance(privacy, Extrapolation) else privacy
            plan.save(out / PLAN_FILE)
        return completed(run, checkpoint, state, progress=progress)

    return together(train, cohort, group)


def _check_finished(checkpoint: Checkpoint, config: FederatedConfig, later: Path) -> None:
    """Refuse to release again what another phase has started from."""
    state = checkpoint.restore()
    rounds = 0 if state is None else state.round
    if rounds < config.rounds:
        raise ValueError(
            f"Expected all {config.rounds} rounds of the head start in {str(checkpoint.folder)!r},"
            f" which {str(later)!r} began from, got {rounds}; put that folder back, or start in a"
            " new one."
        )


def _written(request: TrainRequest, report: TrainReport, space: FlatSpace) -> None:
    """Write what a finished run gives into the folder of its request.

    The report comes last: where it is, all the rest is, and a comparison takes the run for done.
    """
    out = Path(request.out)
    for rank in request.exported:
        report.export(space, out / "adapters" / f"rank-{rank}", rank)
    if report.ledger is not None:
        report.ledger.save(out / LEDGER_FILE)
    write_atomically(out / "report.md", report_page(report))
    report.save(out / "report.json")


def data_for(request: TrainRequest) -> FederatedData:
    """The federation of a request, each client what its configuration says a client is."""
    data = load_data(
        request.data,
        data_dir=request.data_dir,
        test_path=request.test_path,
        task=request.task,
        seed=request.config.seed,
        dealing=request.dealing.for_unit(request.config.unit),
    )
    return as_unit(data, request.config)
