"""Silos that add noise to their own steps: what an example can move, and what is drawn for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dpmech import Gaussian
from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum, clip_flat
from fl_integration.cohort import Cohort, Round, merged_sum
from fl_integration.config import FederatedConfig
from fl_integration.data import Client, FederatedData
from fl_integration.models import load_model
from fl_integration.options import SiloNoise
from fl_integration.sampler import Randomness
from fl_integration.silos import checked_sizes, silo_round

CLIP = 0.05
EVERY = SiloNoise(steps=1, rate=1.0, sizes=(8, 8, 8))


@pytest.fixture
def data(federated_data: FederatedData) -> FederatedData:
    """Three silos of 6, 5 and 7 texts."""
    texts = [t for c in federated_data.clients for t in c.texts]
    labels = np.concatenate([c.labels for c in federated_data.clients])
    cuts = ((0, 6), (6, 11), (11, 18))
    silos = [Client(name=f"silo-{a}", texts=tuple(texts[a:b]), labels=labels[a:b]) for a, b in cuts]
    return replace(federated_data, clients=tuple(silos))


@pytest.fixture
def make_cohort(make_space: Callable[..., Any], data: FederatedData) -> Callable[..., Cohort]:
    def make(*, secret: int | None = 3, clients: tuple[Client, ...] = (), **changes: Any) -> Cohort:
        config = FederatedConfig(
            unit="example", silos=EVERY, rank=2, clip=CLIP, cohort=3, **changes
        )
        held = replace(data, clients=clients) if clients else data
        return Cohort(
            space=make_space(2),
            tokens=Tokens(held, load_model("tiny", labels=3)[1]),
            config=config,
            randomness=Randomness(seed=0, secret_seed=secret),
        )

    return make


def _round(cohort: Cohort, *, index: int = 0, trained: Tensor | None = None) -> Round:
    start = cohort.space.flatten(2)
    start = start + 0.2 * torch.randn(start.shape, generator=torch.Generator().manual_seed(3))
    nobody = np.zeros(0, dtype=np.int64)
    return Round(index=index, rank=2, clients=nobody, start=start, trained=trained)


@dataclass(eq=False)
class Watched:
    """The merged executor, and what went through it."""

    sums: list[Tensor] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)
    drawn: list[list[int]] = field(default_factory=list)

    def __call__(self, cohort: Cohort, round: Round, total: ClippedSum) -> None:
        merged_sum(cohort, round, total)
        self.sums.append(total.value)
        self.starts.append(round.start)
        self.drawn.append(round.clients.tolist())


def _moved(cohort: Cohort, silos: SiloNoise = EVERY, **how: Any) -> tuple[Tensor, Watched]:
    watched = Watched()
    round = how.pop("round", None) or _round(cohort)
    mean = silo_round(cohort, round, silos, noise=how.pop("noise", None), executor=watched, **how)
    return mean, watched


def _example(cohort: Cohort, silo: int, row: int) -> Tensor:
    """The unclipped step of one example, computed without any of the code of silos."""
    ids = torch.tensor([cohort.tokens.client(silo)[row]])
    label = torch.as_tensor(cohort.tokens.data.clients[silo].labels[row : row + 1])
    round = _round(cohort)
    views = cohort.space.unflatten(round.start.clone(), 2)
    views = {name: view.clone().requires_grad_() for name, view in views.items()}
    with cohort.space.use_rank(2):
        logits = torch.func.functional_call(
            cohort.space.classifier, views, (ids, torch.ones_like(ids))
        )
    torch.nn.functional.cross_entropy(logits, label).backward()
    gradient = torch.cat([view.grad.reshape(-1) for view in views.values()])
    rates = torch.full_like(gradient, cohort.config.local_lr)
    rates[-99:] *= cohort.config.head_multiplier
    return -rates * gradient


def test_each_example_is_clipped_as_a_whole_and_the_size_is_the_public_one(
    make_cohort: Callable[..., Cohort],
) -> None:
    cohort = make_cohort()
    silos = SiloNoise(steps=1, rate=1.0, sizes=(10, 30, 20))  # not what they hold
    mean, watched = _moved(cohort, silos)
    wanted = torch.zeros_like(mean)
    for silo, (held, size) in enumerate(zip((6, 5, 7), silos.sizes, strict=True)):
        steps = [_example(cohort, silo, row) for row in range(held)]
        assert all(step.norm() > CLIP for step in steps)
        total = sum(clip_flat(step, CLIP) for step in steps)
        torch.testing.assert_close(watched.sums[silo], total, rtol=1e-4, atol=1e-7)
        assert total.norm() > CLIP  # a clip of the batch's mean could not give this
        wanted += size / 60 * total / size
    torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("attack", [1e9, float("nan"), float("inf")])
def test_an_adversarial_example_moves_its_silo_by_at_most_the_clip_and_no_other(
    make_cohort: Callable[..., Cohort], data: FederatedData, attack: float
) -> None:
    class Poisoned(Tokens):
        def client(self, index: int) -> list[list[int]]:
            ids = super().client(index)
            return [*ids[:6], *([499] * 20 for _ in ids[6:])] if index == 0 else ids

    first = data.clients[0]
    longer = replace(first, texts=(*first.texts, "red"), labels=np.append(first.labels, 0))
    sums: list[list[Tensor]] = []
    for silo in (first, longer):
        cohort = make_cohort(clients=(silo, *data.clients[1:]))
        cohort.space.classifier.encoder.get_input_embeddings().weight.data[499] = attack
        tokens = Poisoned(cohort.tokens.data, load_model("tiny", labels=3)[1])
        sums.append(_moved(replace(cohort, tokens=tokens))[1].sums)
    without, beside = sums
    assert (beside[0] - without[0]).norm().item() <= CLIP * (1 + 1e-6)
    assert torch.isfinite(beside[0]).all()
    assert torch.equal(beside[1], without[1])
    assert torch.equal(beside[2], without[2])


def test_what_leaves_a_silo_follows_the_law_of_the_noise(
    make_cohort: Callable[..., Cohort],
) -> None:
    cohort = make_cohort(secret=None, local_lr=1e-12)
    noise = Gaussian(sigma=0.7)
    one = replace(cohort.tokens.data, clients=cohort.tokens.data.clients[:1])
    alone = replace(cohort, tokens=Tokens(one, load_model("tiny", labels=3)[1]))
    silos = SiloNoise(steps=1, rate=0.5, sizes=(40,))
    rounds = [_moved(alone, silos, noise=noise)[0].numpy() for _ in range(8)]
    released = 0.5 * 40 * np.concatenate(rounds)
    assert stats.kstest(released, noise.cdf).pvalue > 1e-6
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(released, noise.scaled(wrong).cdf).pvalue < 1e-9
    # Three silos, four steps: every step of every silo has noise of its own, (Σn)² = 60² shares.
    silos = SiloNoise(steps=4, rate=0.5, sizes=(10, 30, 20))
    released = 0.5 * 60 * _moved(cohort, silos, noise=noise)[0].numpy()
    assert stats.kstest(released, noise.scaled(12**0.5).cdf).pvalue > 1e-6
    again = 0.5 * 60 * _moved(cohort, silos, noise=noise)[0].numpy()
    assert abs(np.corrcoef(released, again)[0, 1]) < 0.3  # not to be had from a logged seed


def test_seeded_noise_never_repeats_within_a_run(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(local_lr=1e-12)
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Spied(Gaussian):
        def sample(self, shape: Any, rng: np.random.Generator) -> Any:
            drawn = super().sample(shape, rng)
            seen.append(torch.from_numpy(drawn))
            return drawn

    silos = SiloNoise(steps=2, rate=0.5, sizes=(8, 8, 8))
    for index in range(3):
        _moved(cohort, silos, noise=Spied(sigma=1.0), round=_round(cohort, index=index))
    assert len(seen) == 3 * 3 * 2
    correlations = torch.corrcoef(torch.stack(seen)).fill_diagonal_(0.0)
    assert correlations.abs().max() < 0.25


def test_the_steps_of_a_silo_follow_its_own_weights(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort()
    silos = SiloNoise(steps=3, rate=0.6, sizes=(8, 8, 8))
    mean, watched = _moved(cohort, silos, noise=Gaussian(sigma=0.01))
    begin = _round(cohort).start
    assert all(torch.equal(watched.starts[3 * silo], begin) for silo in range(3))
    assert not torch.equal(watched.starts[1], begin)
    assert (watched.starts[2] - watched.starts[1]).norm() > 1e-4
    for silo in range(3):  # a sample of its own for each step
        assert len({tuple(rows) for rows in watched.drawn[3 * silo : 3 * silo + 3]}) > 1
    assert torch.isfinite(mean).all()


def test_the_sample_is_poisson(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(secret=None)
    drawn: list[list[int]] = []
    silos = SiloNoise(steps=400, rate=0.3, sizes=(8, 8, 8))
    silo_round(
        cohort,
        _round(cohort),
        silos,
        noise=None,
        executor=lambda _, round, __: drawn.append(round.clients.tolist()),
    )
    counts = np.bincount(np.concatenate(drawn[:400]).astype(int), minlength=6)
    assert len(counts) == 6
    assert all(len(set(rows)) == len(rows) for rows in drawn)
    assert abs(counts - 120).max() < 5 * (400 * 0.3 * 0.7) ** 0.5
    assert len({len(rows) for rows in drawn[:400]}) > 3  # the size of a sample is random too


def test_an_empty_silo_still_releases_noise(
    make_cohort: Callable[..., Cohort], data: FederatedData
) -> None:
    empty = Client(name="empty", texts=(), labels=np.zeros(0, dtype=np.int64))
    cohort = make_cohort(clients=(empty,))
    silos = SiloNoise(steps=1, rate=0.5, sizes=(10,))
    mean, watched = _moved(cohort, silos, noise=Gaussian(sigma=1.0))
    assert watched.drawn == [[]]
    assert mean.std().item() == pytest.approx(0.2, rel=0.1)


def test_only_what_a_round_trains_moves_and_has_noise(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort()
    begin = _round(cohort).start
    kept = torch.arange(len(begin)) % 3 == 0
    shapes: list[Any] = []

    @dataclass(frozen=True)
    class Spied(Gaussian):
        def sample(self, shape: Any, rng: np.random.Generator) -> Any:
            shapes.append(shape)
            return super().sample(shape, rng)

    mean, _ = _moved(cohort, noise=Spied(sigma=1.0), round=_round(cohort, trained=kept))
    assert not mean[~kept].any()
    assert (mean[kept] != 0).all()
    assert shapes == [(int(kept.sum()),)] * 3


def test_sizes_are_stated_and_never_counted(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort()
    for sizes in ((), (6, 5), (6, 5, 7, 8)):
        with pytest.raises(ValueError, match="public sizes of 3 silos"):
            _moved(cohort, SiloNoise(sizes=sizes))
    assert checked_sizes(EVERY, clients=3) == (8, 8, 8)
    unclipped = replace(cohort, config=replace(cohort.config, clip=None))
    with pytest.raises(ValueError, match="clip=None"):
        _moved(unclipped, noise=Gaussian(sigma=1.0))
