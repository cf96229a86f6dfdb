"""The training loop: public rank, Poisson cohort, clipped sum, noise, server step, ledger.

Symbols: R largest rank, b rank of the round, N clients, q sampling rate, T rounds, C clip.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from accountants import Ledger
from dpmech import PrivacyPlan
from fl_integration.adaptive import next_clip
from fl_integration.asking import asked
from fl_integration.broadcast import broadcast_step
from fl_integration.checkpoint import Checkpoint, TrainState
from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Executor, Round
from fl_integration.config import FederatedConfig
from fl_integration.eavesdrop import protected
from fl_integration.extrapolate import Extrapolation
from fl_integration.report import RoundMetrics, TrainReport
from fl_integration.run import Run
from fl_integration.run_folder import held
from fl_integration.server import ServerState, noisy_mean
from fl_integration.silos import silo_round
from fl_integration.spaces import FlatSpace

Progress = Callable[[RoundMetrics], None]


def federate(  # noqa: PLR0913  # each one a plug of its own
    space: FlatSpace,
    tokens: Tokens,
    config: FederatedConfig,
    privacy: PrivacyPlan | Extrapolation | None = None,
    *,
    checkpoint_dir: str | Path | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> TrainReport:
    """Train adapters over a federation, with user-level privacy at the server when given a plan.

    **Guarantees**

    * A plan that does not match the run is refused before any client is asked.
    * One user moves the noised sum by at most the clip; the noise covers the whole vector; the
      denominator is constant; an empty cohort still releases noise and is still paid for.
    * Every round that may have been released is in the ledger, whenever the process is killed,
      and the ledger never exceeds the plan. Called again with the same arguments and folder, an
      interrupted run continues, and a finished one returns its report.

    Not covered: what the time of a round tells about its cohort, the test set (taken to be
    public), attacks on the floating-point representation of the noise, and, with any executor but
    ``"loop"``, that the rounding of a kernel may depend on whose texts share a batch.

    Arguments:
        space: of the configuration's system; trained in place. tokens: the federation.
        config: the run. privacy: a plan, an extrapolated plan, or ``None`` without privacy.
        checkpoint_dir: keeps state after every round; without it an interrupt loses the run.
        progress: called with each round's metrics, after they are safe on disk.
        executor: computes a cohort's clipped sum, elsewhere if need be (`distributed.together`,
            `flower.FlowerClients`); by default `executor_for` chooses one. An adaptive clip asks it
            only where it says ``alone = True`` (`ClipBits`).

    Raises:
        ValueError: on any mismatch. NoDominatingPair: from a law without a proved pair.

    Source: federated.md §1 (DP-LoRA at the server, DP-DyLoRA).
    """
    run = Run.prepare(space, tokens, config, privacy, executor)
    checkpoint = Checkpoint(Path(checkpoint_dir) if checkpoint_dir else None, run.fingerprint())
    with held(checkpoint.folder):
        return completed(run, checkpoint, begun(run, checkpoint), progress=progress)


def begun(run: Run, checkpoint: Checkpoint) -> TrainState:
    """The state in the folder of this run; in a fresh one that before the first round, now there.

    Raises:
        ValueError: from `Checkpoint.restore`; then nothing is written.
    """
    state = checkpoint.restore()
    if state is None:
        space = run.cohort.space
        state = TrainState(
            round=0,
            server=ServerState.start(space.flatten(space.rank)),
            ledger=Ledger() if run.spending is None else run.spending.before,
            clip=run.config.clip,
        )
        checkpoint.commit(state)
    return state


def completed(
    run: Run, checkpoint: Checkpoint, state: TrainState, *, progress: Progress | None = None
) -> TrainReport:
    """All rounds that a state leaves to a run, and its report; its folder is held by the caller.

    Arguments:
        state: from `begun`. checkpoint, progress: as in `federate`.
    """
    began, config, space = time.perf_counter(), run.config, run.cohort.space
    while True:
        if run.needs_evaluation(state):
            state = state.evaluated(run.scored(state.server.shown(config)).accuracy)
            checkpoint.commit(state)
        if progress is not None and state.metrics:
            progress(state.metrics[-1])
        if state.round == config.rounds:
            report = run.report(state, seconds=time.perf_counter() - began)
            report = replace(report, model_privacy=protected(run, state))
            space.assign(state.server.shown(config).float(), space.rank)  # whatever was evaluated
            return report
        state = burnt(run, state, checkpoint) or advance(run, state, checkpoint)
        checkpoint.commit(state)


def burnt(run: Run, state: TrainState, checkpoint: Checkpoint) -> TrainState | None:
    """Count a round that was intended and never committed, unless its noise is replayable."""
    spent = checkpoint.intended(state.round)
    if spent is None or run.config.noise_seed is not None:
        return None
    return state.after(state.server, spent, run.metrics(state, burnt=True))


def advance(run: Run, state: TrainState, checkpoint: Checkpoint) -> TrainState:
    """One round: nothing leaves this function before the spend is on disk."""
    config = run.config
    round, index = run.drawn(state)
    kept, spent = round.kept, Ledger()
    if run.spending is not None:
        spent = run.spending.of_round(len(round.start[kept]), state.round)
    mean, norms = released(run, round, state.clip, lambda: checkpoint.intend(state.round, spent))
    scalars = asked(run, round, state)
    server = broadcast_step(
        state.server,
        index[kept],
        mean[kept],
        config,
        broadcast=config.broadcast,
        received=round.start[kept],
    ).averaging(config, rounds=state.round + 1)
    metrics = run.metrics(state, norms=norms, scalars=scalars)
    after = state.after(server, spent, metrics)
    return replace(
        after,
        clip=_next_clip(run, state.clip, norms, scalars),
        overheard=state.overheard
        if config.broadcast is None
        else state.overheard.hear(index, round.start),
    )


def released(
    run: Run, round: Round, clip: float | None, intend: Callable[[], None]
) -> tuple[Tensor, tuple[float, ...]]:
    """The mean move of a round (d,), and the clients' norms where nobody is protected.

    Only the coordinates that the round trains have noise on them; the others are 0.
    """
    config, noise = run.config, None if run.spending is None else run.spending.noise
    if config.silos is not None:  # the noise is drawn inside, so the spend comes first
        intend()
        return silo_round(run.cohort, round, config.silos, noise=noise, executor=run.executor), ()
    kept = round.kept
    total = ClippedSum(len(round.start), clip, keep_norms=run.spending is None)
    run.executor(run.cohort, round, total)
    intend()
    mean = torch.zeros_like(total.value)
    units = 1.0 if clip is None or config.clip is None else clip / config.clip
    mean[kept] = units * noisy_mean(
        total.value[kept] / units,
        noise=noise,
        rng=run.cohort.randomness.noise(round.index),
        denominator=config.cohort,
    )
    return mean, total.norms


def _next_clip(
    run: Run, clip: float | None, norms: tuple[float, ...], scalars: dict[str, float]
) -> float | None:
    """The clip of the next round, from what this one released."""
    adaptive, initial = run.config.adaptive, run.config.clip
    if adaptive is None or clip is None or initial is None:
        return clip
    share = scalars.get(adaptive.query.name)
    if share is None:  # without privacy, from the clients themselves
        share = float(np.mean([norm <= clip for norm in norms])) if norms else adaptive.quantile
    return next_clip(adaptive, clip, share, initial=initial)
