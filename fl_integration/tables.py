"""Texts from the user's own files: .tsv, .csv, .jsonl, and SST-2 in the GLUE format."""

import csv
import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fl_integration.rows import Rows, held_out

TEXT = ("text", "sentence")
LABEL = ("label", "category")
CLIENT = ("client",)
SST2_LABELS = {"0": "negative", "1": "positive"}
SST2_HUB = "nyu-mll/glue"

Record = Mapping[str, Any]


def file_rows(path: Path) -> Rows:
    """Read a .tsv, .csv or .jsonl file with columns text (or sentence), label and maybe client.

    The test set is about 15 % of the clients, or of the distinct texts where there is no client
    column, chosen by a stable hash of the name or the text: the same rows every time.

    Args:
        path: UTF-8; .tsv without quoting (the GLUE format), .csv with it, .jsonl an object a line.

    Raises:
        ValueError: unknown ending, unreadable or empty file, missing column, broken line.
    """
    records = list(_records(path))
    if not records:
        raise ValueError(f"Expected at least one row in {path}.")
    text = _column(records[0], TEXT, path, required=True)
    label = _column(records[0], LABEL, path, required=True)
    client = _column(records[0], CLIENT, path, required=False)
    texts = _values(records, text, path)
    clients = _values(records, client, path) if client else ()
    return Rows(
        texts=texts,
        labels=_values(records, label, path),
        clients=clients,
        test=held_out(clients or texts),
    )


def sst2_rows(data_dir: Path | None) -> Rows:
    """Read SST-2 from `train.tsv` and `dev.tsv` in data_dir, or from the hub without one.

    Raises:
        ValueError: a file is missing, or the hub cannot be used.
    """
    splits = [_hub(s) for s in ("train", "validation")] if data_dir is None else _glue(data_dir)
    train, dev = splits
    texts, labels = zip(*(train + dev), strict=True)
    test = np.arange(len(texts)) >= len(train)
    return Rows(texts=texts, labels=tuple(SST2_LABELS[x] for x in labels), clients=(), test=test)


def _glue(folder: Path) -> list[list[tuple[str, str]]]:
    """Read the two files of the GLUE format."""
    splits: list[list[tuple[str, str]]] = []
    for path in (folder / "train.tsv", folder / "dev.tsv"):
        if not path.is_file():
            raise ValueError(f"Expected a file {path}; give the folder of SST-2 with --data-dir.")
        records = list(_records(path))
        if not records:
            raise ValueError(f"Expected at least one row in {path}.")
        text, label = (_column(records[0], names, path, required=True) for names in (TEXT, LABEL))
        labels = _values(records, label, path)
        if unknown := set(labels) - set(SST2_LABELS):
            raise ValueError(f"Expected labels 0 and 1 in {path}, got {min(unknown)!r}.")
        splits.append(list(zip(_values(records, text, path), labels, strict=True)))
    return splits


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


def _records(path: Path) -> Iterator[Record]:
    """Yield the rows of a file as mappings from column to value."""
    readers = {".tsv": _tsv, ".csv": _csv, ".jsonl": _jsonl}
    if path.suffix.lower() not in readers:
        raise ValueError(f"Expected a .tsv, .csv or .jsonl file, got {path}.")
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


def _jsonl(file: TextIO) -> Iterator[Record]:
    """One JSON object a line; blank lines are skipped."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError(f"Expected a JSON object on line {number}, got {line.strip()!r}.")
            yield value


def _column(record: Record, names: tuple[str, ...], path: Path, *, required: bool) -> str:
    """The first of the names that is a column; empty if there is none and none is needed."""
    found = next((name for name in names if name in record), "")
    if required and not found:
        columns = ", ".join(map(str, record))
        raise ValueError(f"Expected a column {' or '.join(names)} in {path}, got {columns}.")
    return found


def _values(records: list[Record], column: str, path: Path) -> tuple[str, ...]:
    """One column as stripped text; a row without a value is an error."""
    values: list[str] = []
    for number, record in enumerate(records, start=1):
        value = record.get(column)
        if value is None or not (text := str(value).strip()):
            raise ValueError(f"Expected a value for {column} in row {number} of {path}.")
        values.append(text)
    return tuple(values)
