"""Token ids as padded batches of texts of similar length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Padded token ids and mask (n, L), and which rows of the input they are."""

    rows: NDArray[np.int64]
    input_ids: Tensor
    attention_mask: Tensor


def pad(ids: Sequence[Sequence[int]], *, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids and mask (n, L), int64, filled up on the right, in the given order."""
    width = max(map(len, ids), default=0)
    tokens = np.full((len(ids), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, line in enumerate(ids):
        tokens[row, : len(line)] = line
        mask[row, : len(line)] = 1
    return torch.from_numpy(tokens), torch.from_numpy(mask)


def length_sorted_batches(
    ids: Sequence[Sequence[int]], *, batch_tokens: int = 1024, pad_id: int = 0
) -> Iterator[Batch]:
    """Yield batches of rows of similar length, which wastes little padding; short rows first.

    **Guarantees**: every row is in exactly one batch; a batch has at most batch_tokens tokens,
    padding included, or a single row.

    Raises:
        ValueError: batch_tokens < 1.
    """
    if batch_tokens < 1:
        raise ValueError(f"Expected batch_tokens={batch_tokens} >= 1.")
    order = np.argsort([len(line) for line in ids], kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * len(ids[order[stop]]) <= batch_tokens:
            stop += 1
        rows = order[start:stop]
        tokens, mask = pad([ids[i] for i in rows], pad_id=pad_id)
        yield Batch(rows=rows, input_ids=tokens, attention_mask=mask)
        start = stop
