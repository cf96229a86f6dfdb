"""The clipped sum of a linear head's gradients, on features that are computed once.

Where only the head moves, the encoder gives a text the same features in every round. A client's
gradient is then an outer product (or a mean of some), and where a client has one text, its norm is
a product of two norms: no gradient is ever written down, and a full batch costs two products.
Features outlive a run: the next one of the process with the same encoder starts with them.

Symbols: n texts, d width of the features, K classes, x features (d,), r softmax minus label (K,).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fl_integration.batches import length_sorted_batches
from fl_integration.client import Tokens, chosen
from fl_integration.clipping import ROWS, ClippedSum
from fl_integration.cohort import Cohort, Round, merged_sum
from fl_integration.tasks import Classifier

KEPT = 2**17  # texts whose features are kept: 200 MB at d = 384
TOKENS = 2**12  # in a forward pass
BLOCK = 2**12  # clients whose features are computed together
CACHED = 2**9  # texts in fp64 at a time: they stay in the processor's cache

_Memory = dict[bytes, Tensor]  # by the bytes of a text's token ids, features (d,)
_MEMORIES: dict[bytes, _Memory] = {}  # of the last encoder only


class ProbeSum:
    """`merged_sum` for the head alone, features cached: one object a run.

    **Guarantees**

    * The deltas are those of `merged_sum` up to rounding. No client's texts touch another's delta.
    * The features of at most `KEPT` texts are kept, and no client is made that was not drawn.

    A model that is no classifier of whole texts, and a silo's own steps, go to `merged_sum`.
    """

    def __init__(self) -> None:
        self._kept: dict[int, _Features] = {}
        self._room = KEPT
        self._memory: _Memory | None = None

    def __call__(self, cohort: Cohort, round: Round, total: ClippedSum) -> None:
        """Add the clipped deltas of a round's clients, for one local step a client."""
        model = cohort.space.classifier
        if type(cohort) is not Cohort or not isinstance(model, Classifier):
            merged_sum(cohort, round, total)
            return
        head = cohort.space.head_slice(round.rank)
        step = float(cohort.rates(round)[head][0])  # one rate for all of the head
        weight, bias = _head(round.start[head].double(), labels=model.head.out_features)
        with cohort.space.use_rank(round.rank) as live:
            live.load(round.start)
            if self._memory is None:
                self._memory = _memory_of(model)
            for first in range(0, len(round.clients), BLOCK):
                clients = round.clients[first : first + BLOCK].tolist()
                every = self._of_round(cohort, model, round, clients, self._memory)
                for _ in range(sum(not len(features.targets) for features in every)):
                    total.add(torch.zeros(len(round.start)))  # a client all the same
                for start in range(0, len(every), CACHED):
                    taken = _joined(every[start : start + CACHED])
                    _add(total, taken, -step * taken.residuals(weight, bias), head)

    def _of_round(
        self,
        cohort: Cohort,
        model: Classifier,
        round: Round,
        clients: Sequence[int],
        memory: _Memory,
    ) -> list[_Features]:
        """The features of what each client trains on in a round."""
        missing = [client for client in clients if client not in self._kept]
        made = _computed(cohort.tokens, model, missing, memory)
        fresh = dict(zip(missing, made, strict=True))
        for client, features in fresh.items():
            if len(features.targets) <= self._room:
                self._kept[client] = features
                self._room -= len(features.targets)
        limit = cohort.config.max_texts
        found: list[_Features] = []
        for client in clients:
            features = fresh.get(client) or self._kept[client]
            if len(features.targets) > limit:
                rng = cohort.randomness.local(round.index, features.name)
                features = features.at(chosen(len(features.targets), limit=limit, rng=rng))
            found.append(features)
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Features:
    """Features (n, d) of texts and their classes (n,), of one client, or of owners (n,)."""

    name: str = ""
    x: Tensor
    targets: Tensor
    owners: Tensor | None = None

    def at(self, rows: NDArray[np.int64]) -> _Features:
        """Some of the texts."""
        picked = torch.from_numpy(rows)
        return replace(self, x=self.x[picked], targets=self.targets[picked])

    def residuals(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Each text's part of its owner's gradient by the logits (n, K), fp64."""
        predicted = (self.x @ weight.T + bias).softmax(-1)
        r = predicted - functional.one_hot(self.targets, len(bias))
        if self.owners is None:
            return r
        return r / torch.bincount(self.owners)[self.owners].unsqueeze(-1)


def _memory_of(model: Classifier) -> _Memory:
    """The features that earlier runs of the process left of an encoder; its own from now on.

    They are functions of the frozen weights alone as long as no adapter says anything (B = 0).
    """
    config = cast(Any, model.encoder).config.to_json_string()
    kind = type(model.encoder).__name__, model.pooled, model.mask_form, config
    digest = blake2b(repr(kind).encode())
    for name, weight in model.encoder.named_parameters():
        if ".lora_B." in name and bool(weight.any()):
            return {}
        if ".lora_" not in name:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    if digest.digest() not in _MEMORIES:
        _MEMORIES.clear()
    return _MEMORIES.setdefault(digest.digest(), {})


def _computed(
    tokens: Tokens, model: Classifier, clients: Sequence[int], memory: _Memory
) -> Iterator[_Features]:
    """The features of all texts of some clients: remembered, or batched by length."""
    sizes, names, ids = [], [], []
    for client in clients:
        own = tokens.client(client)
        sizes.append(len(own))
        names.append(tokens.name(client))
        ids.extend(own)
    keys = [np.asarray(line, dtype=np.int64).tobytes() for line in ids]
    x = torch.zeros(len(ids), model.head.in_features)
    new: list[int] = []
    for row, key in enumerate(keys):
        if key in memory:
            x[row] = memory[key]
        else:
            new.append(row)
    with torch.no_grad():
        for batch in length_sorted_batches(
            [ids[row] for row in new], batch_tokens=TOKENS, pad_id=model.pad_id
        ):
            tensors = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
            rows = torch.tensor(new)[torch.from_numpy(batch.rows)]
            x[rows] = model.pool(*tensors).float().cpu()
    for row in new:
        if len(memory) < KEPT:
            memory[keys[row]] = x[row].clone()  # a view would keep all of x
    for client, name, part in zip(clients, names, x.split(sizes), strict=True):
        yield _Features(name=name, x=part, targets=torch.from_numpy(tokens.targets(client)))


def _joined(parts: Sequence[_Features]) -> _Features:
    """The texts of some clients one after the other, in fp64, and whose they are."""
    sizes = torch.tensor([len(part.targets) for part in parts])
    return _Features(
        x=torch.cat([part.x for part in parts]).double(),
        targets=torch.cat([part.targets for part in parts]),
        owners=torch.repeat_interleave(torch.arange(len(parts)), sizes),
    )


def _add(total: ClippedSum, taken: _Features, left: Tensor, head: slice) -> None:
    """Add the clients' deltas: products of the rows of ``left`` (n, K) and of the features."""
    if taken.owners is None:
        total.add_linear(left, taken.x, head)
        return
    sizes = torch.bincount(taken.owners)
    for size in sizes[sizes > 0].unique().tolist():  # clients of as many texts go together
        mine = (sizes == size)[taken.owners]
        mine_left, mine_x = left[mine], taken.x[mine]
        if size == 1:
            total.add_linear(mine_left, mine_x, head)
            continue
        at_once = size * max(1, ROWS // (head.stop - head.start))
        for some_left, some_x in zip(mine_left.split(at_once), mine_x.split(at_once), strict=True):
            grouped = some_left.unflatten(0, (-1, size))
            products = grouped.mT @ some_x.unflatten(0, (-1, size))
            total.add_rows(torch.cat([products.flatten(1), grouped.sum(1)], dim=1), head)


def _head(flat: Tensor, *, labels: int) -> tuple[Tensor, Tensor]:
    """The weight (K, d) and the bias (K,) of a flat head."""
    return flat[:-labels].view(labels, -1), flat[-labels:]
