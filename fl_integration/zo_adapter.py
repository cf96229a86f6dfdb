"""Adapters and head of a model as losses for a zeroth-order run: exact, general and slow.

Every record is a forward pass of its own, in which its texts are padded together: its loss does
not depend on who else was drawn, so there is nothing to bound, and nothing is batched.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_integration.adapters import AdapterSpace
from fl_integration.batches import pad
from fl_integration.client import Tokens
from fl_integration.spaces import LiveSlice


@contextmanager
def adapter_losses(
    space: AdapterSpace, tokens: Tokens, *, max_texts: int
) -> Generator[AdapterLosses]:
    """Lend the trainable slice of a space, at its full rank, to a zeroth-order run.

    The stored tensors are back on leaving: `space.assign` the θ of the run then.

    Arguments:
        space: θ is its flat vector. tokens: the records are its clients. max_texts: the first so
            many texts of a record are used.

    Raises:
        ValueError: for an encoder in half precision, in which a short probe changes nothing.
    """
    dtype = next(space.classifier.encoder.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"Expected the encoder in float32, got {dtype}: differences along a short probe vanish"
            " in its rounding; load the model with dtype='float32'."
        )
    if max_texts < 1:
        raise ValueError(f"Expected max_texts={max_texts} to be 1 or above.")
    with space.use_rank(space.rank) as live:
        yield AdapterLosses(space, live, tokens, max_texts)


class AdapterLosses:
    """The mean loss of each record's texts, of one record at a time."""

    def __init__(
        self, space: AdapterSpace, live: LiveSlice, tokens: Tokens, max_texts: int
    ) -> None:
        self._space, self._live, self._tokens, self._max_texts = space, live, tokens, max_texts
        self._loaded: Tensor | None = None

    def __call__(self, theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """The loss of each record, (n,); 0 for one without a text."""
        if theta is not self._loaded:  # one object a probe
            self._live.load(theta.float())
            self._loaded = theta
        return torch.stack([self._loss(row) for row in rows.tolist()])

    def _loss(self, record: int) -> Tensor:
        ids = self._tokens.client(record)[: self._max_texts]
        targets = torch.from_numpy(self._tokens.targets(record)[: self._max_texts])
        if not ids:
            return torch.zeros((), dtype=torch.float64)
        model = self._space.classifier
        tensors = (*pad(ids, pad_id=model.pad_id), targets)
        return model.losses(*(tensor.to(model.device) for tensor in tensors)).double().mean().cpu()
