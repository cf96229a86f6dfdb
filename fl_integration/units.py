"""Whose texts are a client's: a user's, a single example, or a silo's.

Symbols: K silos.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fl_integration.config import FederatedConfig
from fl_integration.data import Client, FederatedData, LazyClients, as_examples


def as_silos(data: FederatedData, count: int) -> FederatedData:
    """Return the federation in which the clients of another are dealt to ``count`` silos, in turn.

    **Guarantees**: a client is in one silo, whatever the others hold; a silo is made when it is
    asked for; data of as many clients as silos stay as they are.

    Raises:
        ValueError: fewer clients than silos.
    """
    clients = data.clients
    if not 1 <= count <= len(clients):
        raise ValueError(
            f"Expected 1 to {len(clients)} silos for the clients of {data.name}, got {count}."
        )
    if count == len(clients):
        return data

    def make(index: int) -> Client:
        members = [clients[i] for i in range(index, len(clients), count)]
        return Client(
            name=f"silo-{index}",
            texts=tuple(text for member in members for text in member.texts),
            labels=np.concatenate([member.labels for member in members]),
        )

    return replace(data, clients=LazyClients(count, make))


def as_unit(data: FederatedData, config: FederatedConfig) -> FederatedData:
    """Return the federation that a configuration is about: of users, of examples, or of silos.

    Raises:
        ValueError: silos whose public sizes nobody stated, or fewer clients than silos.
    """
    if config.silos is not None:
        if not config.silos.sizes:
            raise ValueError(
                f"Expected the public size of every silo, got {config.silos}: state them, rounded"
                " or as published (--silo-sizes 400,400,400); what a silo holds is private."
            )
        return as_silos(data, len(config.silos.sizes))
    return as_examples(data) if config.unit == "example" else data
