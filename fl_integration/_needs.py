"""Asks for the libraries of the extra before anything imports one, so that the answer is short."""

from importlib.util import find_spec

NEEDED = ("torch", "transformers", "peft", "safetensors", "filelock")


def _found(name: str) -> bool:
    """Whether a library can be imported, without paying for its import."""
    try:
        return find_spec(name) is not None
    except ImportError:
        return False


def missing() -> tuple[str, ...]:
    """The libraries of the extra that are not installed."""
    return tuple(name for name in NEEDED if not _found(name))


if missing():
    raise ImportError(
        f"Federated training needs {', '.join(missing())}; run: pip install 'dpmech[train]'.",
        name=missing()[0],
    )
