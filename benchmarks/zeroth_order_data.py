"""Records for `zeroth_order.py`: what the encoder says of every text, each computed alone."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_integration.client import Tokens
from fl_integration.data import as_examples, load_data
from fl_integration.dealing import Dealing
from fl_integration.models import Classifier, load_model
from fl_integration.zo_head import (
    Halves,
    HeadOptions,
    PublicMap,
    encode_public,
    encode_record,
    public_head,
)

_SENTIMENT = {
    "negative": (
        "a terrible movie",
        "dull and boring film",
        "awful, unfunny and annoying",
        "one of the worst films of the year",
        "I hated it",
        "painful to watch",
        "bad acting",
        "negative",
    ),
    "positive": (
        "a great movie",
        "wonderful and moving film",
        "brilliant, funny and charming",
        "one of the best films of the year",
        "I loved it",
        "a delight to watch",
        "excellent acting",
        "positive",
    ),
}
_HELD_OUT = 0.2  # of the users, for tuning


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set, texts a user, how many users are kept (all: None), and its public head start."""

    name: str
    title: str
    size: int
    users: int | None = None
    head: HeadOptions


SOURCES = {
    "sst2": Source(
        name="sst2",
        title="SST-2",
        size=10,
        users=1000,
        head=HeadOptions(descriptions=_SENTIMENT, start_scale=10.0),
    ),
    "banking77": Source(
        name="banking77",
        title="Banking77",
        size=10,
        head=HeadOptions(dim=76, start_scale=16.0),
    ),
    "docstrings": Source(
        name="docstrings", title="docstrings", size=8, users=300, head=HeadOptions(start_scale=8.0)
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """Features (n, k) and labels (n,) of texts; ``owner`` (n,) says whose they are."""

    features: Halves
    labels: NDArray[np.int64]
    owner: NDArray[np.int64]

    def of(self, users: NDArray[np.int64]) -> Texts:
        """The texts of some users, who are numbered anew."""
        kept = np.isin(self.owner, users)
        owner = np.searchsorted(np.sort(users), self.owner[kept])
        return Texts(features=self.features[kept], labels=self.labels[kept], owner=owner)


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """One data set as features: training texts, test texts, the map, and θ at the start."""

    source: Source
    shape: PublicMap
    start: NDArray[np.float64]
    classes: int
    train: Texts
    test: Texts

    def halves(self) -> Problem:
        """The same problem inside the training set: a fifth of the users is its test set."""
        users = np.random.default_rng(0).permutation(int(self.train.owner.max()) + 1)
        cut = int(_HELD_OUT * len(users))
        return Problem(
            source=self.source,
            shape=self.shape,
            start=self.start,
            classes=self.classes,
            train=self.train.of(users[cut:]),
            test=self.train.of(users[:cut]),
        )


class Stored:
    """`RecordFeatures` of texts that are all in memory: each a record, or each user's."""

    def __init__(self, texts: Texts, shape: PublicMap, *, by_user: bool) -> None:
        self.shape, self._texts = shape, texts
        owner = texts.owner if by_user else np.arange(len(texts.labels))
        order = np.argsort(owner, kind="stable")
        edges = np.searchsorted(owner[order], np.arange(int(owner.max()) + 2))
        rows = [order[a:b] for a, b in itertools.pairwise(edges)]
        self.records = len(rows)
        self.max_texts = max(map(len, rows))
        self._kept = [(texts.features[r], texts.labels[r]) for r in rows]

    def __call__(self, record: int) -> tuple[Halves, NDArray[np.int64]]:
        """The features and labels of one record."""
        return self._kept[record]


def load_problem(source: Source, data_dir: Path | None, cache: Path) -> Problem:
    """Read a data set, encode every training text alone, and keep what the encoder said."""
    folder = None if data_dir is None else data_dir / source.name
    data = load_data(source.name, data_dir=folder, dealing=Dealing(size=source.size, max_test=None))
    if source.users is not None:
        kept = np.random.default_rng(0).permutation(len(data.clients))[: source.users]
        data = replace(data, clients=tuple(data.clients[i] for i in kept))
    model, tokenizer = load_model("minilm", labels=len(data.labels))
    tokens = Tokens(as_examples(data), tokenizer, max_length=48)
    shape, start = public_head(model, tokenizer, data.labels, source.head)
    train = _kept(cache / f"{source.name}-alone.npy", tokens, model)
    test = encode_public(model, tokens.test())
    sizes = [len(client) for client in data.clients]
    return Problem(
        source=source,
        shape=shape,
        start=start.numpy(),
        classes=len(data.labels),
        train=Texts(
            features=_mapped(shape, train),
            labels=np.concatenate([client.labels for client in data.clients]),
            owner=np.repeat(np.arange(len(sizes)), sizes),
        ),
        test=Texts(
            features=_mapped(shape, test),
            labels=data.test_labels,
            owner=np.arange(len(test)),
        ),
    )


def _mapped(shape: PublicMap, pooled: Sequence[NDArray[np.floating]]) -> Halves:
    return np.array([shape(np.asarray(row, dtype=np.float64)) for row in pooled])


def _kept(path: Path, tokens: Tokens, model: Classifier) -> Halves:
    """The encoder's output (n, w) for every text, from the file or computed and written there."""
    records = len(tokens.data.clients)
    if path.exists():
        return np.load(path)
    found = np.empty((records, int(model.encoder.config.hidden_size)), dtype=np.float32)
    for record in range(records):
        found[record] = encode_record(model, tokens.client(record))[0]
        if record % 5000 == 0:
            print(f"{path.stem}: {record} of {records} texts", file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, found)
    return found
