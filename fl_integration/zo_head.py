"""A linear head on the features of a frozen encoder, as losses that a zeroth-order run may batch.

The features of a record are computed from its texts alone and kept, so they do not depend on who
else takes part. What is left is a product in fp64 and a log-sum-exp, whose rounding has a bound.

Symbols: x feature of a text (k,), W head (k, K) and w its columns, K classes, M bound on a logit,
m texts of a record, u unit roundoff of fp64, e bound on the error of a loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from dpmech.files import write_atomically
from dpmech.noise import Floats
from fl_integration.batches import length_sorted_batches, pad
from fl_integration.client import Tokens
from fl_integration.encoding import Tokenizer, tokenise
from fl_integration.tasks import Classifier

BIAS = 0.1  # last coordinate of a feature: the head's bias is its weight there
_LONGEST = 1.01  # of a feature, sqrt(1 + BIAS²) and the rounding to fp32
_UNIT = 2.0**-53
Halves = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """How features are made from an encoder's output, and where the head starts; all of it public.

    Arguments:
        descriptions: what each class is about, in a few public texts; its name by default, with
            spaces for underscores. Their mean is taken off every feature.
        dim: keep so many principal directions of the descriptions (at most one less than there
            are); ``None`` keeps all coordinates. The error of a zeroth-order step grows with it.
        start_scale: the head starts at this times the mean feature of each class's descriptions;
            0 starts it at zero.

    Raises:
        ValueError: on a value outside its range.
    """

    descriptions: Mapping[str, Sequence[str]] | None = None
    dim: int | None = None
    start_scale: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no head could be made from."""
        if self.dim is not None and self.dim < 1:
            raise ValueError(f"Expected dim={self.dim} to be 1 or above, or None.")
        if not (math.isfinite(self.start_scale) and self.start_scale >= 0):
            raise ValueError(f"Expected start_scale={self.start_scale} to be finite, 0 or above.")

    def texts(self, labels: Sequence[str]) -> list[list[str]]:
        """The descriptions of every class, in the order of the labels."""
        if self.descriptions is None:
            return [[label.replace("_", " ")] for label in labels]
        missing = [label for label in labels if not self.descriptions.get(label)]
        if missing:
            raise ValueError(f"Expected a description of every class, got none of {missing}.")
        return [list(self.descriptions[label]) for label in labels]


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicMap:
    """From an encoder's output to a feature: centre, rotate, normalise, append the bias.

    centre: (w,). basis: (w, k−1), or ``None`` for all coordinates. Both are public.
    """

    centre: Floats
    basis: Floats | None

    @property
    def dim(self) -> int:
        """k, the bias counted."""
        return 1 + (len(self.centre) if self.basis is None else self.basis.shape[1])

    def __call__(self, pooled: Floats) -> Halves:
        """The feature (k,) of one output (w,), of norm 1.01 at most; nothing finite: only the bias.

        One at a time: a product over many rows might round each by its company.
        """
        with np.errstate(all="ignore"):  # an encoder may overflow on a text: caught below
            moved = pooled - self.centre
            moved = moved if self.basis is None else moved @ self.basis
            length = float(np.sqrt(np.sum(moved * moved)))
        usable = math.isfinite(length) and length > 0
        direction = moved / length if usable else np.zeros_like(moved)
        return np.append(direction, BIAS).astype(np.float32)


def public_head(
    classifier: Classifier, tokenizer: Tokenizer, labels: Sequence[str], options: HeadOptions
) -> tuple[PublicMap, Tensor]:
    """The map of an encoder's outputs, and θ at the start, (k·K,) fp64; no private text is read.

    Raises:
        ValueError: more directions than the descriptions span, or a class without a description.
    """
    groups = options.texts(labels)
    pooled = [encode_public(classifier, tokenise(group, tokenizer)) for group in groups]
    every = np.concatenate(pooled)
    most = min(len(every) - 1, every.shape[1])
    if options.dim is not None and options.dim > most:
        raise ValueError(
            f"Expected dim={options.dim} to be {most} at most, with {len(every)} descriptions."
        )
    centre, basis = every.mean(axis=0), None
    if options.dim is not None:
        basis = np.linalg.svd(every - centre, full_matrices=False)[2][: options.dim].T.copy()
    shape = PublicMap(centre=centre, basis=basis)
    means = np.stack([np.mean([shape(row) for row in group], axis=0) for group in pooled])
    means[:, -1] = 0.0  # no class is preferred
    return shape, torch.from_numpy(options.start_scale * means.astype(np.float64).T).reshape(-1)


class RecordFeatures(Protocol):
    """What `HeadLosses` needs of the records: their features and labels, by number."""

    shape: PublicMap
    max_texts: int

    def __call__(self, record: int) -> tuple[Halves, NDArray[np.int64]]:
        """The features (m, k) and the labels (m,) of one record, m <= max_texts."""
        ...


class Features:
    """The features and labels of each record, made when it is first drawn, and kept.

    **Guarantees**

    * A record's features are computed from its own texts, in a batch of their own: they are the
      same whoever else is in the data.

    Arguments:
        classifier: its encoder is frozen. tokens: the records are its clients. shape: the map.
        max_texts: the first so many texts of a record are used, the others never.
    """

    def __init__(
        self, classifier: Classifier, tokens: Tokens, shape: PublicMap, *, max_texts: int
    ) -> None:
        if max_texts < 1:
            raise ValueError(f"Expected max_texts={max_texts} to be 1 or above.")
        self._classifier, self._tokens, self.shape = classifier, tokens, shape
        self.max_texts = max_texts
        self._kept: dict[int, tuple[Halves, NDArray[np.int64]]] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self._tokens.data.labels

    def __call__(self, record: int) -> tuple[Halves, NDArray[np.int64]]:
        """The features (m, k) and the labels (m,) of one record."""
        if record not in self._kept:
            ids = self._tokens.client(record)[: self.max_texts]
            labels = self._tokens.targets(record)[: self.max_texts]
            pooled = encode_record(self._classifier, ids)
            self._kept[record] = (self._mapped(pooled), np.asarray(labels, dtype=np.int64))
        return self._kept[record]

    def test(self) -> Halves:
        """The features of the public test texts, (n, k)."""
        return self._mapped(encode_public(self._classifier, self._tokens.test()))

    def _mapped(self, pooled: Floats) -> Halves:
        return np.array([self.shape(row) for row in pooled]).reshape(-1, self.shape.dim)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadLosses:
    """The mean cross-entropy of each record's texts under a linear head, with its error bound.

    ``features`` gives a record's features and labels; θ is W (k, K), row by row. A record without
    a text has loss 0.

    **Guarantees**: `error` bounds the rounding of every loss, whatever the batch: a dot product of
    k terms in any order, with or without fused products, is off by γ_k·‖w‖‖x‖ at most (Higham
    2002, §3.1), and exp and log are taken to be exact to 4u, relatively.
    """

    features: RecordFeatures
    classes: int

    def __call__(self, theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """The loss of each record, (n,)."""
        parts = [self.features(row) for row in rows.tolist()]
        x = np.concatenate([part[0] for part in parts]).astype(np.float64)
        labels = np.concatenate([part[1] for part in parts])
        losses = cross_entropies(x @ self._matrix(theta), labels)
        sizes = np.asarray([len(part[1]) for part in parts])
        if len(losses) == len(parts) and sizes.min(initial=1) == 1:
            return torch.from_numpy(losses)
        owner = np.repeat(np.arange(len(parts)), sizes)
        total = np.bincount(owner, weights=losses, minlength=len(parts))
        return torch.from_numpy(total / np.maximum(sizes, 1))

    def error(self, theta: Tensor) -> float:
        """e: how far any record's loss at θ can be from the exact one, in whatever company."""
        W, m = self._matrix(theta), self.features.max_texts
        k, K = W.shape
        M = _LONGEST**2 * float(np.sqrt(np.square(W).sum(axis=0).max()))  # and its own rounding
        logit = k * _UNIT / (1 - k * _UNIT) * M
        one = 2 * logit + 1.01 * _UNIT * (5 * M + K + 6 * math.log(K) + 5)
        return one + 1.01 * (m + 1) * _UNIT * (2 * M + math.log(K) + one)

    def _matrix(self, theta: Tensor) -> Floats:
        return theta.numpy().reshape(self.features.shape.dim, self.classes)


def cross_entropies(logits: Floats, labels: NDArray[np.int64]) -> Floats:
    """ln Σ_k e^{l_k} − l_y of each row of logits (n, K)."""
    peak = logits.max(axis=1)
    total = np.exp(logits - peak[:, None]).sum(axis=1)
    return peak + np.log(total) - logits[np.arange(len(labels)), labels]


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """A trained head with all that is needed to use it beside the encoder it was trained on."""

    shape: PublicMap
    matrix: Floats
    labels: tuple[str, ...]

    def logits(self, features: Halves) -> Floats:
        """The logits (n, K) of features (n, k)."""
        return features.astype(np.float64) @ self.matrix

    def predict(self, classifier: Classifier, ids: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """The most likely class (n,) of token ids, under the encoder of a classifier."""
        pooled = encode_public(classifier, ids)
        features = np.array([self.shape(row) for row in pooled]).reshape(-1, self.shape.dim)
        return self.logits(features).argmax(axis=1)

    def save(self, path: str | Path) -> None:
        """Write everything to one .safetensors file."""
        tensors = {"matrix": self.matrix, "centre": self.shape.centre}
        if self.shape.basis is not None:
            tensors["basis"] = self.shape.basis
        state = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in tensors.items()}
        names = {str(i): label for i, label in enumerate(self.labels)}
        write_atomically(Path(path), save(state, metadata=names))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The head that `save` wrote."""
        with cast(Any, safe_open(str(path), framework="numpy")) as file:
            names: dict[str, str] = file.metadata()
            state = {name: file.get_tensor(name) for name in list(file.keys())}
        shape = PublicMap(centre=state["centre"], basis=state.get("basis"))
        labels = tuple(names[str(i)] for i in range(len(names)))
        return cls(shape=shape, matrix=state["matrix"], labels=labels)


def encode_record(classifier: Classifier, ids: Sequence[Sequence[int]]) -> Floats:
    """The pooled outputs (m, w) of one record's texts, in one batch that nobody else is in."""
    if not ids:
        return np.zeros((0, _width(classifier)))
    with torch.inference_mode():
        tokens, mask = pad(ids, pad_id=classifier.pad_id)
        return (
            classifier.pool(tokens.to(classifier.device), mask.to(classifier.device))
            .double()
            .cpu()
            .numpy()
        )


def encode_public(classifier: Classifier, ids: Sequence[Sequence[int]]) -> Floats:
    """The pooled outputs (n, w) of public texts, in batches of similar length."""
    found = np.empty((len(ids), _width(classifier)))
    for batch in length_sorted_batches(ids, batch_tokens=4096, pad_id=classifier.pad_id):
        found[batch.rows] = encode_record(classifier, [ids[row] for row in batch.rows])
    return found


def _width(classifier: Classifier) -> int:
    """w, the width of the encoder's output."""
    return int(cast(Any, classifier.encoder).config.hidden_size)
