"""What a client received and sent, counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fl_integration.adapters import AdapterSpace
from fl_integration.codec import Codec
from fl_integration.config import FederatedConfig
from fl_integration.options import Broadcast, HeadStart, SiloNoise
from fl_integration.queries import ScalarQuery
from fl_integration.traffic import Traffic, traffic

SpaceMaker = Callable[..., AdapterSpace]
CLIENTS = 60  # of which 15 in a round


def parts(space: AdapterSpace, rank: int) -> dict[str, int]:
    """Coordinates of A, B and the head in a slice."""
    found = {"A": 0, "B": 0, "head": 0}
    for name, shape in zip(space.names, space.shapes(rank), strict=True):
        part = "A" if "lora_A" in name else "B" if "lora_B" in name else "head"
        found[part] += shape.numel()
    return found


def sent(space: AdapterSpace, config: FederatedConfig, ranks: list[int]) -> Traffic:
    found = traffic(space, config, ranks=ranks, clients=CLIENTS)
    assert found is not None
    return found


def test_a_slice_goes_both_ways_at_its_own_rank(
    make_space: SpaceMaker, config: FederatedConfig
) -> None:
    space = make_space()
    found = sent(space, config, [1, 4])
    assert found.down == found.up == (space.dim(1) + space.dim(4)) * 4 / 4  # 4 bytes, q = 1/4
    weights = sum(p.numel() for p in space.classifier.parameters())
    a_and_b = parts(space, 4)
    assert found.full == 2 * (weights - a_and_b["A"] - a_and_b["B"])


@pytest.mark.parametrize(
    ("system", "down", "up"),
    [
        ("lora", ("A B head", "A B head"), ("A B head", "A B head")),
        ("ffa-lora", ("B head", "B head"), ("B head", "B head")),
        # what the last round trained must be received, too: a client may have missed it
        ("rolora", ("A B head", "A B head"), ("B head", "A head")),
        ("probe", ("head", "head"), ("head", "head")),
    ],
)
def test_frozen_parts_are_not_sent(
    make_space: SpaceMaker, config: FederatedConfig, system: str, down: tuple, up: tuple
) -> None:
    space = make_space()
    size = parts(space, 4)
    found = sent(space, replace(config, system=system), [4, 4])
    assert found.down == sum(size[part] for line in down for part in line.split())
    assert found.up == sum(size[part] for line in up for part in line.split())


def test_a_broadcast_is_smaller_and_an_upload_is_not(
    make_space: SpaceMaker, config: FederatedConfig
) -> None:
    space = make_space()
    coarse = replace(config, system="lora", broadcast=Broadcast(bits=2, block=32))
    found = sent(space, coarse, [4])
    assert found.down == round(Codec(bits=2, block=32).size(space.dim(4)) / 4)
    assert found.up == space.dim(4)


def test_every_silo_takes_part_in_every_round(
    make_space: SpaceMaker, config: FederatedConfig
) -> None:
    space = make_space()
    silos = replace(config, system="lora", unit="example", silos=SiloNoise(sizes=(9, 9)))
    found = traffic(space, silos, ranks=[4, 4], clients=2)
    assert found is not None
    assert found.up == 2 * 4 * space.dim(4)


def test_examples_in_one_place_are_not_sent(
    make_space: SpaceMaker, config: FederatedConfig
) -> None:
    central = replace(config, unit="example", max_texts=1)
    assert traffic(make_space(), central, ranks=[4], clients=CLIENTS) is None


def test_who_is_asked_receives_too(make_space: SpaceMaker, config: FederatedConfig) -> None:
    space = make_space()
    asking = replace(config, scalars=(ScalarQuery(name="accuracy", cohort=30, every=2),))
    quiet = traffic(space, asking, ranks=[4, 4], clients=CLIENTS)
    asked = traffic(space, asking, ranks=[4, 4], clients=CLIENTS, asked=True)
    assert quiet is not None
    assert asked is not None
    assert asked.down - quiet.down == space.dim(4) * 4 / 2  # half of the clients, in one round
    assert asked.up - quiet.up == 4  # half of 8 bytes


def test_a_head_start_sends_the_head_first(make_space: SpaceMaker, config: FederatedConfig) -> None:
    space = make_space()
    plain = replace(config, system="lora")
    before = sent(space, plain, [4])
    started = sent(space, replace(plain, head_start=HeadStart(rounds=3, cohort=20)), [4])
    head = 4 * parts(space, 4)["head"]
    assert started.down - before.down == started.up - before.up == head  # 3 rounds, a third each
    assert started.full == before.full * 5  # q = 1/4 once, then 1/3 three times
    everybody = sent(space, replace(plain, head_start=HeadStart(rounds=3)), [4])
    assert everybody.up - before.up == 3 * head
