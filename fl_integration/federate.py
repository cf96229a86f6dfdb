"""The training loop: public rank, Poisson cohort, clipped sum, noise, server step, ledger.

Symbols: R largest rank, b rank of the round, N clients, q sampling rate, T rounds, C clip.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from accountants import Ledger
from dpmech import PrivacyPlan
from fl_integration.accounting import Spending, spending_for
from fl_integration.broadcast import broadcast_step, received
from fl_integration.checkpoint import Checkpoint, TrainState
from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Round, executor_for
from fl_integration.config import FederatedConfig
from fl_integration.extrapolate import Extrapolation
from fl_integration.models import predict_logits
from fl_integration.report import TRUSTED_SERVER, RoundMetrics, TrainReport, versions
from fl_integration.sampler import Randomness, poisson_cohort, public_rank
from fl_integration.server import ServerState, noisy_mean
from fl_integration.silos import TRUSTED, silo_round
from fl_integration.spaces import FlatSpace
from fl_integration.systems import check_space, released_dim, trained

Progress = Callable[[RoundMetrics], None]


def federate(
    space: FlatSpace,
    tokens: Tokens,
    config: FederatedConfig,
    privacy: PrivacyPlan | Extrapolation | None = None,
    *,
    checkpoint_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> TrainReport:
    """Train adapters over a federation, with user-level privacy at the server when given a plan.

    **Guarantees**

    * A plan that does not match the run is refused before any client is asked.
    * One user moves the noised sum by at most the clip; the noise covers the whole vector; the
      denominator is constant; an empty cohort still releases noise and is still paid for.
    * Every round that may have been released is in the ledger, whenever the process is killed,
      and the ledger never exceeds the plan. Called again with the same arguments and folder, an
      interrupted run continues, and a finished one returns its report.

    Not covered: what the time of a round tells about its cohort, the test set (taken to be
    public), and attacks on the floating-point representation of the noise.

    Arguments:
        space: of the configuration's system; trained in place. tokens: the federation.
        config: the run. privacy: a plan, an extrapolated plan, or ``None`` without privacy.
        checkpoint_dir: keeps state after every round; without it an interrupt loses the run.
        progress: called with each round's metrics, after they are safe on disk.

    Raises:
        ValueError: on any mismatch. NoDominatingPair: from a law without a proved pair.

    Source: federated.md §1 (DP-LoRA at the server, DP-DyLoRA).
    """
    began = time.perf_counter()
    run = _Run.prepare(space, tokens, config, privacy)
    checkpoint = Checkpoint(Path(checkpoint_dir) if checkpoint_dir else None, run.fingerprint())
    state = checkpoint.restore()
    if state is None:
        state = TrainState(
            round=0, server=ServerState.start(space.flatten(space.rank)), ledger=Ledger()
        )
        checkpoint.commit(state)
    while True:
        if run.needs_evaluation(state):
            state = state.evaluated(run.accuracy(state.server))
            checkpoint.commit(state)
        if progress is not None and state.metrics:
            progress(state.metrics[-1])
        if state.round == config.rounds:
            return run.report(state, seconds=time.perf_counter() - began)
        state = run.burnt(state, checkpoint) or run.advance(state, checkpoint)
        checkpoint.commit(state)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """What stays the same from round to round."""

    cohort: Cohort
    spending: Spending | None
    test: NDArray[np.int64]  # which test texts the evaluations use

    @classmethod
    def prepare(
        cls,
        space: FlatSpace,
        tokens: Tokens,
        config: FederatedConfig,
        privacy: PrivacyPlan | Extrapolation | None,
    ) -> _Run:
        """Check everything that can be checked before the first round."""
        check_space(space, config)
        clients = len(tokens.data.clients)
        config.rate(clients)
        dim = released_dim(space, config.system)
        spending = spending_for(privacy, config, clients=clients, dim=dim)
        secret = config.seed if spending is None else config.noise_seed
        return cls(
            cohort=Cohort(
                space=space,
                tokens=tokens,
                config=config,
                randomness=Randomness(seed=config.seed, secret_seed=secret),
            ),
            spending=spending,
            test=_test_rows(len(tokens.data.test_texts), config),
        )

    def burnt(self, state: TrainState, checkpoint: Checkpoint) -> TrainState | None:
        """Count a round that was intended and never committed, unless its noise is replayable."""
        spent = checkpoint.intended(state.round)
        if spent is None or self.cohort.config.noise_seed is not None:
            return None
        metrics = self.metrics(state.round, self.rank(state.round), burnt=True)
        return state.after(state.server, spent, metrics)

    def advance(self, state: TrainState, checkpoint: Checkpoint) -> TrainState:
        """One round: nothing leaves this function before the spend is on disk."""
        config = self.cohort.config
        round, index = self.drawn(state)
        total = ClippedSum(len(round.start), config.clip, keep_norms=self.spending is None)
        mean, spent = self.released(round, total, checkpoint)
        kept = slice(None) if round.trained is None else round.trained
        server = broadcast_step(
            state.server,
            index[kept],
            mean,
            config,
            broadcast=config.broadcast,
            received=round.start[kept],
        ).averaging(config, rounds=state.round + 1)
        metrics = self.metrics(state.round, round.rank, norms=total.norms)
        return state.after(server, spent, metrics)

    def drawn(self, state: TrainState) -> tuple[Round, Tensor]:
        """Who takes part in a round and what they receive; where its slice lies."""
        space, config, randomness = self.cohort.space, self.cohort.config, self.cohort.randomness
        rank = self.rank(state.round)
        index = space.index(rank)
        mask = trained(space, config.system, rank=rank, round=state.round)
        clients = len(self.cohort.tokens.data.clients)
        return Round(
            index=state.round,
            rank=rank,
            clients=poisson_cohort(
                clients, rate=config.rate(clients), rng=randomness.cohort(state.round)
            ),
            start=received(config.broadcast, state.server.weights[index]).float(),
            trained=None if bool(mask.all()) else mask,
        ), index

    def released(
        self, round: Round, total: ClippedSum, checkpoint: Checkpoint
    ) -> tuple[Tensor, Ledger]:
        """The mean move of the coordinates that a round trains, and what its release spends."""
        config, kept = self.cohort.config, slice(None) if round.trained is None else round.trained
        dim = len(round.start[kept])
        spent = Ledger() if self.spending is None else self.spending.of_round(dim)
        noise = None if self.spending is None else self.spending.noise
        if config.silos is not None:  # the noise is drawn inside, so the spend comes first
            checkpoint.intend(round.index, spent)
            mean = silo_round(
                self.cohort,
                round,
                config.silos,
                noise=noise,
                executor=executor_for(config),
            )
            return mean[kept], spent
        executor_for(config)(self.cohort, round, total)
        checkpoint.intend(round.index, spent)
        mean = noisy_mean(
            total.value[kept],
            noise=noise,
            rng=self.cohort.randomness.noise(round.index),
            denominator=config.cohort,
        )
        return mean, spent

    def rank(self, round: int) -> int:
        """The public rank of a round: a function of the public seed and the round alone."""
        config = self.cohort.config
        if config.system == "full":
            return self.cohort.space.rank
        return public_rank(config.probabilities, rng=self.cohort.randomness.rank(round))

    def metrics(
        self, round: int, rank: int, *, burnt: bool = False, norms: tuple[float, ...] = ()
    ) -> RoundMetrics:
        """A round's metrics; what clients did is told only without privacy."""
        config = self.cohort.config
        bare = RoundMetrics(round=round, rank=rank, expected_cohort=config.cohort, burnt=burnt)
        if self.spending is not None:
            return bare
        finite = [norm for norm in norms if np.isfinite(norm)]
        over = [norm > config.clip for norm in norms] if config.clip is not None else []
        return RoundMetrics(
            round=round,
            rank=rank,
            expected_cohort=config.cohort,
            cohort_size=len(norms),
            delta_norm=float(np.median(finite)) if finite else None,
            clipped=float(np.mean(over)) if over else None,
        )

    def needs_evaluation(self, state: TrainState) -> bool:
        """Whether the last round asks for an accuracy that is not there yet."""
        if not state.metrics or state.metrics[-1].accuracy is not None or not len(self.test):
            return False
        config = self.cohort.config
        return state.round % config.eval_every == 0 or state.round == config.rounds

    def accuracy(self, server: ServerState, rank: int | None = None) -> float:
        """Accuracy on the public test texts of a server's weights, at full rank or cut to one."""
        space, tokens = self.cohort.space, self.cohort.tokens
        space.assign(server.shown(self.cohort.config).float(), space.rank)
        ids = [tokens.test()[row] for row in self.test]
        labels = tokens.data.test_labels[self.test]
        if rank is None:
            return accuracy(predict_logits(space.classifier, ids), labels)
        with space.use_rank(rank):
            return accuracy(predict_logits(space.classifier, ids), labels)

    def report(self, state: TrainState, *, seconds: float) -> TrainReport:
        """The account of a finished run, its ε derived from the ledger and from nothing else."""
        config, spending, data = self.cohort.config, self.spending, self.cohort.tokens.data
        epsilon = spending.epsilon(state.ledger) if spending else None
        forecast = spending.extrapolation if spending else None
        return TrainReport(
            config=config.to_dict(),
            data=data.name,
            clients=len(data.clients),
            rounds=state.metrics,
            final_accuracy=state.metrics[-1].accuracy,
            majority_share=data.majority_share,
            ledger=state.ledger if spending else None,
            epsilon=epsilon,
            delta=spending.plan.target.delta if spending else None,
            accountant=spending.plan.accountant if spending else None,
            hypothetical=None
            if forecast is None or epsilon is None
            else forecast.hypothetical(epsilon),
            accuracy_by_rank=self.by_rank(state.server),
            unit=config.unit,
            trusted=TRUSTED if config.silos is not None else TRUSTED_SERVER,
            seconds=round(seconds, 1),
            versions=versions(),
        )

    def by_rank(self, server: ServerState) -> dict[int, float]:
        """The final weights' accuracy at rank 1, 2, 4, … R."""
        top = self.cohort.space.rank
        ranks = sorted({2**k for k in range(top.bit_length()) if 2**k <= top} | {top})
        return {rank: self.accuracy(server, rank) for rank in ranks} if len(self.test) else {}

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be continued."""
        spending, data, space = self.spending, self.cohort.tokens.data, self.cohort.space
        return {
            "config": self.cohort.config.to_dict(),
            "plan": json.loads(spending.plan.to_json()) if spending else None,
            "noise": spending.noise.to_dict() if spending else None,
            "data": [data.name, len(data.clients), list(data.labels)],
            "adapters": [list(shape) for shape in space.shapes(space.rank)],
        }


def accuracy(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The share of rows whose largest logit is the label's; a row that is not finite is wrong."""
    finite = np.isfinite(logits).all(axis=1)
    return float(np.mean(finite & (logits.argmax(axis=1) == labels)))


def _test_rows(texts: int, config: FederatedConfig) -> NDArray[np.int64]:
    """A fixed public choice of test texts, the same for every run with as many."""
    rows = np.random.default_rng(0).permutation(texts).astype(np.int64)
    return rows[: config.eval_texts] if config.eval_texts else rows
