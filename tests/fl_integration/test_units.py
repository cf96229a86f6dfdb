"""Whose texts are a client's."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from fl_integration.config import FederatedConfig
from fl_integration.data import FederatedData, LazyClients
from fl_integration.options import SiloNoise
from fl_integration.units import as_silos, as_unit


def test_silos_hold_every_client_once(federated_data: FederatedData) -> None:
    silos = as_silos(federated_data, 7)
    assert len(silos.clients) == 7
    held = Counter(text for silo in silos.clients for text in silo.texts)
    assert held == Counter(text for client in federated_data.clients for text in client.texts)
    assert sum(map(len, silos.clients)) == federated_data.examples
    for silo in silos.clients:
        assert len(silo.labels) == len(silo.texts)


def test_an_example_more_changes_one_silo(federated_data: FederatedData) -> None:
    """Which silo a client is in follows from its place alone."""
    clients = list(federated_data.clients)
    clients[10] = replace(
        clients[10],
        texts=(*clients[10].texts, "one more"),
        labels=[*clients[10].labels, 0],  # type: ignore[arg-type]
    )
    before = as_silos(federated_data, 4).clients
    after = as_silos(replace(federated_data, clients=tuple(clients)), 4).clients
    changed = [a.texts != b.texts for a, b in zip(before, after, strict=True)]
    assert changed == [False, False, True, False]


def test_as_many_silos_as_clients_stay_as_they_are(federated_data: FederatedData) -> None:
    assert as_silos(federated_data, len(federated_data.clients)) is federated_data
    with pytest.raises(ValueError, match="61"):
        as_silos(federated_data, 61)


def test_a_configuration_says_what_a_client_is(
    federated_data: FederatedData, config: FederatedConfig
) -> None:
    assert as_unit(federated_data, config) is federated_data
    example = replace(config, unit="example", max_texts=1)
    one = as_unit(federated_data, example)
    assert len(one.clients) == federated_data.examples
    assert isinstance(one.clients, LazyClients)
    silos = replace(config, unit="example", silos=SiloNoise(sizes=(50, 50, 50)))
    assert len(as_unit(federated_data, silos).clients) == 3
    with pytest.raises(ValueError, match="silo-sizes"):
        as_unit(federated_data, replace(silos, silos=SiloNoise()))
