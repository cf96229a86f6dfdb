"""What the clients of a finished run can have of its model, where a coarse copy was broadcast."""

from __future__ import annotations

import numpy as np

from fl_integration.broadcast import received
from fl_integration.checkpoint import TrainState
from fl_integration.cohort import Round
from fl_integration.model_privacy import ModelPrivacy, locally_trained, model_privacy
from fl_integration.run import Run

TRAINING = 10  # clients whose own training is measured


def protected(run: Run, state: TrainState) -> ModelPrivacy | None:
    """The three measures of a run's broadcasts, on the public test texts; ``None`` without any.

    What a client makes of its copy with its own texts is a function of private data: it is measured
    only in a run without privacy, on the first clients that a public seed names.
    """
    if run.config.broadcast is None or not len(run.test):
        return None
    space, server = run.cohort.space, state.server.shown(run.config)
    copy = received(run.config.broadcast, server)
    index = space.index(space.rank)
    chosen = np.random.default_rng(run.config.seed).permutation(run.clients)
    round = Round(
        index=state.round,
        rank=space.rank,
        clients=chosen[: 0 if run.spending else TRAINING].astype(np.int64),
        start=copy.float(),
    )
    trained = locally_trained(run.cohort, round, index=index, known=copy, executor=run.executor)

    return model_privacy(
        lambda weights: run.scored(weights).accuracy,
        server=server,
        received=copy,
        trained=trained,
        overheard=state.overheard.hear(index, copy),
    )
