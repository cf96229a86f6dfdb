"""What a run asks its clients beside their updates: each answer a scalar release of its own."""

from __future__ import annotations

from functools import partial

from fl_integration.adaptive import ClipBits
from fl_integration.checkpoint import TrainState
from fl_integration.client_metrics import metric_named
from fl_integration.cohort import Round
from fl_integration.run import Run
from fl_integration.scalars import Numbers, Streams, release_scalar


def asked(run: Run, round: Round, state: TrainState) -> dict[str, float]:
    """The noised answer to each query that is due, by name; nothing without privacy.

    Draws noise: the spend of `Spending.of_round` is written down before.
    """
    if run.spending is None:
        return {}
    answers: dict[str, float] = {}
    planned = zip(run.config.queries, run.spending.beside, strict=True)
    for place, (query, release) in enumerate(planned):
        if query.due(round.index):
            answers[query.name] = release_scalar(
                query,
                _numbers(run, round, state, query.name),
                release.noise,
                clients=run.clients,
                streams=Streams(randomness=run.cohort.randomness, place=place),
                round=round.index,
            )
    return answers


def _numbers(run: Run, round: Round, state: TrainState, name: str) -> Numbers:
    """What a query asks: the clip's own share, or a metric of the clients."""
    adaptive = run.config.adaptive
    if adaptive is not None and state.clip is not None and name == adaptive.query.name:
        return ClipBits(cohort=run.cohort, round=round, clip=state.clip, executor=run.executor)
    return partial(metric_named(name), run.cohort, round)
