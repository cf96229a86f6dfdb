"""A federation small enough for hundreds of rounds: 60 clients, 3 classes, the tiny model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from accountants import Ledger
from dpmech import Gaussian, Mechanism, Noise, PrivacyPlan, Sampling, Sensitivity, Target
from fl_integration.accounting import ledger_epsilon
from fl_integration.adapters import AdapterSpace
from fl_integration.client import Tokens
from fl_integration.config import FederatedConfig
from fl_integration.data import Client, FederatedData
from fl_integration.models import load_model
from fl_integration.run_folder import LOCK_FILE, held

WORDS = ("red", "green", "blue", "one", "two", "three", "left", "right")
DELTA = 1e-5


def _texts(rng: np.random.Generator, count: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Texts whose class is the colour that they repeat, among random words."""
    labels = rng.integers(0, 3, count)
    texts = tuple(
        " ".join([*[WORDS[label]] * 3, *rng.choice(WORDS[3:], rng.integers(1, 8))])
        for label in labels
    )
    return texts, labels.astype(np.int64)


def _client(index: int, rng: np.random.Generator) -> Client:
    texts, labels = _texts(rng, int(rng.integers(1, 9)))
    return Client(name=f"client-{index}", texts=texts, labels=labels)


@pytest.fixture(scope="session")
def federated_data() -> FederatedData:
    rng = np.random.default_rng(0)
    clients = tuple(_client(index, rng) for index in range(60))
    texts, labels = _texts(rng, 60)
    return FederatedData(
        name="colours",
        labels=WORDS[:3],
        clients=clients,
        test_texts=texts,
        test_labels=labels,
    )


@pytest.fixture
def make_space() -> Callable[..., AdapterSpace]:
    def make(rank: int = 4) -> AdapterSpace:
        classifier, _ = load_model("tiny", labels=3, seed=0)
        return AdapterSpace(classifier, rank=rank, generator=torch.Generator().manual_seed(0))

    return make


@pytest.fixture
def tokens(federated_data: FederatedData) -> Tokens:
    return Tokens(federated_data, load_model("tiny", labels=3)[1])


@pytest.fixture
def config() -> FederatedConfig:
    return FederatedConfig(
        rank=4, rounds=6, cohort=15, clip=0.5, server_lr=2.0, eval_every=3, noise_seed=7
    )


@pytest.fixture
def make_plan() -> Callable[..., PrivacyPlan]:
    """A plan whose ε is proved by the accountant, without any calibration."""

    def make(
        config: FederatedConfig, *, dim: int, clients: int = 60, noise: Noise | None = None
    ) -> PrivacyPlan:
        mechanism = Mechanism(
            noise=noise or Gaussian(sigma=config.clip),
            sensitivity=Sensitivity(norm="l2", bound=config.clip, dim=dim),
            sampling=Sampling(rate=config.cohort / clients),
        )
        ledger = Ledger().add(mechanism, config.rounds)
        epsilon = ledger_epsilon(ledger, accountant="pld", delta=DELTA)
        return PrivacyPlan(
            target=Target(epsilon=epsilon, delta=DELTA),
            mechanism=mechanism,
            steps=config.rounds,
            accountant="pld",
            epsilon=epsilon,
        )

    return make


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Everything that a run needs, in one fixture."""

    make_space: Callable[..., AdapterSpace]
    data: FederatedData
    config: FederatedConfig
    make_plan: Callable[..., PrivacyPlan]
    folder: Path


@pytest.fixture
def lab(
    make_space: Callable[..., AdapterSpace],
    federated_data: FederatedData,
    config: FederatedConfig,
    make_plan: Callable[..., PrivacyPlan],
    tmp_path: Path,
) -> Lab:
    return Lab(
        make_space=make_space,
        data=federated_data,
        config=config,
        make_plan=make_plan,
        folder=tmp_path,
    )


HOLD = """
import sys
from filelock import FileLock

with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def rival() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts a process that holds a folder as another run of it does, until it is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path) -> subprocess.Popen[str]:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", HOLD, str(folder / LOCK_FILE)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def files() -> Callable[[Path], dict[str, bytes]]:
    """What a folder holds, by path inside it."""

    def held_in(folder: Path) -> dict[str, bytes]:
        found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        return {name: path.read_bytes() for name, path in found.items()}

    return held_in


@pytest.fixture
def is_free() -> Callable[[Path], bool]:
    """Whether another thread, which stands for another run, may have a folder."""

    def enter(folder: Path) -> bool:
        try:
            with held(folder):
                return True
        except ValueError:
            return False

    def ask(folder: Path) -> bool:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(enter, folder).result()

    return ask


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A file of 24 clients with four texts each, of two classes."""
    rows = [f"{('hot', 'cold')[i % 2]} word {i % 7}\t{i % 2}\tc{i // 4}" for i in range(96)]
    path = tmp_path / "mine.tsv"
    path.write_text("\n".join(["text\tlabel\tclient", *rows]), encoding="utf-8")
    return path
