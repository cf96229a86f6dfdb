"""What stays the same from round to round of a run, and what is told of it at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dpmech import PrivacyPlan
from fl_integration.accounting import Spending, spending_for
from fl_integration.broadcast import received
from fl_integration.checkpoint import TrainState
from fl_integration.client import Tokens
from fl_integration.client_metrics import metric_named
from fl_integration.cohort import Cohort, Executor, Round
from fl_integration.config import FederatedConfig
from fl_integration.evaluation import GroupAccuracy, Hits, accuracy_by_group, score
from fl_integration.executors import executor_for
from fl_integration.extrapolate import Extrapolation
from fl_integration.report import TRUSTED_SERVER, RoundMetrics, TrainReport, versions
from fl_integration.sampler import Randomness, poisson_cohort, public_rank
from fl_integration.scalars import check_others
from fl_integration.silos import TRUSTED, checked_sizes
from fl_integration.spaces import FlatSpace
from fl_integration.systems import check_space, released_dim, trained
from fl_integration.traffic import Traffic, traffic


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run that was checked: its clients' side, its spending, its executor, its test texts.

    cohort: adapters, texts, configuration, random streams. spending: ``None`` without privacy.
    executor: computes a cohort. test: (n,) which test texts the evaluations use.
    """

    cohort: Cohort
    spending: Spending | None
    executor: Executor
    test: NDArray[np.int64]

    @classmethod
    def prepare(
        cls,
        space: FlatSpace,
        tokens: Tokens,
        config: FederatedConfig,
        privacy: PrivacyPlan | Extrapolation | None,
        executor: Executor | None = None,
    ) -> Run:
        """Check everything that can be checked before the first round."""
        check_space(space, config)
        clients = len(tokens.data.clients)
        config.rate(clients)
        for query in config.scalars:
            metric_named(query.name)
        if config.silos is not None:
            checked_sizes(config.silos, clients=clients)
        dim = released_dim(space, config.system)
        spending = spending_for(privacy, config, clients=clients, dim=dim)
        if spending is not None:
            check_others(spending.asked, config.queries, clients=clients, rounds=config.rounds)
        secret = config.seed if spending is None else config.noise_seed
        randomness = Randomness(seed=config.seed, secret_seed=secret)
        return cls(
            cohort=Cohort(space=space, tokens=tokens, config=config, randomness=randomness),
            spending=spending,
            executor=executor or executor_for(config),
            test=_test_rows(len(tokens.data.test_texts), config),
        )

    @property
    def config(self) -> FederatedConfig:
        """The configuration."""
        return self.cohort.config

    @property
    def clients(self) -> int:
        """N."""
        return len(self.cohort.tokens.data.clients)

    def rank(self, round: int) -> int:
        """The public rank of a round: a function of the public seed and the round alone."""
        if self.config.system == "full":
            return self.cohort.space.rank
        return public_rank(self.config.probabilities, rng=self.cohort.randomness.rank(round))

    def drawn(self, state: TrainState) -> tuple[Round, Tensor]:
        """Who takes part in a round and what they receive; where its slice lies."""
        space, config = self.cohort.space, self.config
        rank = self.rank(state.round)
        index = space.index(rank)
        mask = trained(space, config.system, rank=rank, round=state.round)
        clients = poisson_cohort(
            self.clients,
            rate=config.rate(self.clients),
            rng=self.cohort.randomness.cohort(state.round),
        )
        round = Round(
            index=state.round,
            rank=rank,
            clients=clients,
            start=received(config.broadcast, state.server.weights[index]).float(),
            trained=None if bool(mask.all()) else mask,
        )
        return round, index

    def metrics(
        self,
        state: TrainState,
        *,
        burnt: bool = False,
        norms: Sequence[float] = (),
        scalars: dict[str, float] | None = None,
    ) -> RoundMetrics:
        """A round's metrics; what clients did is told only without privacy."""
        told: dict[str, Any] = {
            "round": state.round,
            "rank": self.rank(state.round),
            "expected_cohort": self.config.cohort if self.config.silos is None else self.clients,
            "burnt": burnt,
            "clip": state.clip if self.config.adaptive else None,
            "scalars": scalars,
        }
        if self.spending is None:
            finite = [norm for norm in norms if np.isfinite(norm)]
            over = [norm > state.clip for norm in norms] if state.clip is not None else []
            told["cohort_size"] = len(norms)
            told["delta_norm"] = float(np.median(finite)) if finite else None
            told["clipped"] = float(np.mean(over)) if over else None
        return RoundMetrics(**told)

    def needs_evaluation(self, state: TrainState) -> bool:
        """Whether the last round asks for an accuracy that is not there yet."""
        if not state.metrics or state.metrics[-1].accuracy is not None or not len(self.test):
            return False
        return state.round % self.config.eval_every == 0 or state.round == self.config.rounds

    def scored(self, weights: Tensor, rank: int | None = None) -> Hits:
        """The hits of weights (D,) on the public test texts, at full rank or cut to one."""
        space, tokens = self.cohort.space, self.cohort.tokens
        space.assign(weights.float(), space.rank)
        ids, targets = [tokens.test()[row] for row in self.test], tokens.test_targets()[self.test]
        if rank is None:
            return score(space.classifier, ids, targets)
        with space.use_rank(rank):
            return score(space.classifier, ids, targets)

    def report(self, state: TrainState, *, seconds: float) -> TrainReport:
        """The account of a finished run, its ε derived from the ledger and from nothing else."""
        config, spending, data = self.config, self.spending, self.cohort.tokens.data
        epsilon = spending.epsilon(state.ledger) if spending else None
        forecast = spending.extrapolation if spending else None
        hits = self._by_rank(state.server.shown(config))
        sent = self._traffic(state)
        return TrainReport(
            config=config.to_dict(),
            data=data.name,
            clients=self.clients,
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
            accuracy_by_rank={rank: found.accuracy for rank, found in hits.items()},
            accuracy_by_group=self._by_group(hits),
            unit=config.unit,
            trusted=TRUSTED if config.silos is not None else TRUSTED_SERVER,
            seconds=round(seconds, 1),
            versions=versions(),
            bytes_down=sent.down if sent else None,
            bytes_up=sent.up if sent else None,
            bytes_full=sent.full if sent else None,
        )

    def _traffic(self, state: TrainState) -> Traffic | None:
        """What a client received and sent."""
        ranks = [metrics.rank for metrics in state.metrics]
        return traffic(
            self.cohort.space,
            self.config,
            ranks=ranks,
            clients=self.clients,
            asked=self.spending is not None,
        )

    def _by_rank(self, weights: Tensor) -> dict[int, Hits]:
        """The final weights' hits at each rank that was trained."""
        ranks = self.config.trained_ranks if len(self.test) else ()
        return {rank: self.scored(weights, rank) for rank in ranks}

    def _by_group(self, hits: dict[int, Hits]) -> GroupAccuracy | None:
        """How the final accuracy is spread over the clients that the test texts are of."""
        groups = self.cohort.tokens.data.test_groups
        if not groups or not hits:
            return None
        return accuracy_by_group(hits[max(hits)], [groups[row] for row in self.test])

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be continued."""
        spending, tokens, space = self.spending, self.cohort.tokens, self.cohort.space
        data = tokens.data
        return {
            "config": self.config.to_dict(),
            "plan": json.loads(spending.plan.to_json()) if spending else None,
            "noise": spending.noise.to_dict() if spending else None,
            "data": [data.name, len(data.clients), list(data.labels), tokens.max_length],
            "adapters": [list(shape) for shape in space.shapes(space.rank)],
        }


def _test_rows(texts: int, config: FederatedConfig) -> NDArray[np.int64]:
    """A fixed public choice of test texts, the same for every run with as many."""
    rows = np.random.default_rng(0).permutation(texts).astype(np.int64)
    return rows[: config.eval_texts] if config.eval_texts else rows
