"""What a run can ask a client beside its update: one number, to be clipped, summed and noised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from dpmech.noise import Floats
from fl_integration.batches import pad
from fl_integration.client import Work
from fl_integration.cohort import Cohort, Round
from fl_integration.evaluation import score
from fl_integration.tasks import TextModel

Metric = Callable[[Cohort, Round, NDArray[np.int64]], Floats]


def metric_named(name: str) -> Metric:
    """What a query of this name asks of some clients; ValueError for a name nobody answers."""
    if name not in METRICS:
        raise ValueError(f"Expected the scalar name={name!r} to be one of {tuple(METRICS)}.")
    return METRICS[name]


def answers(cohort: Cohort, round: Round, clients: NDArray[np.int64]) -> Floats:
    """1 of every client (n,): their sum is how many take part."""
    del cohort, round
    return np.ones(len(clients))


def accuracies(cohort: Cohort, round: Round, clients: NDArray[np.int64]) -> Floats:
    """Each client's accuracy (n,) on its own texts, of the weights received; NaN without texts."""
    return _of_each(cohort, round, clients, _accuracy)


def losses(cohort: Cohort, round: Round, clients: NDArray[np.int64]) -> Floats:
    """Each client's mean loss (n,) on its own texts, of the weights received; NaN without texts."""
    return _of_each(cohort, round, clients, _loss)


def _of_each(
    cohort: Cohort,
    round: Round,
    clients: NDArray[np.int64],
    number: Callable[[TextModel, Work], float],
) -> Floats:
    found = np.full(len(clients), np.nan)
    with cohort.space.use_rank(round.rank) as live:
        live.load(round.start)
        for place, client in enumerate(clients.tolist()):
            work = cohort.work(round, client)
            if work.ids:
                found[place] = number(cohort.space.classifier, work)
    return found


def _accuracy(model: TextModel, work: Work) -> float:
    return score(model, work.ids, work.labels).accuracy


def _loss(model: TextModel, work: Work) -> float:
    input_ids, mask = pad(work.ids, pad_id=model.pad_id)
    tensors = (t.to(model.device) for t in (input_ids, mask, torch.from_numpy(work.labels)))
    with torch.inference_mode():
        return float(model.losses(*tensors).mean())


METRICS: dict[str, Metric] = {"answers": answers, "accuracy": accuracies, "loss": losses}
