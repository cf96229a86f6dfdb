"""Federated texts: who holds which, and a test set that belongs to no training client.

A client's texts exist when they are asked for: a run touches the clients that it draws and no
others, so that a population of millions costs no more than one of thousands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fl_integration.dealing import Dealing, deal, natural
from fl_integration.encoding import Integers, label_starts
from fl_integration.rows import Label, Rows, Task, Text
from fl_integration.tables import source_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Client:
    """One participant: its texts and their labels (indices into `FederatedData.labels`).

    Arguments:
        texts: as they stand; for token classification lists of words.
        labels: one a text; for token classification one a word, text after text; none for
            next-token.
    """

    name: str
    texts: tuple[Text, ...]
    labels: Integers

    def __post_init__(self) -> None:
        _check_labels(self.texts, self.labels, f"client {self.name}")

    def __len__(self) -> int:
        return len(self.texts)

    def example(self, index: int) -> Client:
        """One text of this client, as a client of its own."""
        text = self.texts[index]
        words = not isinstance(text, str)
        start = sum(map(len, self.texts[:index])) if words else index
        stop = start + (len(text) if words else 1)
        return Client(name=f"{self.name}/{index}", texts=(text,), labels=self.labels[start:stop])


@dataclass(frozen=True, eq=False)
class LazyClients(Sequence[Client]):
    """Clients that are made when they are asked for, and not kept.

    Arguments:
        size: how many there are. make: makes client i of 0..size-1, the same each time.

    >>> many = LazyClients(10**9, lambda i: Client(name=f"u{i}", texts=(), labels=np.array([])))
    >>> len(many), many[-1].name, many[5:][0].name
    (1000000000, 'u999999999', 'u5')
    """

    size: int
    make: Callable[[int], Client]

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"Expected size={self.size} >= 0.")

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Client: ...
    @overload
    def __getitem__(self, index: slice) -> LazyClients: ...
    def __getitem__(self, index: int | slice) -> Client | LazyClients:
        places = range(self.size)[index]  # refuses what is out of range
        if isinstance(places, range):
            return LazyClients(len(places), lambda i: self.make(places[i]))
        return self.make(places)


@dataclass(frozen=True, kw_only=True, eq=False)
class FederatedData:
    """Texts of training clients, and a test set that no client holds.

    **Guarantees**: nothing is counted over all clients unless it is asked for, and never over
    `LazyClients`.

    Arguments:
        labels: names of the classes; none for next-token.
        test_labels: as those of a client. test_groups: the client of each test text, if known.
        task: what the texts are for.
    """

    name: str
    labels: tuple[str, ...]
    clients: Sequence[Client]
    test_texts: tuple[Text, ...]
    test_labels: Integers
    test_groups: tuple[str, ...] = ()
    task: Task = "sequence-classification"

    def __post_init__(self) -> None:
        _check_labels(self.test_texts, self.test_labels, "the test set")
        if len(self.test_groups) not in (0, len(self.test_texts)):
            raise ValueError(
                f"Expected a group a test text or none, got {len(self.test_groups)} for "
                f"{len(self.test_texts)} texts."
            )

    @property
    def examples(self) -> int | None:
        """The number of training texts of all clients; None for `LazyClients`."""
        if isinstance(self.clients, LazyClients):
            return None
        return sum(len(client) for client in self.clients)

    @property
    def majority_share(self) -> float | None:
        """The accuracy of always answering the commonest class of the test set, if it has classes.

        Of the test set, which is public: which class is commonest among the clients is private.
        """
        if not len(self.test_labels):
            return None
        return float(np.bincount(self.test_labels).max() / len(self.test_labels))


def as_examples(data: FederatedData) -> FederatedData:
    """Return the federation in which every training text is a client of its own.

    **Guarantees**: user-level privacy there is example-level privacy here, of the texts that the
    clients have (load them with `Dealing.for_unit`, or which those are depends on others); a
    client is made when it is asked for; the test set is the same.

    Only the sizes of the clients are looked at now (which makes each that is lazy, once).
    """
    ends = np.cumsum([len(client) for client in data.clients], dtype=np.int64)
    starts = np.concatenate([[0], ends])

    def make(index: int) -> Client:
        owner = int(np.searchsorted(ends, index, side="right"))
        return data.clients[owner].example(index - int(starts[owner]))

    return replace(data, clients=LazyClients(int(starts[-1]), make))


def load_data(
    source: str | Path = "docstrings",
    *,
    data_dir: str | Path | None = None,
    test_path: str | Path | None = None,
    task: Task = "sequence-classification",
    seed: int = 0,
    dealing: Dealing | None = None,
) -> FederatedData:
    """Load texts and deal them to clients.

    **Guarantees**

    * No client is in both training and test, unless a test file says so; the same arguments give
      the same data; every client has a text.
    * The classes and the choice of test texts depend on no training text; which rows are held out
      depends on neither the seed nor the caps.
    * Where rows name their clients, what one of them holds depends on no other; without a cap
      (`Dealing.for_unit`) no text decides about another. (Without names, clients are an
      experiment's: a user is one that was dealt.)

    Args:
        source: `docstrings` (embedded; clients are modules), `sst2`, `banking77`, or a file of
            texts, see `file_rows`.
        data_dir: the folder of SST-2's train.tsv and dev.tsv (without it the hub is asked), or of
            Banking77's train.csv and test.csv.
        test_path: a file that is the test set of a source that is a file.
        task: what the texts are for; next-token leaves out labels.
        seed: which texts are kept under the caps, and how rows without a client are dealt.
        dealing: sizes and mixes of the clients, the classes, and the size of the test set.

    Raises:
        ValueError: a bad argument, an unreadable file, or no training or test text.
    """
    dealing = dealing or Dealing()
    rows = source_rows(
        str(source), data_dir=_folder(data_dir), test_path=_folder(test_path), task=task
    )
    train, test = _sides(rows, dealing, str(source))
    labelled = _Labelled.of(rows, task, declared=dealing.labels)
    train = _of_classes(train, labelled)
    classes = task == "sequence-classification"
    dealing.refuse(str(source), clients=bool(rows.clients), classes=classes)
    if rows.clients:
        groups = natural(rows.clients, train, dealing, seed=seed)
    else:
        groups = deal(train, labelled.codes, dealing, np.random.default_rng(seed))
    # a generator of its own: what dealing draws depends on how many training texts there are
    chosen = np.sort(np.random.default_rng([seed, 1]).permutation(test)[: dealing.max_test])
    return FederatedData(
        name=str(source),
        labels=labelled.names,
        clients=tuple(
            Client(name=name, texts=labelled.texts_of(members), labels=labelled.of_rows(members))
            for name, members in groups.items()
        ),
        test_texts=labelled.texts_of(chosen),
        test_labels=labelled.of_rows(chosen),
        test_groups=tuple(rows.clients[i] for i in chosen) if rows.clients else (),
        task=task,
    )


def _sides(rows: Rows, dealing: Dealing, source: str) -> tuple[Integers, Integers]:
    """The training rows that are long enough, and the test rows (ValueError without either)."""
    long = np.array([dealing.long_enough(text) for text in rows.texts], dtype=np.bool_)
    train, test = np.flatnonzero(~rows.test & long), np.flatnonzero(rows.test)
    if not len(train) or not len(test):
        raise ValueError(
            f"Expected training texts of min_words={dealing.min_words} and test texts in {source}, "
            f"got {len(train)} and {len(test)}; give more clients or rows."
        )
    return train, test


def _of_classes(train: Integers, labelled: _Labelled) -> Integers:
    """The training rows of a known class, each by a look at itself; a warning tells how many."""
    known = train[labelled.known[train]]
    if not len(known):
        raise ValueError(
            f"Expected training texts of the test texts' classes {labelled.names}, got none;"
            " declare the classes with dealing.labels."
        )
    if strange := len(train) - len(known):
        log.warning(
            "Left out %d training texts whose class no test text has: classes are public, so they"
            " are not read from training texts. Declare them with dealing.labels.",
            strange,
        )
    return known


@dataclass(frozen=True, kw_only=True, eq=False)
class _Labelled:
    """Texts and the codes of their labels: those of row i are codes[starts[i]:starts[i + 1]].

    Rows that are not known have a label that is no class, and codes of -1.
    """

    texts: tuple[Text, ...]
    names: tuple[str, ...]
    codes: Integers
    starts: Integers
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Rows, task: Task, *, declared: tuple[str, ...]) -> _Labelled:
        """Number the labels of rows; next-token has none."""
        if task == "next-token":
            return cls(
                texts=rows.texts,
                names=(),
                codes=np.zeros(0, dtype=np.int64),
                starts=np.zeros(len(rows.texts) + 1, dtype=np.int64),
                known=np.ones(len(rows.texts), dtype=np.bool_),
            )
        names = _classes(rows, declared)
        index = {name: i for i, name in enumerate(names)}
        known = np.array([index.keys() >= set(_names(label)) for label in rows.labels])
        return cls(
            texts=rows.texts,
            names=names,
            codes=np.array(
                [index.get(name, -1) for label in rows.labels for name in _names(label)],
                dtype=np.int64,
            ),
            starts=label_starts(rows.texts),
            known=known,
        )

    def texts_of(self, rows: Integers) -> tuple[Text, ...]:
        """The texts of some rows."""
        return tuple(self.texts[i] for i in rows)

    def of_rows(self, rows: Integers) -> Integers:
        """The codes of some rows, row after row."""
        parts = [self.codes[self.starts[i] : self.starts[i + 1]] for i in rows]
        return np.concatenate(parts)


def _folder(path: str | Path | None) -> Path | None:
    """A path with the home folder written out."""
    return None if path is None else Path(path).expanduser()


def _names(label: Label) -> tuple[str, ...]:
    """The names in a label: of a text, or of each of its words."""
    return (label,) if isinstance(label, str) else label


def _classes(rows: Rows, declared: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that were declared, or those of the test texts: numbers as numbers, in order.

    Never those of the training texts: whoever alone holds a class would show in the model's shape.
    """
    tested = [label for label, test in zip(rows.labels, rows.test, strict=True) if test]
    found = {name for label in tested for name in _names(label)}
    if declared and (missing := found - set(declared)):
        raise ValueError(
            f"Expected labels={declared} to have the class {min(missing)!r} of a test text."
        )
    names = set(declared) or found
    numeric = all(name.lstrip("-").isdecimal() for name in names)
    return tuple(sorted(names, key=int) if numeric else sorted(names))


def _check_labels(texts: Sequence[Text], labels: Integers, whose: str) -> None:
    """Refuse columns of different lengths."""
    wanted = sum(1 if isinstance(text, str) else len(text) for text in texts)
    if len(labels) not in (0, wanted):
        raise ValueError(
            f"Expected a label a text or a word, or none, got {len(labels)} labels for {wanted} "
            f"in {whose}."
        )
