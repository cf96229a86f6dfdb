"""A head's losses may be batched: features are a record's own, and the rounding has a bound."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dpmech import Gaussian
from fl_integration.client import Tokens
from fl_integration.data import Client, FederatedData
from fl_integration.models import Classifier, load_model
from fl_integration.zeroth_order import ZerothOrderConfig, direction, train_zeroth_order
from fl_integration.zo_head import (
    BIAS,
    Features,
    HeadLosses,
    HeadOptions,
    LinearHead,
    PublicMap,
    cross_entropies,
    public_head,
)
from fl_integration.zo_quotients import Probe, clipped_differences

LABELS = ("card arrival", "lost_pin", "exchange rate")
TEXTS = (("my card has not come", "where is it"), ("i lost the pin",), ("how much is a pound", "a"))


def federation(extra: tuple[tuple[str, ...], ...] = ()) -> FederatedData:
    clients = tuple(
        Client(name=f"c{i}", texts=texts, labels=np.full(len(texts), i % 3, dtype=np.int64))
        for i, texts in enumerate((*TEXTS, *extra))
    )
    return FederatedData(
        name="three",
        labels=LABELS,
        clients=clients,
        test_texts=("the card", "the pin"),
        test_labels=np.array([0, 1]),
    )


@pytest.fixture(scope="module")
def tiny() -> tuple[Classifier, Tokens]:
    model, tokenizer = load_model("tiny", labels=3)
    return model, Tokens(federation(), tokenizer)


def features_of(tiny: tuple[Classifier, Tokens], **options: object) -> tuple[Features, Tensor]:
    model, tokens = tiny
    tokenizer = load_model("tiny", labels=3)[1]
    shape, start = public_head(model, tokenizer, LABELS, HeadOptions(**options))
    return Features(model, tokens, shape, max_texts=2), start


class Given:
    """Features that are simply there, a text a record."""

    max_texts = 1

    def __init__(self, x: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
        self.x, self.labels = x.astype(np.float32), labels
        self.shape = PublicMap(centre=np.zeros(x.shape[1] - 1), basis=None)

    def __call__(self, record: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self.x[record : record + 1], self.labels[record : record + 1]


def given(records: int, k: int, classes: int, *, seed: int = 0) -> Given:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(records, k - 1))
    x = np.column_stack([x / np.linalg.norm(x, axis=1, keepdims=True), np.full(records, BIAS)])
    return Given(x, rng.integers(0, classes, records))


def exact(x: NDArray[np.float32], W: NDArray[np.float64], label: int) -> mp.mpf:
    with mp.workdps(50):
        columns = [
            mp.fsum(mp.mpf(float(a)) * mp.mpf(float(b)) for a, b in zip(x, w, strict=True))
            for w in W.T
        ]
        return mp.log(mp.fsum(map(mp.exp, columns))) - columns[label]


@pytest.mark.parametrize("size", [0.0, 1.0, 1e3, 1e6])
@pytest.mark.parametrize(("k", "classes"), [(385, 2), (40, 77)])
def test_the_error_of_a_loss_is_within_the_bound(size: float, k: int, classes: int) -> None:
    features = given(12, k, classes)
    losses = HeadLosses(features=features, classes=classes)
    W = size * np.random.default_rng(1).normal(size=(k, classes))
    W[:, 0] = size * np.repeat([1.0, -1.0], [k // 2, k - k // 2])  # large terms that cancel
    theta = torch.from_numpy(W.reshape(-1).copy())
    bound = losses.error(theta)
    found = losses(theta, np.arange(12)).numpy()
    wrong = [
        abs(mp.mpf(float(loss)) - exact(features.x[i], W, int(features.labels[i])))
        for i, loss in enumerate(found)
    ]
    assert max(wrong) <= bound
    gamma = k * 2.0**-53 * np.linalg.norm(W, axis=0).max()
    assert 2 * gamma <= bound <= 3 * gamma + 1e-13 * (1 + 10 * size)


def test_a_losss_bits_may_depend_on_company_but_no_sum_moves_by_more_than_the_clip() -> None:
    features = given(3_000, 385, 2)
    features.x[0] *= 1e6  # an encoder gone wild; the map would not let it pass
    losses = HeadLosses(features=features, classes=2)
    config = ZerothOrderConfig(rate=0.5, steps=1, clip=0.02, lr=0.1, batch=4_096)
    theta = torch.from_numpy(np.random.default_rng(2).normal(size=770))
    probe = Probe.at(theta, direction(config, 0, dim=770), config.rho)
    limit = probe.limit(losses, config, records=3_000)
    assert 0.9 * config.clip < limit < config.clip * (1 - 1e-9)
    rows = np.arange(3_000)
    with_it = clipped_differences(losses, probe, rows, config, limit=limit)
    without = clipped_differences(losses, probe, rows[1:], config, limit=limit)
    moved = sum(map(Fraction, with_it.tolist())) - sum(map(Fraction, without.tolist()))
    assert 0 < abs(moved) <= Fraction(config.clip)
    error = (losses.error(probe.ahead) + losses.error(probe.behind)) / config.rho
    assert limit == pytest.approx(config.clip - 3_000 * error, rel=1e-6)


def test_a_short_probe_with_many_records_is_refused() -> None:
    losses = HeadLosses(features=given(10, 40, 2), classes=2)
    config = ZerothOrderConfig(rate=0.5, steps=1, clip=0.1, lr=0.1, batch=64, rho=1e-9)
    with pytest.raises(ValueError, match="raise rho or the clip, or set batch=1"):
        train_zeroth_order(losses, torch.zeros(80), 60_000, config, Gaussian(sigma=1.0), delta=1e-5)


def test_a_record_is_encoded_alone(tiny: tuple[Classifier, Tokens]) -> None:
    model, tokens = tiny
    features, _ = features_of(tiny)
    sizes, pool = list[int](), model.pool

    def watched(ids: Tensor, mask: Tensor) -> Tensor:
        sizes.append(len(ids))
        return pool(ids, mask)

    model.pool = watched  # type: ignore[method-assign]
    try:
        losses = HeadLosses(features=features, classes=3)
        losses(torch.zeros(features.shape.dim * 3, dtype=torch.float64), np.arange(3))
        losses(torch.zeros(features.shape.dim * 3, dtype=torch.float64), np.arange(3))
    finally:
        model.pool = pool  # type: ignore[method-assign]
    assert sizes == [2, 1, 2]  # each record once, its own texts and nobody else's
    wider = Features(
        model,
        Tokens(
            federation((("a much longer text of somebody else, who comes first",),)),
            load_model("tiny", labels=3)[1],
        ),
        features.shape,
        max_texts=2,
    )
    wider(3)
    for record in range(3):
        assert np.array_equal(wider(record)[0], features(record)[0])
    assert len(tokens.client(0)) == 2


def test_a_records_loss_is_the_mean_over_its_texts(tiny: tuple[Classifier, Tokens]) -> None:
    features, _ = features_of(tiny)
    losses = HeadLosses(features=features, classes=3)
    W = np.random.default_rng(0).normal(size=(features.shape.dim, 3))
    found = losses(torch.from_numpy(W.reshape(-1)), np.arange(3))
    for record in range(3):
        x, labels = features(record)
        logits = torch.from_numpy(x.astype(np.float64) @ W)
        wanted = functional.cross_entropy(logits, torch.from_numpy(labels))
        assert float(found[record]) == pytest.approx(float(wanted), rel=1e-12)
    only_first = Features(tiny[0], tiny[1], features.shape, max_texts=1)
    assert [len(only_first(i)[1]) for i in range(3)] == [1, 1, 1]


def test_a_record_without_texts_has_no_loss(tiny: tuple[Classifier, Tokens]) -> None:
    features, _ = features_of(tiny)
    tokens = Tokens(federation(((),)), load_model("tiny", labels=3)[1])
    with_none = Features(tiny[0], tokens, features.shape, max_texts=2)
    losses = HeadLosses(features=with_none, classes=3)
    theta = torch.ones(features.shape.dim * 3, dtype=torch.float64)
    assert float(losses(theta, np.array([0, 3, 1]))[1]) == 0.0
    assert float(losses(theta, np.array([3]))[0]) == 0.0


@pytest.mark.parametrize("wild", [math.nan, math.inf, 1e300, 0.0])
@pytest.mark.parametrize("basis", [None, np.eye(5)[:, :2]])
def test_no_output_makes_a_long_feature(wild: float, basis: NDArray[np.float64] | None) -> None:
    shape = PublicMap(centre=np.zeros(5), basis=basis)
    for pooled in (np.full(5, wild), np.array([wild, -wild, 1.0, 0.0, 2.0])):
        feature = shape(pooled)
        assert feature.shape == (shape.dim,)
        assert np.linalg.norm(feature.astype(np.float64)) <= 1.01
        assert feature[-1] == np.float32(BIAS)


def test_the_head_starts_at_zero_or_at_the_descriptions(tiny: tuple[Classifier, Tokens]) -> None:
    model, _ = tiny
    tokenizer = load_model("tiny", labels=3)[1]
    shape, start = public_head(model, tokenizer, LABELS, HeadOptions())
    assert start.shape == (shape.dim * 3,)
    assert start.dtype == torch.float64
    assert not start.any()
    shape, start = public_head(model, tokenizer, LABELS, HeadOptions(start_scale=8.0, dim=2))
    assert shape.dim == 3
    head = LinearHead(shape=shape, matrix=start.numpy().reshape(3, 3), labels=LABELS)
    names = [name.replace("_", " ") for name in LABELS]
    ids = [tokenizer([name], truncation=True, max_length=32)["input_ids"][0] for name in names]
    assert head.predict(model, ids).tolist() == [0, 1, 2]


def test_what_no_head_can_be_made_from_is_refused(tiny: tuple[Classifier, Tokens]) -> None:
    model, tokenizer = tiny[0], load_model("tiny", labels=3)[1]
    with pytest.raises(ValueError, match="dim=3 to be 2 at most, with 3 descriptions"):
        public_head(model, tokenizer, LABELS, HeadOptions(dim=3))
    with pytest.raises(ValueError, match="got none of \\['lost_pin', 'exchange rate'\\]"):
        HeadOptions(descriptions={"card arrival": ["post"], "lost_pin": []}).texts(LABELS)
    with pytest.raises(ValueError, match="dim=0"):
        HeadOptions(dim=0)
    with pytest.raises(ValueError, match="start_scale=-1"):
        HeadOptions(start_scale=-1.0)
    features, _ = features_of(tiny)
    with pytest.raises(ValueError, match="max_texts=0"):
        Features(model, tiny[1], features.shape, max_texts=0)


def test_a_head_is_saved_and_read(tiny: tuple[Classifier, Tokens], tmp_path: Path) -> None:
    for options in ({}, {"dim": 2}):
        features, _ = features_of(tiny, **options)
        matrix = np.random.default_rng(0).normal(size=(features.shape.dim, 3))
        head = LinearHead(shape=features.shape, matrix=matrix, labels=LABELS)
        head.save(tmp_path / "head.safetensors")
        read = LinearHead.load(tmp_path / "head.safetensors")
        assert read.labels == LABELS
        x = features.test()
        assert np.array_equal(read.logits(x), head.logits(x))
        ids = tiny[1].test()
        assert np.array_equal(read.predict(tiny[0], ids), head.logits(x).argmax(axis=1))


def test_cross_entropies_of_large_logits_are_finite() -> None:
    found = cross_entropies(np.array([[1e4, -1e4], [0.0, 0.0]]), np.array([1, 0]))
    assert found == pytest.approx([2e4, math.log(2)])
