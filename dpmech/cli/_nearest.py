"""What the user may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """How a refusal ends: with a question, or with all that is known where nothing is like it.

    >>> nearest("rouns", ["rounds", "rank"])
    "; did you mean 'rounds'?"
    >>> nearest("x", ["rounds", "rank"])
    ' (known: rank, rounds).'
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(names)})."
