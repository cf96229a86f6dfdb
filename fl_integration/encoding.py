"""From texts and labels to token ids and targets.

Targets are int64: (n,) classes of whole texts, or (n, max_length) with one target a token and
`IGNORED` wherever there is none: special tokens, the rest of a word, the last token, padding.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fl_integration.rows import Task, Text

MAX_LENGTH = 32  # tokens
IGNORED = -100  # what torch's cross entropy leaves out
Ids = list[list[int]]
Integers = NDArray[np.int64]


class Tokenizer(Protocol):
    """What is needed of a tokenizer; the fast ones of transformers have it."""

    def __call__(self, text: Any, *, truncation: bool, max_length: int) -> Any:
        """Return `{"input_ids": one list of ids per text}`.

        With `is_split_into_words=True` a text is a list of words, and `word_ids(row)` of the result
        says which word each token is of.
        """
        ...


def encode(
    texts: Sequence[Text],
    labels: Integers,
    tokenizer: Tokenizer,
    *,
    task: Task = "sequence-classification",
    max_length: int = MAX_LENGTH,
) -> tuple[Ids, Integers]:
    """Turn texts and their labels into token ids and the targets of a task.

    Args:
        texts: n plain texts, or lists of words for token classification.
        labels: (n,) classes; or one a word, text after text; not read for next-token.

    Raises:
        ValueError: max_length < 2, a wrong number of labels, words where texts are needed or the
            other way round.
    """
    _check_texts(texts, task)
    if task != "next-token" and len(labels) != (wanted := int(label_starts(texts)[-1])):
        raise ValueError(f"Expected {wanted} labels for {task}, got {len(labels)}.")
    if task == "token-classification":
        return _tagged(texts, labels, tokenizer, max_length)
    ids = tokenise(cast(Sequence[str], texts), tokenizer, max_length=max_length)
    return ids, next_tokens(ids, width=max_length) if task == "next-token" else labels


def tokenise(texts: Sequence[str], tokenizer: Tokenizer, *, max_length: int = MAX_LENGTH) -> Ids:
    """Turn texts into token ids, cut at max_length tokens (special tokens included).

    Raises:
        ValueError: max_length < 2, which leaves no room beside the special tokens.
    """
    _check_length(max_length)
    if not texts:
        return []
    rows = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return [list(row) or [0] for row in rows]  # not every model reads a text without any token


def next_tokens(ids: Ids, *, width: int) -> Integers:
    """Return the targets (n, width) of next-token prediction: at each token the one after it.

    >>> next_tokens([[5, 6, 7], [8]], width=4).tolist()
    [[6, 7, -100, -100], [-100, -100, -100, -100]]
    """
    targets = np.full((len(ids), width), IGNORED, dtype=np.int64)
    for row, line in enumerate(ids):
        targets[row, : len(line) - 1] = line[1:]
    return targets


def label_starts(texts: Sequence[Text]) -> Integers:
    """Where the labels of each text start among those of all, (n + 1,): one a text or a word."""
    counts = [1 if isinstance(text, str) else len(text) for text in texts]
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _tagged(
    texts: Sequence[Text], labels: Integers, tokenizer: Any, max_length: int
) -> tuple[Ids, Integers]:
    """Token ids of texts in words; the first token of a word carries its label."""
    _check_length(max_length)
    targets = np.full((len(texts), max_length), IGNORED, dtype=np.int64)
    if not texts:
        return [], targets
    encoded = tokenizer(
        [list(text) for text in texts],
        truncation=True,
        max_length=max_length,
        is_split_into_words=True,
    )
    starts = label_starts(texts)
    for row in range(len(texts)):
        words = cast("list[int | None]", encoded.word_ids(row))
        before = [None, *words]
        for place, word in enumerate(words):
            if word is not None and word != before[place]:
                targets[row, place] = labels[starts[row] + word]
    return [list(line) or [0] for line in encoded["input_ids"]], targets


def _check_length(max_length: int) -> None:
    """Refuse a length without room beside the special tokens."""
    if max_length < 2:
        raise ValueError(f"Expected max_length={max_length} >= 2.")


def _check_texts(texts: Sequence[Text], task: Task) -> None:
    """Refuse words where texts are needed, and texts where words are needed."""
    words = task == "token-classification"
    wrong = next((text for text in texts if isinstance(text, str) is words), None)
    if wrong is not None:
        wanted = "lists of words" if words else "plain texts"
        raise ValueError(f"Expected {wanted} for {task}, got {wrong!r}.")
