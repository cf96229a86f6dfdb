"""Where texts come from: own files (.tsv, .csv, .jsonl, .txt), docstrings, SST-2, Banking77."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fl_integration.docstrings import docstring_rows
from fl_integration.rows import Label, Rows, Task, Text, held_out

TEXT = ("text", "sentence", "tokens")
LABEL = ("label", "category", "tags")
CLIENT = ("client",)
SST2_LABELS = {"0": "negative", "1": "positive"}
SST2_HUB = "nyu-mll/glue"
ENDINGS = ".tsv, .csv, .jsonl or .txt"

Record = Mapping[str, Any]


def source_rows(source: str, *, data_dir: Path | None, test_path: Path | None, task: Task) -> Rows:
    """Read the rows of `docstrings`, `sst2`, `banking77` or a file.

    Raises:
        ValueError: no such source, one that cannot be read, or that the task cannot use.
    """
    known: dict[str, Callable[[], Rows]] = {
        "docstrings": docstring_rows,
        "sst2": lambda: sst2_rows(data_dir),
        "banking77": lambda: banking77_rows(data_dir),
    }
    if source in known:
        if task == "token-classification" or test_path is not None:
            raise ValueError(
                f"Expected a file of one's own with task={task!r} and test_path={test_path}: "
                f"{source} has classes of texts, and a test set."
            )
        return known[source]()
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"No such file: {source!r}; give {', '.join(known)}, or a {ENDINGS} file.")
    return file_rows(path, test_path=test_path, task=task)


def file_rows(
    path: Path, *, test_path: Path | None = None, task: Task = "sequence-classification"
) -> Rows:
    """Read a file with columns text (or sentence, tokens), label (category, tags), maybe client.

    Without a test file the test set is about 15 % of the clients, or of the distinct texts where
    there is no client column, chosen by a stable hash of the name or the text: the same rows every
    time.

    Args:
        path: UTF-8; .tsv without quoting (the GLUE format), .csv with it, .jsonl an object a line,
            .txt a text a line. For token classification, a .jsonl whose texts and labels are
            lists; for next-token there need not be labels, and they are not read.
        test_path: a file of the same columns that is the whole test set.
        task: what the texts are for.

    Raises:
        ValueError: unknown ending, unreadable or empty file, missing column, broken line, or
            clients in one of the two files only.
    """
    train = _columns(path, task)
    if test_path is None:
        return train
    test = _columns(test_path, task)
    if bool(train.clients) is not bool(test.clients):
        raise ValueError(f"Expected a column client in both {path} and {test_path}, or in neither.")
    return Rows(
        texts=train.texts + test.texts,
        labels=train.labels + test.labels,
        clients=train.clients + test.clients,
        test=np.arange(len(train.texts) + len(test.texts)) >= len(train.texts),
    )


def banking77_rows(data_dir: Path | None) -> Rows:
    """Read Banking77 from `train.csv` and `test.csv` in data_dir.

    Raises:
        ValueError: no folder, or a file is missing.

    Source: Casanueva et al. (2020), "Efficient intent detection with dual sentence encoders".
    """
    if data_dir is None:
        raise ValueError("Expected a folder with Banking77's train.csv and test.csv (--data-dir).")
    train, test = _pair(data_dir, "Banking77", "train.csv", "test.csv")
    return file_rows(train, test_path=test)


def sst2_rows(data_dir: Path | None) -> Rows:
    """Read SST-2 from `train.tsv` and `dev.tsv` in data_dir, or from the hub without one.

    Raises:
        ValueError: a file is missing, or the hub cannot be used.
    """
    if data_dir is None:
        rows = _hub_rows()
    else:
        train, dev = _pair(data_dir, "SST-2", "train.tsv", "dev.tsv")
        rows = file_rows(train, test_path=dev)
    if unknown := set(rows.labels) - set(SST2_LABELS):
        raise ValueError(f"Expected labels 0 and 1 in {data_dir}, got {unknown.pop()!r}.")
    return replace(rows, labels=tuple(SST2_LABELS[str(label)] for label in rows.labels))


def _pair(folder: Path, name: str, *files: str) -> list[Path]:
    """The files of a data set that are to be in a folder."""
    paths = [folder / file for file in files]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"Expected a file {path}; give the folder of {name} with --data-dir.")
    return paths


def _hub_rows() -> Rows:
    """SST-2 through the `datasets` package."""
    train, dev = (_hub(split) for split in ("train", "validation"))
    texts, labels = zip(*(train + dev), strict=True)
    test = np.arange(len(texts)) >= len(train)
    return Rows(texts=texts, labels=labels, clients=(), test=test)


def _hub(split: str) -> list[tuple[str, str]]:
    """Load one split through the `datasets` package."""
    try:
        rows: Any = import_module("datasets").load_dataset(SST2_HUB, "sst2", split=split)
    except Exception as error:  # no package, no network, no such set: one way out for the user
        raise ValueError(
            f"SST-2 cannot be loaded from the hub ({type(error).__name__}); give a folder with "
            f"train.tsv and dev.tsv with --data-dir."
        ) from error
    return [(str(row["sentence"]).strip(), str(row["label"])) for row in rows]


def _columns(path: Path, task: Task) -> Rows:
    """The columns of a file that a task needs, with the stable split."""
    table = _Table(path, tuple(_records(path)))
    client = table.column(CLIENT, required=False)
    clients = table.values(client) if client else ()
    texts: tuple[Text, ...]
    labels: tuple[Label, ...] = ()
    if task == "token-classification":
        texts, labels = table.tagged()
    else:
        texts = table.values(table.column(TEXT))
        if task == "sequence-classification":
            labels = table.values(table.column(LABEL))
    return Rows(texts=texts, labels=labels, clients=clients, test=held_out(clients or texts))


@dataclass(frozen=True)
class _Table:
    """The records of a file, at least one."""

    path: Path
    records: tuple[Record, ...]

    def __post_init__(self) -> None:
        if not self.records:
            raise ValueError(f"Expected at least one row in {self.path}.")

    def column(self, names: tuple[str, ...], *, required: bool = True) -> str:
        """The first of the names that is a column; empty if there is none and none is needed."""
        found = next((name for name in names if name in self.records[0]), "")
        if required and not found:
            columns = ", ".join(map(str, self.records[0]))
            raise ValueError(
                f"Expected a column {' or '.join(names)} in {self.path}, got {columns}."
            )
        return found

    def values(self, column: str) -> tuple[str, ...]:
        """One column as stripped text; a row without a value is an error."""
        values: list[str] = []
        for number, record in enumerate(self.records, start=1):
            value = record.get(column)
            if isinstance(value, list | dict):
                raise ValueError(
                    f"Expected one value for {column} in row {number} of {self.path}, got {value}; "
                    "lists are for token-classification."
                )
            if value is None or not (text := str(value).strip()):
                raise ValueError(f"Expected a value for {column} in row {number} of {self.path}.")
            values.append(text)
        return tuple(values)

    def tagged(self) -> tuple[tuple[Text, ...], tuple[Label, ...]]:
        """Texts as words, and a label for each of the words."""
        texts, labels = self.lists(self.column(TEXT)), self.lists(self.column(LABEL))
        for number, (words, tags) in enumerate(zip(texts, labels, strict=True), start=1):
            if len(words) != len(tags):
                raise ValueError(
                    f"Expected a label a word in row {number} of {self.path}, got {len(tags)} for "
                    f"{len(words)} words."
                )
        return texts, labels

    def lists(self, column: str) -> tuple[tuple[str, ...], ...]:
        """One column of lists, each with at least one item, as text."""
        rows: list[tuple[str, ...]] = []
        for number, record in enumerate(self.records, start=1):
            value = record.get(column)
            if not isinstance(value, list) or not value:
                raise ValueError(
                    f"Expected a list of words or labels for {column} in row {number} of "
                    f"{self.path}, got {value!r}."
                )
            rows.append(tuple(str(item) for item in value))
        return tuple(rows)


def _records(path: Path) -> Iterator[Record]:
    """Yield the rows of a file as mappings from column to value."""
    readers: dict[str, Callable[[TextIO], Iterator[Record]]] = {
        ".tsv": _tsv,
        ".csv": _csv,
        ".jsonl": _jsonl,
        ".txt": _txt,
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f"Expected a {ENDINGS} file, got {path}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from readers[path.suffix.lower()](file)
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise ValueError(f"Expected a readable UTF-8 table in {path}: {error}.") from error


def _tsv(file: TextIO) -> Iterator[Record]:
    """A tab-separated table in which a quote is an ordinary character."""
    return csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _csv(file: TextIO) -> Iterator[Record]:
    """A comma-separated table; quoted fields may hold commas and new lines."""
    return csv.DictReader(file)


def _txt(file: TextIO) -> Iterator[Record]:
    """One text a line; blank lines are skipped."""
    return ({"text": line} for line in file if line.strip())


def _jsonl(file: TextIO) -> Iterator[Record]:
    """One JSON object a line; blank lines are skipped."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError(f"Expected a JSON object on line {number}, got {line.strip()!r}.")
            yield value
