"""Cohorts to time, and the peers that they are held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from opacus import GradSampleModule
from torch import Tensor
from torch.nn import functional

from fl_integration import AdapterSpace, Client, FederatedConfig, FederatedData, Tokens, load_data
from fl_integration.batches import length_sorted_batches
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Executor, Round
from fl_integration.data import LazyClients, Totals, as_examples
from fl_integration.models import load_model
from fl_integration.sampler import Randomness

RANK, CLIP, TRIALS = 8, 1.0, 3
WORDS = tuple(f"word{i}" for i in range(200))


def fastest(*runs: Callable[[], object]) -> list[float]:
    """The least seconds of the process of each of some calls, taken in turn."""
    times = [[0.0] * TRIALS for _ in runs]
    for trial in range(TRIALS):
        for run, row in zip(runs, times, strict=True):
            began = time.process_time()
            run()
            row[trial] = time.process_time() - began
    return [min(row) for row in times]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A cohort, and a round of all its clients."""

    cohort: Cohort
    round: Round

    @classmethod
    def of(cls, data: FederatedData, config: FederatedConfig, *, model: str, dtype: str) -> Case:
        """All clients of some data, at adapters that have left zero."""
        classifier, tokenizer = load_model(model, labels=len(data.labels), dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        space = AdapterSpace(classifier, rank=config.rank, generator=generator)
        start = space.flatten(config.rank)
        start += 0.05 * torch.randn(start.shape, generator=generator)
        clients = np.arange(len(data.clients))
        return cls(
            cohort=Cohort(
                space=space,
                tokens=Tokens(data, tokenizer),
                config=config,
                randomness=Randomness(seed=0, secret_seed=0),
            ),
            round=Round(index=0, rank=config.rank, clients=clients, start=start),
        )

    @property
    def texts(self) -> int:
        """How many texts are trained on."""
        return sum(len(self.cohort.work(self.round, c).ids) for c in self.round.clients.tolist())

    def summed(self, run: Executor, *, bound: float | None = CLIP) -> Tensor:
        """The clipped sum by an executor."""
        total = ClippedSum(len(self.round.start), bound)
        run(self.cohort, self.round, total)
        return total.value

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All texts, sorted by length."""
        works = [self.cohort.work(self.round, client) for client in self.round.clients.tolist()]
        ids = [line for work in works for line in work.ids]
        labels = np.concatenate([work.labels for work in works])
        for batch in length_sorted_batches(ids, pad_id=self.cohort.space.classifier.pad_id):
            yield batch.input_ids, batch.attention_mask, torch.from_numpy(labels[batch.rows])

    def plain(self) -> None:
        """Forward and backward over all texts, as in training without privacy."""
        space = self.cohort.space
        with space.use_rank(self.round.rank) as live:
            live.load(self.round.start)
            for batch in self.batches():
                space.classifier.losses(*batch).mean().backward()
                live.zero_grad()

    def opacus(self) -> Tensor:
        """The clipped sum of per-example gradients by Opacus's hooks, in fp32."""
        space = self.cohort.space
        total = torch.zeros(len(self.round.start))
        with space.use_rank(self.round.rank) as live:
            live.load(self.round.start)
            model = GradSampleModule(space.classifier, strict=False, loss_reduction="sum")
            for module in model.modules():  # hooks listen in training mode only; nothing drops out
                module.training = True
            for ids, mask, targets in self.batches():
                functional.cross_entropy(model(ids, mask), targets, reduction="sum").backward()
                samples = [parameter.grad_sample for parameter in live.parameters]
                norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples]).norm(dim=0)
                factors = (CLIP / (norms + 1e-6)).clamp(max=1.0)
                total += torch.cat([torch.einsum("n,n...", factors, s).flatten() for s in samples])
                for parameter in live.parameters:
                    parameter.grad = parameter.grad_sample = None
            model.remove_hooks()
            model.eval()
        return total


def examples(count: int, dtype: str) -> Case:
    """Clients of one docstring each, on MiniLM: a batch of example-level DP-SGD."""
    data = as_examples(load_data("docstrings"))
    picked = np.random.default_rng(0).permutation(len(data.clients))[:count]
    data = replace(data, clients=tuple(data.clients[i] for i in picked.tolist()))
    # one rate for all: what is clipped is then a gradient, as with Opacus
    config = FederatedConfig(
        system="lora", cohort=count, max_texts=1, local_lr=1.0, head_multiplier=1.0, clip=CLIP
    )
    return Case.of(data, config, model="minilm", dtype=dtype)


def stacked(model: str, *, clients: int, texts: int, words: int) -> Case:
    """Clients of two local steps, ``texts`` random texts of ``words`` words a step."""
    data = invented(clients, texts=2 * texts, words=words)
    config = FederatedConfig(
        system="lora", cohort=clients, batch_size=texts, max_texts=2 * texts, head_multiplier=1.0
    )
    return Case.of(data, config, model=model, dtype="float32")


def invented(clients: int, *, texts: int, words: int) -> FederatedData:
    """Clients of random words, each made when it is asked for."""

    def make(index: int) -> Client:
        rng = np.random.default_rng(index)
        lines = tuple(" ".join(rng.choice(WORDS, words)) for _ in range(texts))
        return Client(name=str(index), texts=lines, labels=rng.integers(0, 2, texts))

    return FederatedData(
        name="invented",
        labels=("a", "b"),
        clients=LazyClients(clients, make),
        test_texts=(),
        test_labels=np.zeros(0, dtype=np.int64),
        totals=Totals(examples=clients * texts, labels=np.full(2, clients * texts // 2)),
    )
