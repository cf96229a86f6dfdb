"""How good a model is on texts: hits of each, and what that means for groups of texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dpmech.noise import Floats
from fl_integration.batches import length_sorted_batches
from fl_integration.encoding import Integers
from fl_integration.tasks import TextModel

WORST = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits:
    """How many targets of each text were hit, (n,), out of how many, (n,)."""

    hits: Integers
    counts: Integers

    @property
    def accuracy(self) -> float:
        """The share of all targets that were hit; 0 where there are none.

        >>> Hits(hits=np.array([1, 3]), counts=np.array([1, 4])).accuracy
        0.8
        """
        return float(self.hits.sum() / max(1, self.counts.sum()))


def score(
    model: TextModel,
    ids: Sequence[Sequence[int]],
    targets: Integers,
    *,
    batch_tokens: int | None = None,
) -> Hits:
    """Return the hits of a model on token ids (n texts) with their targets, in their order.

    Args:
        targets: (n,) or (n, L), see `fl_integration.encoding`.
        batch_tokens: tokens in a batch, padding included (default 4096; 1024 for a language model,
            which holds as many distributions over its vocabulary at a time).
    """
    default = 1024 if model.head is None else 4096
    most = default if batch_tokens is None else batch_tokens
    hits, counts = np.zeros((2, len(ids)), dtype=np.int64)
    with torch.inference_mode():
        for batch in length_sorted_batches(ids, batch_tokens=most, pad_id=model.pad_id):
            wanted = torch.from_numpy(targets[batch.rows])
            tensors = batch.input_ids, batch.attention_mask, wanted
            found, real = model.correct(*(tensor.to(model.device) for tensor in tensors))
            hits[batch.rows], counts[batch.rows] = found.cpu().numpy(), real.cpu().numpy()
    return Hits(hits=hits, counts=counts)


@dataclass(frozen=True, kw_only=True)
class GroupAccuracy:
    """Accuracy over groups of texts, every group counting the same.

    Arguments:
        groups: how many. mean: of their accuracies. worst_decile: of the worst tenth of them.
        by_size: of the small, middle and large third of them, by their number of texts.
    """

    groups: int
    mean: float
    worst_decile: float
    by_size: tuple[float, float, float]


def accuracy_by_group(scored: Hits, groups: Sequence[str]) -> GroupAccuracy:
    """Return how accuracy is spread over groups, such as the clients that the test texts are of.

    Args:
        scored: of the texts. groups: (n,) the group of each text, at least one.

    Raises:
        ValueError: no group, or not one a text.

    >>> scored = Hits(hits=np.array([1, 0, 1, 1]), counts=np.ones(4, dtype=np.int64))
    >>> accuracy_by_group(scored, ["a", "b", "c", "c"])
    GroupAccuracy(groups=3, mean=0.6666666666666666, worst_decile=0.0, by_size=(1.0, 0.0, 1.0))
    """
    if not groups or len(groups) != len(scored.hits):
        raise ValueError(
            f"Expected a group a text, got {len(groups)} for {len(scored.hits)} texts."
        )
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(place)
    hits = np.bincount(place, weights=scored.hits)
    shares = hits / np.maximum(1, np.bincount(place, weights=scored.counts))
    worst = np.sort(shares)[: int(np.ceil(WORST * len(shares)))]
    small, middle, large = _thirds(shares[np.argsort(sizes, kind="stable")])
    return GroupAccuracy(
        groups=len(shares),
        mean=float(shares.mean()),
        worst_decile=float(worst.mean()),
        by_size=(small, middle, large),
    )


def _thirds(values: Floats) -> tuple[float, float, float]:
    """The means of three consecutive parts; of all where there are fewer than three values."""
    parts = np.array_split(values, 3) if len(values) >= 3 else [values] * 3
    one, two, three = (float(part.mean()) for part in parts)
    return one, two, three
