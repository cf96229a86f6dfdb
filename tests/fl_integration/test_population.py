"""Clients that exist when they are drawn: what a run touches, counts and keeps."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from fl_integration.client import Tokens, local_work
from fl_integration.data import Client, FederatedData, LazyClients, as_examples
from fl_integration.encoding import Integers, label_starts
from fl_integration.rows import Task, Text
from fl_integration.tiny import HashTokenizer

NONE = np.zeros(0, dtype=np.int64)


class Maker:
    """Makes client i, and remembers which were asked for."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, index: int) -> Client:
        self.made.append(index)
        texts = tuple(f"user {index} text {j}" for j in range(1 + index % 4))
        return Client(name=f"u{index}", texts=texts, labels=np.arange(len(texts)) % 2)


def federation(clients: LazyClients | tuple[Client, ...], **known: object) -> FederatedData:
    data = FederatedData(
        name="many",
        labels=("no", "yes"),
        clients=clients,
        test_texts=("p", "q", "r", "s"),
        test_labels=np.array([0, 0, 0, 1]),
    )
    return replace(data, **known)


def words(task: Task) -> FederatedData:
    """Three clients with 2, 0 and 3 texts."""
    texts: list[tuple[Text, ...]] = [("a b", "c"), (), ("d", "e f g", "h i")]
    if task == "token-classification":
        texts = [tuple(tuple(str(text).split()) for text in held) for held in texts]

    def labels(held: tuple[Text, ...]) -> Integers:
        return NONE if task == "next-token" else np.arange(label_starts(held)[-1]) + len(held)

    clients = tuple(
        Client(name=f"c{i}", texts=held, labels=labels(held)) for i, held in enumerate(texts)
    )
    names = () if task == "next-token" else tuple("abcdefghijkl")
    return FederatedData(
        name="w", task=task, labels=names, clients=clients, test_texts=(), test_labels=NONE
    )


# lazy clients


def test_lazy_clients_are_a_sequence() -> None:
    maker = Maker()
    clients = LazyClients(10, maker)
    assert len(clients) == 10
    assert maker.made == []
    assert [clients[3].name, clients[-1].name] == ["u3", "u9"]
    assert [c.name for c in clients[2:8:3]] == ["u2", "u5"]
    assert [c.name for c in clients[::-1][:2]] == ["u9", "u8"]
    assert len(list(clients)) == 10
    for wrong in (10, -11):
        with pytest.raises(IndexError):
            clients[wrong]
    with pytest.raises(ValueError, match="size=-1 >= 0"):
        LazyClients(-1, maker)


def test_a_million_clients_cost_what_is_drawn() -> None:
    peaks: list[int] = []
    for population in (10**3, 10**6):
        maker = Maker()
        members = np.random.default_rng(0).choice(population, size=20, replace=False).tolist()
        tracemalloc.start()
        data = federation(LazyClients(population, maker))
        tokens = Tokens(data, HashTokenizer())
        assert data.examples is None  # a million clients are not asked for a number
        assert data.majority_share == 0.75
        for _ in range(2):
            for index in members:
                work = local_work(tokens, index, limit=2, rng=np.random.default_rng(0))
                assert 1 <= len(work.ids) <= 2
        assert len(tokens.test()) == 4
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert maker.made == members  # once each, and no other
    assert peaks[1] < 1.2 * peaks[0] + 10_000


def test_the_majority_is_that_of_the_public_test_set() -> None:
    clients = (
        Client(name="a", texts=("x", "y"), labels=np.array([1, 1])),
        Client(name="b", texts=("z",), labels=np.array([0])),
    )
    held = federation(clients)
    assert held.majority_share == 0.75
    assert held.majority_share == federation(clients[1:]).majority_share  # whoever trains
    assert held.examples == 3
    assert words("next-token").majority_share is None


def test_a_group_a_test_text_or_none() -> None:
    assert federation((), test_groups=("a",) * 4).test_groups == ("a",) * 4
    with pytest.raises(ValueError, match="a group a test text or none, got 1 for 4"):
        federation((), test_groups=("a",))


# tokens


def test_only_the_last_clients_are_kept() -> None:
    maker = Maker()
    tokens = Tokens(federation(LazyClients(100, maker)), HashTokenizer(), keep=6)
    for index in (3, 2, 3, 1, 3, 0):  # of 4, 3, 2 and 1 texts
        tokens.client(index)
    assert maker.made == [3, 2, 3, 1, 0]  # 3 and 2 together are 7: 2 makes 3 forgotten
    tokens.client(3)
    assert len(maker.made) == 5  # 0 made 1 forgotten, which was made after 3 but used before it
    assert tokens.client(3) == Tokens(tokens.data, HashTokenizer()).client(3)
    for index in range(100):
        tokens.client(index)
        assert sum(len(work.ids) for work in tokens._recent.values()) <= 6
    assert len(tokens._recent) <= 6


def test_a_client_larger_than_what_is_kept_is_made_once_while_it_is_used() -> None:
    maker = Maker()
    tokens = Tokens(federation(LazyClients(100, maker)), HashTokenizer(), keep=1)
    for _ in range(3):
        local_work(tokens, 3, limit=9, rng=np.random.default_rng(0))
    assert maker.made == [3]


@pytest.mark.parametrize("task", ["token-classification", "next-token"])
def test_targets_stay_with_their_texts_when_work_is_chosen(task: Task) -> None:
    tokens = Tokens(words(task), HashTokenizer(), max_length=8)
    work = local_work(tokens, 2, limit=2, rng=np.random.default_rng(3))
    places = [tokens.client(2).index(line) for line in work.ids]
    assert places != [0, 1]
    assert work.labels.tolist() == tokens.targets(2)[places].tolist()
    nothing = local_work(tokens, 1, limit=2, rng=np.random.default_rng(0))
    assert (nothing.ids, nothing.labels.shape) == ([], (0, 8))
    assert tokens.test_targets().shape == (0, 8)


# examples as clients


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification", "next-token"])
def test_every_text_is_a_client_of_its_own(task: Task) -> None:
    data = words(task)
    split = as_examples(data)
    assert len(split.clients) == 5
    assert [c.name for c in split.clients] == ["c0/0", "c0/1", "c2/0", "c2/1", "c2/2"]
    assert [c.texts for c in split.clients] == [(t,) for c in data.clients for t in c.texts]
    before = np.concatenate([c.labels for c in data.clients])
    assert np.concatenate([c.labels for c in split.clients]).tolist() == before.tolist()
    whole, single = Tokens(data, HashTokenizer()), Tokens(split, HashTokenizer())
    rows = [row for i in (0, 2) for row in whole.targets(i).tolist()]
    assert [single.targets(i).tolist()[0] for i in range(5)] == rows
    assert (split.task, split.labels) == (data.task, data.labels)


def test_examples_are_made_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    split = as_examples(federation(tuple(Maker()(i) for i in range(50))))
    asked: list[str] = []
    monkeypatch.setattr(
        Client, "example", lambda self, index: asked.append(f"{self.name}/{index}") or self
    )
    assert len(split.clients) == sum(1 + i % 4 for i in range(50))
    assert split.examples is None
    assert split.majority_share == 0.75
    assert asked == []
    assert split.clients[-1] is not None
    assert asked == ["u49/1"]
    assert len(as_examples(federation(())).clients) == 0
