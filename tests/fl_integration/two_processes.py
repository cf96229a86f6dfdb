"""Groups of two processes, for test_distributed.py: argv is where to write.

Everything is imported once; the two are forked, as torchrun would start them.
"""

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from accountants import Ledger
from dpmech import Gaussian, Mechanism, PrivacyPlan, Sampling, Sensitivity, Target
from fl_integration import TrainReport, federate
from fl_integration.accounting import ledger_epsilon
from fl_integration.adapters import AdapterSpace
from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Executor, Round, loop_sum
from fl_integration.config import FederatedConfig
from fl_integration.data import Client, FederatedData
from fl_integration.distributed import Group, by_first, joined, leading, serve, spread, together
from fl_integration.models import load_model
from fl_integration.run_folder import LOCK_FILE, held
from fl_integration.sampler import Randomness

WORDS = ("red", "green", "blue", "one", "two", "three")
CLIP, CLIENTS = 0.3, 23


def cohort() -> Cohort:
    rng = np.random.default_rng(0)
    classifier, tokenizer = load_model("tiny", labels=3, seed=0)
    classifier.double()
    clients = tuple(
        Client(
            name=f"client-{i}",
            texts=tuple(" ".join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(i % 4)),
            labels=rng.integers(0, 3, i % 4).astype(np.int64),
        )
        for i in range(CLIENTS)
    )
    data = FederatedData(
        name="words",
        labels=("a", "b", "c"),
        clients=clients,
        test_texts=("red", "green one"),
        test_labels=np.asarray([0, 1]),
    )
    config = FederatedConfig(
        rank=2, rounds=3, cohort=12, clip=CLIP, local_epochs=2, batch_size=2, eval_every=3
    )
    return Cohort(
        space=AdapterSpace(classifier, rank=2, generator=torch.Generator().manual_seed(0)),
        tokens=Tokens(data, tokenizer),
        config=config,
        randomness=Randomness(seed=0, secret_seed=0),
    )


def one_round(cohort: Cohort) -> Round:
    start = cohort.space.flatten(2, dtype=torch.float64)
    start += 0.2 * torch.randn(start.shape, generator=torch.Generator().manual_seed(3)).double()
    return Round(index=0, rank=2, clients=np.arange(CLIENTS), start=start)


def summed(cohort: Cohort, group: Group | None) -> tuple[list[float], list[float]]:
    round = one_round(cohort)
    total = ClippedSum(len(round.start), CLIP, keep_norms=True)
    total.add(torch.ones(len(round.start)))  # what is there already must be counted once
    (loop_sum if group is None else spread(loop_sum, group))(cohort, round, total)
    return total.value.tolist(), sorted(total.norms)


def plan(cohort: Cohort) -> PrivacyPlan:
    mechanism = Mechanism(
        noise=Gaussian(sigma=CLIP),
        sensitivity=Sensitivity(norm="l2", bound=CLIP, dim=cohort.space.dim(2)),
        sampling=Sampling(rate=cohort.config.cohort / CLIENTS),
    )
    ledger = Ledger().add(mechanism, cohort.config.rounds)
    epsilon = ledger_epsilon(ledger, accountant="pld", delta=1e-5)
    return PrivacyPlan(
        target=Target(epsilon=epsilon, delta=1e-5),
        mechanism=mechanism,
        steps=cohort.config.rounds,
        accountant="pld",
        epsilon=epsilon,
    )


def trained(cohort: Cohort, group: Group, folder: Path) -> tuple[list[float], str]:
    """A private run: the weights and the report of this process."""

    def train(executor: Executor) -> TrainReport:
        return federate(
            cohort.space,
            cohort.tokens,
            cohort.config,
            plan(cohort),
            checkpoint_dir=folder,
            executor=executor,
        )

    report = together(train, cohort, group)
    return cohort.space.flatten(2).tolist(), report.to_json()


def sums(folder: Path) -> None:
    here = cohort()
    with joined("gloo") as group:
        if group.rank:
            result = serve(here, loop_sum, group)
        else:
            with leading(group) as finish:
                result = summed(here, group)
                finish("done")
        (folder / f"{group.rank}.json").write_text(json.dumps(result))


def train(folder: Path) -> None:
    with joined("gloo") as group:
        result = trained(cohort(), group, folder / "checkpoint")
        (folder / f"{group.rank}.json").write_text(json.dumps(result))


def die(folder: Path) -> None:
    """The second process leaves in the middle of the second round."""
    rounds: list[int] = []

    def leave(cohort: Cohort, round: Round, total: ClippedSum) -> None:
        rounds.append(round.index)
        if len(rounds) == 2:
            os._exit(1)
        loop_sum(cohort, round, total)

    with joined("gloo") as group:
        if group.rank:
            serve(cohort(), leave, group)
        trained(cohort(), group, folder / "checkpoint")


def refuse(folder: Path) -> None:
    """Rank 0 cannot have the folder of the run."""
    lock = FileLock(folder / LOCK_FILE)  # not the object of `held`, so another run's
    with joined("gloo") as group:
        if group.rank == 0:
            lock.acquire()
        with by_first(held(folder), group):
            (folder / f"{group.rank}.json").write_text("entered")


def forked(run: Callable[[Path], None], folder: Path, rank: int) -> int:
    """Start one process of a group; its exit status is 0 if it ran to its end."""
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        run(folder)
    except BaseException:
        (folder / f"{rank}.err").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for run in (sums, train, die, refuse):
        folder = Path(sys.argv[1]) / run.__name__
        folder.mkdir()
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        os.environ["WORLD_SIZE"] = "2"
        children = [forked(run, folder, rank) for rank in range(2)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        (folder / "codes.json").write_text(json.dumps(codes))
