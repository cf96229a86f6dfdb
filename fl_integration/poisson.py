"""Batches in which every example is or is not, independently: what amplification is proved for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from fl_integration.sampler import poisson_cohort


class PoissonBatches(Sampler[list[int]]):
    """Batches of indices: every example is in each with probability ``rate``, independently.

    Arguments:
        examples: N >= 1. rate: q in (0, 1]. steps: batches in a pass. rng: makes them repeatable,
            for experiments only; None for draws that stay secret, which amplification needs.

    >>> len(list(PoissonBatches(100, rate=0.1, steps=3)))
    3
    """

    def __init__(
        self, examples: int, *, rate: float, steps: int, rng: np.random.Generator | None = None
    ) -> None:
        if not (examples >= 1 and steps >= 1 and 0 < rate <= 1):
            raise ValueError(
                f"Expected examples={examples} >= 1, steps={steps} >= 1 and rate={rate} in (0, 1]."
            )
        self.examples, self.rate, self.steps = examples, rate, steps
        self._rng = rng

    @property
    def expected(self) -> float:
        """q·N, the denominator of every step."""
        return self.rate * self.examples

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.steps):
            yield poisson_cohort(self.examples, rate=self.rate, rng=self._rng).tolist()


def poisson_loader(
    dataset: Dataset[Any],
    *,
    rate: float,
    steps: int,
    collate: Callable[[list[Any]], Any] = default_collate,
    rng: np.random.Generator | None = None,
) -> DataLoader[Any]:
    """A loader of Poisson batches, empty ones among them.

    **Guarantees**

    * An empty batch has the form of any other, with tensors of 0 examples: it is a step like any
      other, and to skip it would tell that nobody was drawn.

    Arguments:
        dataset: with a length; its first example gives empty batches their form. rate, steps, rng:
            those of `PoissonBatches`. collate: examples to a tensor, or a list or dict of tensors.

    >>> from torch.utils.data import TensorDataset
    >>> loader = poisson_loader(TensorDataset(torch.ones(4, 3)), rate=1.0, steps=2)
    >>> [len(x) for (x,) in loader]
    [4, 4]
    """
    batches = PoissonBatches(len(cast(Any, dataset)), rate=rate, steps=steps, rng=rng)
    form = _Collate(dataset=dataset, collate=collate)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=form)


@dataclass(frozen=True, kw_only=True)
class _Collate:
    """Collates a batch, or nobody; a class, so that worker processes can be sent it."""

    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any]

    def __call__(self, examples: list[Any]) -> Any:
        return self.collate(examples) if examples else _nobody(self.collate([self.dataset[0]]))


def _nobody(batch: Any) -> Any:
    """The same with 0 examples."""
    if isinstance(batch, Tensor):
        return batch[:0]
    if isinstance(batch, Mapping):
        return {key: _nobody(value) for key, value in batch.items()}
    return [_nobody(value) for value in batch]
