"""Federated text classification: who holds which texts.

Only the training texts belong to clients; the test texts belong to clients (or rows) that never
train. Everything is text here: `tokenise` once, and keep the result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_integration.docstrings import docstring_rows
from fl_integration.rows import Rows
from fl_integration.tables import file_rows, sst2_rows

MAX_LENGTH = 32  # tokens
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Client:
    """One participant: its texts and their classes (indices into `FederatedData.labels`)."""

    name: str
    texts: tuple[str, ...]
    labels: Integers

    def __post_init__(self) -> None:
        _same_length(self.texts, self.labels, f"client {self.name}")

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, kw_only=True, eq=False)
class FederatedData:
    """Labelled texts of training clients, and a test set that no client holds."""

    name: str
    labels: tuple[str, ...]
    clients: tuple[Client, ...]
    test_texts: tuple[str, ...]
    test_labels: Integers

    def __post_init__(self) -> None:
        _same_length(self.test_texts, self.test_labels, "the test set")

    @property
    def examples(self) -> int:
        """The number of training texts of all clients."""
        return sum(len(client) for client in self.clients)

    @property
    def majority_share(self) -> float:
        """The test accuracy of always answering the commonest training class."""
        counts = sum(
            (np.bincount(c.labels, minlength=len(self.labels)) for c in self.clients),
            start=np.zeros(len(self.labels), dtype=np.int64),
        )
        return float(np.mean(self.test_labels == np.argmax(counts)))


class Tokenizer(Protocol):
    """What `tokenise` needs of a tokenizer; those of transformers have it."""

    def __call__(self, text: list[str], *, truncation: bool, max_length: int) -> Mapping[str, Any]:
        """Return `{"input_ids": one list of ids per text}`."""
        ...


def load_data(
    source: str | Path = "docstrings",
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    max_per_client: int = 64,
    max_test: int | None = 2000,
    alpha: float | None = None,
) -> FederatedData:
    """Load labelled texts and deal them to clients.

    **Guarantees**: no client is in both training and test; the same arguments give the same data;
    which rows are held out depends on neither the seed nor the caps; every client has a text.

    Args:
        source: `docstrings` (embedded; clients are modules), `sst2`, or a .tsv, .csv or .jsonl
            file with columns text (or sentence), label (or category) and maybe client.
        data_dir: the folder of SST-2's train.tsv and dev.tsv; without it the hub is asked.
        seed: which texts are kept under the caps, and how rows without a client are dealt.
        max_per_client: texts a client keeps at most; rows without a client are dealt to clients
            of this size.
        max_test: test texts to keep at most, None for all.
        alpha: Dirichlet concentration > 0 of each client's class shares, for rows without a
            client; None deals at random. Small is skewed.

    Raises:
        ValueError: a bad argument, an unreadable file, or no training or test text.
    """
    if max_per_client < 1 or (max_test is not None and max_test < 1):
        raise ValueError(f"Expected max_per_client={max_per_client} and max_test={max_test} >= 1.")
    rows = _read(str(source), None if data_dir is None else Path(data_dir).expanduser())
    train, test = np.flatnonzero(~rows.test), np.flatnonzero(rows.test)
    if not len(train) or not len(test):
        raise ValueError(
            f"Expected training and test texts in {source}, got {len(train)} and {len(test)}; "
            f"give more clients or rows."
        )
    if rows.clients and alpha is not None:
        raise ValueError(f"Expected alpha=None for {source}, which names its clients, not {alpha}.")
    rng = np.random.default_rng(seed)
    names = _sorted_labels(rows.labels)
    codes = _codes(rows.labels, names)
    if rows.clients:
        groups = _cap(_by_client(rows.clients, train), max_per_client, rng)
    else:
        groups = _deal(train, codes, max_per_client, alpha, rng)
    chosen = np.sort(rng.permutation(test)[:max_test])
    return FederatedData(
        name=str(source),
        labels=names,
        clients=tuple(
            Client(name=name, texts=tuple(rows.texts[i] for i in members), labels=codes[members])
            for name, members in groups.items()
        ),
        test_texts=tuple(rows.texts[i] for i in chosen),
        test_labels=codes[chosen],
    )


def tokenise(
    texts: Sequence[str], tokenizer: Tokenizer, *, max_length: int = MAX_LENGTH
) -> list[list[int]]:
    """Turn texts into token ids, cut at max_length tokens (special tokens included).

    Raises:
        ValueError: max_length < 2, which leaves no room beside the special tokens.
    """
    if max_length < 2:
        raise ValueError(f"Expected max_length={max_length} >= 2.")
    if not texts:
        return []
    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return [list(row) for row in ids]


def _read(source: str, data_dir: Path | None) -> Rows:
    """Find the rows of a source."""
    if source == "docstrings":
        return docstring_rows()
    if source == "sst2":
        return sst2_rows(data_dir)
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(
            f"No such file: {source!r}; give docstrings, sst2, or a .tsv, .csv or .jsonl file."
        )
    return file_rows(path)


def _sorted_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The class names in order: numbers as numbers, else as text."""
    names = set(labels)
    numeric = all(name.lstrip("-").isdecimal() for name in names)
    return tuple(sorted(names, key=int) if numeric else sorted(names))


def _codes(labels: Sequence[str], names: Sequence[str]) -> Integers:
    """The position of each label among the class names."""
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[label] for label in labels], dtype=np.int64)


def _by_client(clients: Sequence[str], train: Integers) -> dict[str, Integers]:
    """The training rows of each client, clients sorted by name."""
    groups: dict[str, list[int]] = {}
    for i in map(int, train):
        groups.setdefault(clients[i], []).append(i)
    return {name: np.array(groups[name], dtype=np.int64) for name in sorted(groups)}


def _cap(
    groups: Mapping[str, Integers], most: int, rng: np.random.Generator
) -> dict[str, Integers]:
    """Keep `most` random rows of each client."""
    return {name: np.sort(rng.permutation(group)[:most]) for name, group in groups.items()}


def _deal(
    train: Integers,
    codes: Integers,
    size: int,
    alpha: float | None,
    rng: np.random.Generator,
) -> dict[str, Integers]:
    """Deal rows to clients of `size` rows: at random, or each with its own Dirichlet class mix."""
    order = rng.permutation(train)
    if alpha is not None:
        order = _skewed(order, codes, size, alpha, rng)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return {f"shard-{i:06d}": np.sort(part) for i, part in enumerate(parts)}


def _skewed(
    order: Integers, codes: Integers, size: int, alpha: float, rng: np.random.Generator
) -> Integers:
    """Reorder the rows so that each run of `size` rows has class shares ~ Dirichlet(alpha).

    When a class runs out its share goes to those that are left, in proportion to what they hold.
    """
    if not 0.0 < alpha < np.inf:
        raise ValueError(f"Expected alpha={alpha} > 0 and finite.")
    pools = [order[codes[order] == k] for k in range(int(codes.max()) + 1)]
    left = np.array([len(pool) for pool in pools])
    taken = np.zeros_like(left)
    dealt: list[Integers] = []
    while left.sum():
        shares = rng.dirichlet(np.full(len(pools), alpha))
        counts = _draw(left, shares, min(size, int(left.sum())), rng)
        dealt.extend(pool[t : t + n] for pool, t, n in zip(pools, taken, counts, strict=True) if n)
        taken, left = taken + counts, left - counts
    return np.concatenate(dealt)


def _draw(
    left: Integers, shares: NDArray[np.float64], size: int, rng: np.random.Generator
) -> Integers:
    """Draw `size` rows by class with the given shares, never more than are left of a class."""
    counts = np.minimum(rng.multinomial(size, shares), left)
    if missing := size - int(counts.sum()):
        counts = counts + rng.multivariate_hypergeometric(left - counts, missing)
    return counts


def _same_length(texts: Sequence[str], labels: Integers, whose: str) -> None:
    """Refuse columns of different lengths."""
    if len(texts) != len(labels):
        raise ValueError(f"Expected a label a text, got {len(texts)}, {len(labels)} in {whose}.")
