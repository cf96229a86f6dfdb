"""Random models and a tokenizer that are small enough for tests, for every task, offline."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, LlamaConfig

from fl_integration.rows import Task

TINY_VOCABULARY = 512
PAD, FIRST, LAST, RESERVED = 0, 1, 2, 3  # ids of the tiny tokenizer
SIZES: dict[str, Any] = {
    "vocab_size": TINY_VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
}


def tiny_encoder(task: Task, *, seed: int) -> nn.Module:
    """A random BERT, or a random Llama for next-token, of 2 layers and width 32.

    The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if task == "next-token":
            llama = LlamaConfig(**SIZES, bos_token_id=FIRST, eos_token_id=LAST)
            made: Any = AutoModelForCausalLM.from_config(llama, attn_implementation="eager")
        else:
            made = AutoModel.from_config(BertConfig(**SIZES), attn_implementation="eager")
        return cast(nn.Module, made)


class HashEncoding(dict[str, list[list[int]]]):
    """`{"input_ids": ...}` that also knows which word each token is of."""

    def word_ids(self, row: int) -> list[int | None]:
        """The word of every token of a row; the marks are of none."""
        return [None, *range(len(self["input_ids"][row]) - 2), None]


class HashTokenizer:
    """The tokenizer of `tiny`: a word is a hash of its letters, the same on every machine."""

    pad_token_id = PAD

    def __call__(
        self,
        text: Sequence[str] | Sequence[Sequence[str]],
        *,
        truncation: bool = True,
        max_length: int = 32,
        is_split_into_words: bool = False,
    ) -> HashEncoding:
        """Return `{"input_ids": ...}`: first mark, words, last mark."""
        room = max_length - 2 if truncation else None
        lines: Iterable[Sequence[str]] = (
            cast(str, line).split() if not is_split_into_words else line for line in text
        )
        return HashEncoding(
            input_ids=[[FIRST, *map(_word_id, islice(line, room)), LAST] for line in lines]
        )


def _word_id(word: str) -> int:
    """Hash a word, whatever its case, into the vocabulary of `tiny`."""
    digest = int.from_bytes(blake2b(word.lower().encode(), digest_size=4).digest(), "big")
    return RESERVED + digest % (TINY_VOCABULARY - RESERVED)
