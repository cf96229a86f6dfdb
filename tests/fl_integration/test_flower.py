"""Flower's nodes give the simulation's sum, and none of them moves it by more than the clip."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from accountants import calibrate_scale
from dpmech import Gaussian, PrivacyPlan, Target
from fl_integration import federate, flower
from fl_integration.adapters import AdapterSpace
from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Round, loop_sum
from fl_integration.config import FederatedConfig
from fl_integration.data import Client, FederatedData, LazyClients
from fl_integration.flower import ARRAYS, CONFIG, DELTA, FlowerClients, clip_mod, trained_reply
from fl_integration.models import load_model
from fl_integration.queries import AdaptiveClip
from fl_integration.sampler import Randomness, noise_of
from fl_integration.scalars import Streams, entries_of
from fl_integration.systems import trained

SpaceMaker = Callable[..., AdapterSpace]
NODES = [1000 + 7 * i for i in range(60)]
BOUND = 0.05


class _Record(dict[str, Any]):
    """A record of Flower, as far as the adapter uses it."""


class _Array:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def numpy(self) -> np.ndarray:
        return self.values


class _Message:
    def __init__(
        self,
        content: Any = None,
        *,
        dst_node_id: int = 0,
        message_type: str = "",
        reply_to: _Message | None = None,
    ) -> None:
        self.content, self.failed = content, content is None
        asked = reply_to.metadata if reply_to else SimpleNamespace(dst_node_id=0, message_type="")
        self.metadata = SimpleNamespace(
            src_node_id=asked.dst_node_id,
            dst_node_id=dst_node_id,
            message_type=message_type or asked.message_type,
        )

    def has_error(self) -> bool:
        return self.failed


def _stand_in() -> SimpleNamespace:
    return SimpleNamespace(
        Array=_Array,
        ArrayRecord=_Record,
        ConfigRecord=_Record,
        RecordDict=_Record,
        Message=_Message,
    )


@pytest.fixture(params=["stand-in", "flwr"])
def app(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Flower's own messages where it is installed, and a stand-in everywhere."""
    if request.param == "flwr":
        app = pytest.importorskip("flwr.app")
        identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
        for name in ("_task_id", "_run_id", "_node_id"):  # what a running ServerApp has
            monkeypatch.setattr(identity, name, 1)
        return app
    monkeypatch.setattr(flower, "_flower", _stand_in)
    return _stand_in()


class _Grid:
    """Delivers messages to nodes in this process."""

    def __init__(self, answer: Callable[[Any], Iterable[Any]]) -> None:
        self.answer = answer
        self.asked: list[int] = []

    def send_and_receive(self, messages: list[Any], *, timeout: float) -> list[Any]:
        assert timeout > 0
        self.asked = [message.metadata.dst_node_id for message in messages]
        return [reply for message in messages for reply in self.answer(message)]


def _own(data: FederatedData, client: int) -> Tokens:
    alone = replace(data, clients=(data.clients[client],))
    return Tokens(alone, load_model("tiny", labels=3)[1])


def _server(space: AdapterSpace, tokens: Tokens, config: FederatedConfig) -> Cohort:
    randomness = Randomness(seed=0, secret_seed=0)
    return Cohort(space=space, tokens=tokens, config=config, randomness=randomness)


def _round(space: AdapterSpace, clients: list[int], **more: Any) -> Round:
    start = space.flatten(2)
    start += 0.2 * torch.randn(start.shape, generator=torch.Generator().manual_seed(3))
    return Round(index=4, rank=2, clients=np.asarray(clients), start=start, **more)


def _sum(run: Any, cohort: Cohort, round: Round, bound: float | None = BOUND) -> torch.Tensor:
    total = ClippedSum(len(round.start), bound)
    run(cohort, round, total)
    return total.value


@pytest.fixture
def unshuffled(config: FederatedConfig) -> FederatedConfig:
    """One step over all texts, so that their order, a node's own affair, does not matter."""
    return replace(config, batch_size=16, max_texts=16)


@pytest.mark.parametrize("system", ["dylora", "ffa-lora"])
@pytest.mark.parametrize("bound", [None, BOUND])
@pytest.mark.usefixtures("app")
def test_nodes_give_the_sum_of_the_simulation(
    make_space: SpaceMaker,
    tokens: Tokens,
    federated_data: FederatedData,
    unshuffled: FederatedConfig,
    system: Any,
    bound: float | None,
) -> None:
    space, device = make_space(), make_space()
    moves = trained(space, system, rank=2, round=0)
    round = _round(space, [3, 7, 11, 40], trained=None if moves.all() else moves)

    def answer(message: Any) -> list[Any]:
        client = NODES.index(message.metadata.dst_node_id)
        return [trained_reply(message, device, _own(federated_data, client))]

    grid = _Grid(answer)
    cohort = _server(space, tokens, unshuffled)
    found = _sum(FlowerClients(grid, NODES), cohort, round, bound)
    torch.testing.assert_close(found, _sum(loop_sum, cohort, round, bound), rtol=1e-5, atol=1e-6)
    assert grid.asked == [NODES[client] for client in (3, 7, 11, 40)]


def _reply(app: Any, message: Any, values: Any) -> Any:
    record = app.ArrayRecord({DELTA: app.Array(np.asarray(values))})
    return app.Message(app.RecordDict({ARRAYS: record}), reply_to=message)


@pytest.mark.parametrize("attack", [1e9, float("nan"), float("inf")])
def test_a_node_that_lies_moves_the_sum_by_at_most_the_clip(
    app: Any, make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, attack: float
) -> None:
    space = make_space()
    round = _round(space, [3, 7])
    dim = len(round.start)

    def answer(message: Any) -> list[Any]:
        if message.metadata.dst_node_id != NODES[7]:
            return [_reply(app, message, np.full(dim, 1e-4, dtype=np.float32))]
        return [_reply(app, message, np.full(dim, attack, dtype=np.float32)) for _ in range(5)]

    clients = FlowerClients(_Grid(answer), NODES)
    cohort = _server(space, tokens, config)
    beside = _sum(clients, cohort, round)
    without = _sum(clients, cohort, replace(round, clients=np.asarray([3])))
    assert without.norm() > 0
    assert (beside - without).norm().item() <= BOUND * (1 + 1e-9)


def test_what_cannot_be_read_adds_nothing_and_ends_nothing(
    app: Any, make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig
) -> None:
    space = make_space()
    round = _round(space, list(range(8)))
    dim = len(round.start)
    good = np.full(dim, 1e-4, dtype=np.float32)

    def answer(message: Any) -> list[Any]:
        stranger = app.Message(app.RecordDict({}), dst_node_id=5, message_type="train")
        return {
            0: [_reply(app, message, good)],
            1: [],  # gone
            2: [_reply(app, message, np.ones(dim + 1, dtype=np.float32))],
            3: [_reply(app, message, np.ones(dim, dtype=np.int64))],
            4: [app.Message(app.RecordDict({}), reply_to=message)],
            5: [_reply(app, stranger, good)],
            6: [_reply(app, message, np.float32(1.0))],
            7: [_reply(app, message, good[: dim // 2])],
        }[NODES.index(message.metadata.dst_node_id)]

    found = _sum(FlowerClients(_Grid(answer), NODES), _server(space, tokens, config), round)
    torch.testing.assert_close(found, torch.from_numpy(good).double())


def test_the_mod_clips_what_an_app_of_ones_own_sends(
    app: Any, make_space: SpaceMaker, config: FederatedConfig
) -> None:
    space = make_space()
    round = _round(space, [0])
    message = flower._request(NODES[0], round, 0.5, config)

    def own_app(message: Any, context: Any) -> Any:
        assert message.content[CONFIG]["rank"] == 2
        arrays = {DELTA: app.Array(np.full((len(round.start), 1), 7.0))}
        records = {ARRAYS: app.ArrayRecord(arrays), "metrics": app.ConfigRecord({"texts": 12})}
        return app.Message(app.RecordDict(records), reply_to=message)

    reply = clip_mod(message, None, own_app)
    assert list(reply.content) == [ARRAYS]
    delta = reply.content[ARRAYS][DELTA].numpy()
    assert delta.shape == (len(round.start),)
    assert np.linalg.norm(delta.astype(np.float64)) == pytest.approx(0.5, rel=1e-6)


def test_flowers_client_app_runs_the_mod(
    make_space: SpaceMaker, config: FederatedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("flwr.clientapp").ClientApp()
    app = pytest.importorskip("flwr.app")
    identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(identity, name, 1)
    round = _round(make_space(), [0])

    @client.train(mods=[clip_mod])
    def train(message: Any, context: Any) -> Any:
        return _reply(app, message, np.full(len(round.start), 7.0))

    context = app.Context(
        run_id=1, node_id=1, node_config={}, state=app.RecordDict({}), run_config={}
    )
    reply = client(flower._request(NODES[0], round, 0.5, config), context)
    delta = reply.content[ARRAYS][DELTA].numpy()
    assert np.linalg.norm(delta.astype(np.float64)) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.usefixtures("app")
def test_a_private_run_over_flower_is_the_simulated_one(
    make_space: SpaceMaker,
    federated_data: FederatedData,
    unshuffled: FederatedConfig,
    make_plan: Callable[..., PrivacyPlan],
) -> None:
    config = replace(unshuffled, rounds=2, cohort=6, eval_every=2)
    server, simulated, device = make_space(), make_space(), make_space()
    plan = make_plan(config, dim=server.dim(4))

    def answer(message: Any) -> list[Any]:
        client = NODES.index(message.metadata.dst_node_id)
        return [trained_reply(message, device, _own(federated_data, client))]

    def nobody(index: int) -> Client:
        raise AssertionError(f"the server made client {index}")

    known = replace(federated_data, clients=LazyClients(60, nobody))
    tokenizer = load_model("tiny", labels=3)[1]
    over = FlowerClients(_Grid(answer), NODES)
    report = federate(server, Tokens(known, tokenizer), config, plan, executor=over)
    wanted = federate(simulated, Tokens(federated_data, tokenizer), config, plan, executor=loop_sum)
    torch.testing.assert_close(server.flatten(4), simulated.flatten(4), rtol=1e-5, atol=1e-5)
    assert report.ledger == wanted.ledger
    assert report.epsilon == wanted.epsilon


@pytest.mark.usefixtures("app")
def test_a_silent_node_adds_nothing_to_the_share_within_the_clip(
    make_space: SpaceMaker,
    federated_data: FederatedData,
    unshuffled: FederatedConfig,
    make_plan: Callable[..., PrivacyPlan],
) -> None:
    config = replace(unshuffled, system="lora", rounds=2, cohort=6, eval_every=2)
    config = replace(config, adaptive=AdaptiveClip(quantile=0.3, rate=0.5, cohort=20))
    server, device, law = make_space(), make_space(), Gaussian(sigma=3.0)
    plan = make_plan(config, dim=server.dim(4))
    others = entries_of(config.queries, [law], clients=60, rounds=2)
    target = Target(epsilon=40.0, delta=1e-5)
    plan = calibrate_scale(plan.mechanism, target, steps=2, others=others)
    heard = [0, 0]

    def answer(message: Any) -> list[Any]:
        client = NODES.index(message.metadata.dst_node_id)
        if client % 3 == 0:
            return []
        settings = message.content[CONFIG]
        heard[settings["round"]] += "clip" not in settings  # asked for its bit
        return [trained_reply(message, device, _own(federated_data, client))]

    def nobody(index: int) -> Client:
        raise AssertionError(f"the server made client {index}")

    known = Tokens(
        replace(federated_data, clients=LazyClients(60, nobody)), load_model("tiny", labels=3)[1]
    )
    report = federate(server, known, config, plan, executor=FlowerClients(_Grid(answer), NODES))
    randomness = Randomness(seed=config.seed, secret_seed=config.noise_seed)
    streams = Streams(randomness=randomness, place=0)
    for metrics in report.rounds:
        noise = noise_of(law, 1, streams.noise(metrics.round))[0]
        # a bit less 1/2 of every node that answered, and 0 of the others
        twice = 2 * (20 * (metrics.scalars["share within the clip"] - 0.5) - noise)
        answered = heard[metrics.round]
        assert answered > 3
        assert abs(twice) <= answered
        assert twice == pytest.approx(round(twice), abs=1e-6)
        assert (round(twice) - answered) % 2 == 0


@pytest.mark.usefixtures("app")
def test_a_silos_own_steps_are_refused(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig
) -> None:
    class Silo(Cohort):
        pass

    space = make_space()
    given = _server(space, tokens, config)
    silo = Silo(space=space, tokens=tokens, config=given.config, randomness=given.randomness)
    with pytest.raises(ValueError, match="silos=None over Flower"):
        _sum(FlowerClients(_Grid(lambda _: []), NODES), silo, _round(space, [0]))


@pytest.mark.usefixtures("app")
def test_registration_is_checked(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig
) -> None:
    with pytest.raises(ValueError, match="a node twice"):
        FlowerClients(_Grid(lambda _: []), [1, 2, 1])
    space = make_space()
    clients = FlowerClients(_Grid(lambda _: []), NODES[:5])
    with pytest.raises(ValueError, match="60 clients"):
        _sum(clients, _server(space, tokens, config), _round(space, [0]))


@pytest.mark.skipif(importlib.util.find_spec("flwr") is not None, reason="flwr is installed")
def test_without_flower_the_refusal_says_what_to_install() -> None:
    assert "flwr" not in sys.modules
    with pytest.raises(ValueError, match=r"dpmech\[flower\]"):
        flower._flower()
