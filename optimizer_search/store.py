"""Search results on disk: one ``.npz`` with the law, its problem, and all that was said of it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpmech import noise_from_dict
from dpmech.files import write_atomically
from optimizer_search.certify import proved
from optimizer_search.problem import Baseline, Bound, SearchProblem, SearchResult

_FORMAT = 2
_NUMBERS = ("family", "cost", "claimed_epsilon", "epsilon", "lower_epsilon", "seconds", "status")
_MEASURED = ("cost", "epsilon", "lower_epsilon", "seconds")
# What a file says may differ by this much, relatively, from what is proved of its law.
_AGREE = 1e-4


def save_result(result: SearchResult, path: str | Path) -> Path:
    """Write a result; anything that takes a noise reads its law back as ``file:PATH``.

    Returns the path written (``.npz`` is appended where it is missing).
    """
    target = Path(path) if Path(path).suffix == ".npz" else Path(f"{path}.npz")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        format=_FORMAT,
        law=json.dumps(result.law.to_dict()),
        problem=json.dumps(result.problem.to_dict()),
        numbers=json.dumps({name: getattr(result, name) for name in _NUMBERS}),
        bound=json.dumps(None if result.bound is None else asdict(result.bound)),
        baselines=json.dumps([_described(row) for row in result.baselines]),
        **_tables(result),
    )
    write_atomically(target, buffer.getvalue())
    return target


def load_result(path: str | Path) -> SearchResult:
    """Read a result back and prove its law again.

    **Guarantees.** The epsilons and the cost of what is returned were computed now, not read; a
    file whose law does not keep what the file says (more than a part in 10 000 apart) is refused
    with a ValueError. The lower bound and the baselines are as written.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            result = _read(stored)
    except FileNotFoundError:
        raise ValueError(f"No such file: {str(path)!r}.") from None
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{str(path)!r} is not a search result: {error}.") from None
    proof = reproved(result)
    if not np.isclose(proof.epsilon, result.epsilon, rtol=_AGREE) or not np.isclose(
        proof.cost, result.cost, rtol=_AGREE
    ):
        raise ValueError(
            f"{str(path)!r} claims epsilon={result.epsilon:.6g} and cost={result.cost:.6g}, but "
            f"its law has {proof.epsilon:.6g} and {proof.cost:.6g}. Do not use it; search again."
        )
    return proof


def reproved(result: SearchResult) -> SearchResult:
    """The result with epsilon and cost derived afresh from its law, trusting nothing it says."""
    found = proved(result.problem, result.law)
    return replace(
        result, epsilon=found.epsilon, lower_epsilon=found.lower_epsilon, cost=found.cost
    )


def _tables(result: SearchResult) -> dict[str, Any]:
    return {f"table_{name}": values for name, values in result.tables.items()}


def _described(row: Baseline) -> dict[str, Any]:
    return {**vars(row), "law": row.law.to_dict()}


def _baseline(row: dict[str, Any]) -> Baseline:
    parts: dict[str, Any] = {**row, "law": noise_from_dict(row["law"])}
    return Baseline(**parts)


def _read(stored: Mapping[str, Any]) -> SearchResult:
    if int(stored["format"]) != _FORMAT:
        raise ValueError(f"its format is {int(stored['format'])}, expected {_FORMAT}")
    bound = json.loads(str(stored["bound"]))
    rows: list[dict[str, Any]] = json.loads(str(stored["baselines"]))
    return SearchResult(
        problem=SearchProblem.from_dict(json.loads(str(stored["problem"]))),
        law=noise_from_dict(json.loads(str(stored["law"]))),
        bound=None if bound is None else Bound(**bound),
        baselines=tuple(_baseline(row) for row in rows),
        tables={
            name.removeprefix("table_"): stored[name]
            for name in stored
            if name.startswith("table_")
        },
        **_numbers(json.loads(str(stored["numbers"]))),
    )


def _numbers(said: dict[str, Any]) -> dict[str, Any]:
    """What the file says, with numbers where there must be some."""
    return {**said, **{name: float(said[name]) for name in _MEASURED}}
