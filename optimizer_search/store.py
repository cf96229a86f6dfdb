"""Search results on disk: one ``.npz`` with the law, its problem, and the whole grid."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np

from dpmech import noise_from_dict
from dpmech.files import write_atomically
from optimizer_search.lmo import reproved
from optimizer_search.problem import SearchProblem, SearchResult

_FORMAT = 1
_NUMBERS = ("cost", "claimed_epsilon", "epsilon", "lower_epsilon", "seconds")


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
        status=result.status,
        epsilons=result.epsilons,
        costs=result.costs,
    )
    write_atomically(target, buffer.getvalue())
    return target


def load_result(path: str | Path) -> SearchResult:
    """Read a result back and prove its law again.

    **Guarantees.** The epsilons of what is returned were proved now, not read; a file whose law
    does not keep what the file says (more than 0.1 % apart) is refused with a ValueError.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            if int(stored["format"]) != _FORMAT:
                raise ValueError(f"its format is {int(stored['format'])}, expected {_FORMAT}")
            result = SearchResult(
                problem=SearchProblem.from_dict(json.loads(str(stored["problem"]))),
                law=noise_from_dict(json.loads(str(stored["law"]))),
                epsilons=stored["epsilons"],
                costs=stored["costs"],
                status=str(stored["status"]),
                **json.loads(str(stored["numbers"])),
            )
    except FileNotFoundError:
        raise ValueError(f"No such file: {str(path)!r}.") from None
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{str(path)!r} is not a search result: {error}.") from None
    proof = reproved(result)
    if not np.isclose(proof.epsilon, result.epsilon, rtol=1e-3) or not np.isclose(
        proof.cost, result.cost, rtol=1e-3
    ):
        raise ValueError(
            f"{str(path)!r} claims epsilon={result.epsilon:.6g} and cost={result.cost:.6g}, but "
            f"its law has {proof.epsilon:.6g} and {proof.cost:.6g}. Do not use it; search again."
        )
    return proof
