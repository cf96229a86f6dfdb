"""The same run for everybody: one thread, seeded hypothesis, no network, no display."""

import os
import socket
from collections.abc import Iterable
from typing import Any

# Read by the libraries when they are first imported, so set before any test module is; inherited
# by the subprocesses that tests start.
for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_threads] = "1"
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")

import pytest  # noqa: E402 - after the environment it is to see
from hypothesis import settings  # noqa: E402 - the same

settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")

LOCAL = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterable[None]:
    """A test that reaches beyond this machine fails, wherever it happens to run."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in LOCAL:
            raise ConnectionRefusedError(f"Expected no network in tests, got {address}.")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
