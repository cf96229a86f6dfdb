"""What a federated round costs beside its model: `make bench-federated`.

Every figure is a ratio to a peer that runs in turn with it on one thread, from seconds of the
process, the least of three. Needs the extras train, minilm and opacus; some five minutes.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import tracemalloc
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from federated_cases import CLIP, Case, examples, fastest, invented, stacked
from torch import Tensor

from accountants import Ledger
from dpmech import Gaussian, Mechanism, PrivacyPlan, Sampling, Sensitivity, Target
from dpmech.files import write_atomically
from fl_integration import FederatedConfig, FederatedData, federate, load_data
from fl_integration.accounting import ledger_epsilon
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import loop_sum, merged_sum
from fl_integration.executors import Fastest
from fl_integration.models import cpu_has_bf16
from fl_integration.server import ServerState, noisy_mean, server_step
from fl_integration.vmapped import vmap_sum

Lines = Iterator[str]
DELTA = 1e-5


def table(*cells: object) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def headed(title: str, text: str, *columns: str) -> Lines:
    """A section and the head of its table."""
    yield from ("", f"## {title}", "", text, "", table(*columns), "|---" * len(columns) + "|")


def plan_of(config: FederatedConfig, *, dim: int, clients: int) -> PrivacyPlan:
    """Any plan that fits: its noise is the clip."""
    mechanism = Mechanism(
        noise=Gaussian(sigma=CLIP),
        sensitivity=Sensitivity(norm="l2", bound=CLIP, dim=dim),
        sampling=Sampling(rate=config.rate(clients)),
    )
    ledger = Ledger().add(mechanism, config.rounds)
    epsilon = ledger_epsilon(ledger, accountant="pld", delta=DELTA)
    target = Target(epsilon=epsilon, delta=DELTA)
    return PrivacyPlan(
        target=target,
        mechanism=mechanism,
        steps=config.rounds,
        accountant="pld",
        epsilon=epsilon,
    )


def loop_share() -> Lines:
    """A whole private run against its bare model."""
    yield from headed(
        "The loop",
        "A private run (DP-LoRA, MiniLM fp32, 30 clients of docstrings, all of them in every round,"
        " checkpoints on disk) against forward and backward over the same texts in batches sorted"
        " by length, without clip, noise or ledger (but with the batch gradient of the adapters,"
        " which the run does not form: it may be the faster). Goal: at most 10 % outside the"
        " model.",
        "rounds",
        "run, s",
        "model alone, s",
        "outside the model",
    )
    data = load_data("docstrings")
    some = FederatedData(
        name="some",
        labels=data.labels,
        clients=tuple(data.clients[i] for i in range(30)),
        test_texts=(),
        test_labels=np.zeros(0, dtype=np.int64),
    )
    config = FederatedConfig(system="lora", rounds=2, cohort=30, clip=CLIP)
    case = Case.of(some, config, model="minilm", dtype="float32")
    plan = plan_of(config, dim=len(case.round.start), clients=30)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            federate(case.cohort.space, case.cohort.tokens, config, plan, checkpoint_dir=folder)

    whole, alone = fastest(run, lambda: [case.plain() for _ in range(config.rounds)])
    share = max(0.0, 1 - alone / whole)
    yield table(config.rounds, f"{whole:.2f}", f"{alone:.2f}", f"{share:.1%}")


def aggregation() -> Lines:
    """Clip, sum, noise and server step of one round."""
    yield from headed(
        "Clip, sum, noise, server step",
        "100 clients, an adapter of d parameters, the deltas given one by one. Goal: at most 50 ms"
        " at 300 000.",
        "d",
        "clip and sum, ms",
        "noise and step, ms",
        "together, ms",
    )
    for dim in (75_000, 300_000):
        one, other = (1e3 * s for s in released(dim))
        yield table(f"{dim:,}", f"{one:.1f}", f"{other:.1f}", f"{one + other:.1f}")


def released(dim: int) -> list[float]:
    """Seconds to clip and add the deltas of 100 clients; to add noise and move by the mean."""
    deltas = torch.randn(100, dim, generator=torch.Generator().manual_seed(0))
    state, config = ServerState.start(torch.zeros(dim)), FederatedConfig(cohort=100)
    rng, noise, index = np.random.default_rng(0), Gaussian(sigma=CLIP), torch.arange(dim)

    def clipped() -> Tensor:
        total = ClippedSum(dim, CLIP)
        for delta in deltas:
            total.add(delta)
        return total.value

    def moved(value: Tensor) -> None:
        mean = noisy_mean(value, noise=noise, rng=rng, denominator=100)
        server_step(state, index, mean, config)

    value = clipped()
    return fastest(clipped, lambda: moved(value))


def gradients() -> Lines:
    """Clipped gradients of every example against a plain pass and Opacus's hooks."""
    yield from headed(
        "Per-example gradients",
        "256 docstrings (at most 32 tokens), MiniLM, LoRA r=8 on query and value and the head, each"
        " example clipped; all in the same batches. Goals: at most 10 % over plain; not slower than"
        " Opacus's hooks; bf16 at least 3 times fp32.",
        "",
        "examples/s",
        "seconds to plain fp32",
    )
    full = examples(256, "float32")
    names = ["plain, fp32", "clipped, fp32", "Opacus's hooks, fp32"]
    runs = [full.plain, lambda: full.summed(merged_sum), full.opacus]
    if cpu_has_bf16():
        half = examples(256, "bfloat16")
        names += ["plain, bf16", "clipped, bf16"]
        runs += [half.plain, lambda: half.summed(merged_sum)]
    seconds = fastest(*runs)
    for name, s in zip(names, seconds, strict=True):
        yield table(name, f"{256 / s:.0f}", f"{s / seconds[0]:.2f}")
    ours, theirs = full.summed(merged_sum), -full.opacus().double()
    yield ""
    apart = float((ours - theirs).norm() / ours.norm())
    yield f"Our clipped sum and that of Opacus differ by {apart:.1e} of its length."
    if cpu_has_bf16():
        cosine = torch.nn.functional.cosine_similarity(half.summed(merged_sum), ours, dim=0)
        yield f"The clipped sum of bf16 has a cosine of {cosine:.5f} to that of fp32."
        yield f"bf16 is {seconds[1] / seconds[4]:.2f} times as fast; {gemm()},"
        yield "which bounds what bf16 can save on this processor."


def gemm() -> str:
    """What bf16 can give at most: the model's own matrix products by themselves."""
    x = torch.randn(1024, 384)
    w, low_x = torch.randn(384, 1536), x.bfloat16()
    low_w = w.bfloat16()
    one, other = fastest(
        lambda: [x @ w for _ in range(200)], lambda: [low_x @ low_w for _ in range(200)]
    )
    return f"the matrix products of its layers alone are {one / other:.2f} times as fast"


def stacks() -> Lines:
    """Stacked clients against one after the other, and what the automatic choice makes of it."""
    yield from headed(
        "Several local steps: one after the other, or stacked (vmap)",
        "Two steps a client. Goals: stacked at least 3 times as fast on tiny models, and never"
        " chosen where it is slower.",
        "model",
        "texts × words a step",
        "one by one, clients/s",
        "stacked, clients/s",
        "ratio",
        "chosen",
    )
    cases = [("tiny", 64, 1, 14), ("tiny", 64, 4, 14), ("tiny", 64, 4, 30), ("tiny", 64, 16, 30)]
    cases += [("minilm", 32, 1, 6), ("minilm", 32, 2, 20), ("minilm", 32, 8, 30)]
    for model, clients, texts, words in cases:
        case = stacked(model, clients=clients, texts=texts, words=words)
        choice = Fastest()
        case.summed(choice)
        one, other = fastest(lambda c=case: c.summed(loop_sum), lambda c=case: c.summed(vmap_sum))
        chosen = "stacked" if choice.chosen is vmap_sum else "one by one"
        rates = (f"{clients / s:.1f}" for s in (one, other))
        yield table(model, f"{texts} × {words}", *rates, f"{one / other:.2f}", chosen)


def population() -> Lines:
    """The same cohort out of a thousand clients and out of a million."""
    yield from headed(
        "The size of the population",
        "Cohorts of 100 expected, tiny model, four rounds. Goal: a million costs what a thousand"
        " does, to 10 %.",
        "registered clients",
        "seconds a round",
        "most memory that python held, MB",
    )
    config = FederatedConfig(system="lora", rounds=4, cohort=100, rank=4)
    sizes = (10**3, 10**6)
    cases = [
        Case.of(invented(size, texts=4, words=10), config, model="tiny", dtype="float32")
        for size in sizes
    ]
    runs = [lambda c=case: federate(c.cohort.space, c.cohort.tokens, config) for case in cases]
    for size, seconds, run in zip(sizes, fastest(*runs), runs, strict=True):
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        yield table(f"{size:,}", f"{seconds / config.rounds:.3f}", f"{peak:.1f}")


SECTIONS = (loop_share, aggregation, gradients, stacks, population)


def report(wanted: str) -> str:
    """The page."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "opacus"))
    head = [
        "# Federated rounds, measured",
        "",
        "Made by `make bench-federated`: seconds of the process on one thread, the least of three,"
        f" peers in turn in the same run. Python {platform.python_version()}, {libraries};"
        f" bf16 in the processor: {'yes' if cpu_has_bf16() else 'no'}.",
    ]
    body = [line for section in SECTIONS if wanted in section.__name__ for line in section()]
    return "\n".join([*head, *body, ""])


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="write here instead")
    parser.add_argument("-k", default="", help="only sections whose name contains this")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    text = report(asked.k)
    if asked.output:
        write_atomically(asked.output, text.encode())
    else:
        print(text)


if __name__ == "__main__":
    main()
