"""Hits of texts, in their order, and how they spread over groups."""

import numpy as np
import pytest
import torch
from torch import nn

from fl_integration.batches import pad
from fl_integration.encoding import IGNORED, next_tokens
from fl_integration.evaluation import Hits, accuracy_by_group, score
from fl_integration.models import load_model


def rows(count: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 500, n).tolist() for n in rng.integers(1, 20, count)]


def scored(hits: list[int], counts: list[int] | None = None) -> Hits:
    return Hits(hits=np.array(hits), counts=np.array(counts or [1] * len(hits)))


@pytest.mark.parametrize("tokens", [1, 60, 4096])
def test_scores_of_texts_keep_their_order_whatever_the_batches(tokens: int) -> None:
    model, _ = load_model("tiny", labels=3)
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(5))
    ids, targets = rows(), np.random.default_rng(1).integers(0, 3, 30)
    found = score(model, ids, targets, batch_tokens=tokens)
    with torch.no_grad():
        best = [int(model(*pad([line])).argmax()) for line in ids]
    assert found.hits.tolist() == (np.array(best) == targets).astype(int).tolist()
    assert found.counts.tolist() == [1] * 30
    assert 0 < found.accuracy < 1


def test_scores_of_tokens_count_what_was_predicted() -> None:
    model, _ = load_model("tiny", task="next-token")
    ids = rows()
    targets = next_tokens(ids, width=20)
    with torch.no_grad():
        best = model(*pad(ids)).argmax(-1).numpy()
    targets[::2, :3] = np.where(targets[::2, :3] == IGNORED, IGNORED, best[::2, :3])
    found = score(model, ids, targets, batch_tokens=64)
    width = best.shape[1]
    assert found.hits.tolist() == (best == targets[:, :width]).sum(1).tolist()
    assert found.counts.tolist() == [len(line) - 1 for line in ids]
    assert found.accuracy == found.hits.sum() / found.counts.sum() > 0.1


def test_no_text_is_no_accuracy() -> None:
    model, _ = load_model("tiny", labels=3)
    nothing = score(model, [], np.zeros(0, dtype=np.int64))
    assert len(nothing.hits) == 0
    assert nothing.accuracy == 0.0


def test_groups_count_the_same_whatever_their_size() -> None:
    hits = [1, 0, 0, 0, 1, 1]
    spread = accuracy_by_group(scored(hits), ["big"] * 4 + ["one", "two"])
    assert spread.groups == 3
    assert spread.mean == pytest.approx((0.25 + 1 + 1) / 3)
    assert spread.worst_decile == 0.25
    assert spread.by_size == (1.0, 1.0, 0.25)
    pair = accuracy_by_group(scored([1, 0]), ["a", "b"])
    assert pair.by_size == (0.5, 0.5, 0.5)


def test_the_worst_decile_is_a_tenth_of_the_groups_rounded_up() -> None:
    shares = np.arange(25)
    hits = scored(shares.tolist(), [100] * 25)
    spread = accuracy_by_group(hits, [f"g{i:02d}" for i in range(25)])
    assert spread.worst_decile == pytest.approx(0.01)  # of 0, 1 and 2 hundredths
    assert spread.mean == pytest.approx(0.12)


def test_a_group_of_texts_with_many_targets_weighs_targets() -> None:
    hits = scored([9, 0, 0], [9, 1, 0])
    spread = accuracy_by_group(hits, ["a", "a", "b"])
    assert spread.mean == pytest.approx(0.45)  # 9 of 10, and none of none
    with pytest.raises(ValueError, match="a group a text, got 2 for 3 texts"):
        accuracy_by_group(hits, ["a", "b"])
    with pytest.raises(ValueError, match="a group a text, got 0 for 0 texts"):
        accuracy_by_group(scored([]), [])
