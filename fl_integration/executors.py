"""Which executor computes a cohort: the fastest of those that give the loop's sum.

One local step a client: merged, where only linear layers move; on cached features, where only the
head does. Several: one client after the other or stacked, whichever was faster on a chunk of the
run's own clients.
"""

from __future__ import annotations

import time
from dataclasses import replace

from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Executor, Round, loop_sum, merged_sum
from fl_integration.config import FederatedConfig
from fl_integration.probing import ProbeSum
from fl_integration.vmapped import vmap_sum

CHUNK = 32  # clients that the two are timed on
WORTH = 0.9  # of the loop's time: clocks are not exact, and a tie goes to the loop
TRIALS = 2  # the first of each also pays for what is made once


def executor_for(config: FederatedConfig) -> Executor:
    """The executor of a run; make it once, for it may learn which one is faster.

    Raises:
        ValueError: for ``"merged"`` where a client takes several steps or every weight moves.
    """
    one_step = config.local_epochs == 1 and config.batch_size >= config.max_texts
    one_step = one_step or config.silos is not None  # a silo's step is one of each example
    linear = config.system != "full"  # no layer but a linear one tells clients apart
    if config.executor == "merged" and not (one_step and linear):
        raise ValueError(
            f"Expected executor='merged' with one local step of a system of adapters, got"
            f" local_epochs={config.local_epochs}, batch_size={config.batch_size},"
            f" max_texts={config.max_texts}, system={config.system!r}; use 'auto'."
        )
    if config.executor == "auto" and one_step and config.system == "probe":
        return ProbeSum()
    if config.executor == "auto":
        return merged_sum if one_step and linear else Fastest()
    return {"loop": loop_sum, "merged": merged_sum, "vmap": vmap_sum}[config.executor]


class Fastest:
    """The loop, or the stack where that was faster on some of the first cohort's clients.

    **Guarantees**

    * The sum is that of `loop_sum` up to rounding, whatever is chosen.
    * What is timed is thrown away: a client that is in the timing is still added once.

    Until a cohort has clients enough to time, the loop runs.
    """

    def __init__(self) -> None:
        self.chosen: Executor | None = None

    def __call__(self, cohort: Cohort, round: Round, total: ClippedSum) -> None:
        """Choose if that is still to be done, then add the deltas of a round's clients."""
        if self.chosen is None and len(round.clients) >= CHUNK:
            self.chosen = _faster(cohort, replace(round, clients=round.clients[:CHUNK]))
        (self.chosen or loop_sum)(cohort, round, total)


def _faster(cohort: Cohort, chunk: Round) -> Executor:
    """The loop or the stack, by the better of two trials each."""
    if cohort.space.classifier.mask_form == "plain":
        return loop_sum
    loop, stack = (_seconds(run, cohort, chunk) for run in (loop_sum, vmap_sum))
    return vmap_sum if stack < WORTH * loop else loop_sum


def _seconds(run: Executor, cohort: Cohort, chunk: Round) -> float:
    """How long an executor takes; infinitely long where it cannot follow the model."""
    best = float("inf")
    for _ in range(TRIALS):
        began = time.perf_counter()
        try:
            run(cohort, chunk, ClippedSum(len(chunk.start), cohort.config.clip))
        except (RuntimeError, NotImplementedError):  # what vmap raises on what it has no rule for
            return float("inf")
        best = min(best, time.perf_counter() - began)
    return best
