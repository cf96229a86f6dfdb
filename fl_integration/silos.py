"""DP-LoRA across silos: every silo trains privately by itself, and only then shares its weights.

All K silos take part in every round. In each of its local steps a silo draws a Poisson sample of
its own examples, clips every *example's* step, adds noise to the sum, and moves by it; what it
uploads is private already, so neither the server nor another silo has to be trusted.

The clip sees the step −rates·∇, not the gradient: what is summed is what is clipped, so the rate of
the head (a hundred times that of the adapters) cannot enlarge a contribution beyond C.

An example belongs to one silo. What the other silos send depends on it only through what its own
silo has released, so a run of T rounds costs T·steps releases, in whichever silo an example is.

Symbols: K silos, n_k *public* size of silo k, q sampling rate, C clip, d coordinates, T rounds.
Source: Liu et al. (2023), arXiv 2312.17493; federated.md §1. Where the paper is loose: the clip is
per example, not of the batch's mean, and one for A, B and the head together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmech import Noise
from fl_integration.client import Work
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Executor, Round
from fl_integration.options import SiloNoise
from fl_integration.sampler import poisson_cohort
from fl_integration.server import noisy_mean

TRUSTED = "each silo, with its own examples (it adds the noise); not the server, nor another silo"


def silo_round(
    cohort: Cohort,
    round: Round,
    silos: SiloNoise,
    *,
    noise: Noise | None,
    executor: Executor,
) -> Tensor:
    """Let every silo take its private steps, and average what they upload.

    **Guarantees**

    * In each step of its silo an example moves the noised sum by at most the clip, whatever it is,
      and the other silos' sums not at all; the noise covers all coordinates.
    * Nothing but noised sums leaves a silo: samples, sums and realised sizes stay inside. The
      divisor q·n_k and the weights n_k/Σn are constants. A sample of nobody releases noise.

    Draws noise: write down the spend before calling it.

    Arguments:
        cohort: its clients are the silos; a text of theirs is an example. round: the weights to
            start from; its clients do not matter, every silo takes part.
        silos: steps, rate and the *public* sizes n_k, see `checked_sizes`.
        noise: the law on a silo's sum, ``None`` without privacy. executor: sums the clipped steps.

    Returns:
        (d,) fp64 the weighted mean of how far the silos moved.

    Raises:
        ValueError: sizes that are not public numbers, one a silo; noise without a clip.
    """
    sizes = checked_sizes(silos, clients=len(cohort.tokens.data.clients))
    if noise is not None and cohort.config.clip is None:
        raise ValueError("Expected clip=None to be a number: noise alone protects no one.")
    mean = torch.zeros(len(round.start), dtype=torch.float64)
    for k, size in enumerate(sizes):
        silo = _Silo.open(cohort, k, silos=silos)
        mean += size / sum(sizes) * silo.moved(round, noise, executor)
    return mean


def checked_sizes(silos: SiloNoise, *, clients: int) -> tuple[int, ...]:
    """The public sizes of the silos, if there is one for each of the ``clients``.

    They divide the sums and weigh the silos, so they must be known without looking at the data: a
    nominal size, or one that is published anyway. The number of examples that a silo *holds*
    changes when an example is added, and is private under add-remove.

    Raises:
        ValueError: none given, or a wrong number of them.

    >>> checked_sizes(SiloNoise(sizes=(1000, 250)), clients=2)
    (1000, 250)
    """
    if len(silos.sizes) != clients:
        raise ValueError(
            f"Expected the public sizes of {clients} silos, got sizes={silos.sizes}: state them, "
            "rounded or as published. What a silo holds is private and is not used in their place."
        )
    return silos.sizes


@dataclass(frozen=True, kw_only=True, eq=False)
class _Silo(Cohort):
    """A silo as a federation of its own, in which every example is a client with one text."""

    silo: int
    held: Work  # all examples, whose number is private
    silos: SiloNoise

    @classmethod
    def open(cls, cohort: Cohort, silo: int, *, silos: SiloNoise) -> _Silo:
        """The silo's own examples, one step an example."""
        tokens = cohort.tokens
        held = Work(name=tokens.name(silo), ids=tokens.client(silo), labels=tokens.targets(silo))
        return cls(
            space=cohort.space,
            tokens=tokens,
            config=replace(cohort.config, max_texts=1, local_epochs=1, batch_size=1),
            randomness=cohort.randomness,
            silo=silo,
            held=held,
            silos=silos,
        )

    def work(self, round: Round, client: int) -> Work:
        """One example."""
        del round
        one = slice(client, client + 1)
        return replace(self.held, ids=self.held.ids[one], labels=self.held.labels[one])

    def moved(self, round: Round, noise: Noise | None, executor: Executor) -> Tensor:
        """How far the silo's own steps lead from the weights that it received, (d,) fp64."""
        here = start = round.start.double()
        kept = round.kept
        for step in range(self.silos.steps):
            key = self._key(round, step)
            total = ClippedSum(len(start), self.config.clip)
            executor(self, replace(round, clients=self._drawn(key), start=here.float()), total)
            mean = noisy_mean(
                total.value[kept],
                noise=noise,
                rng=self.randomness.noise(key),
                denominator=self.silos.rate * self.silos.sizes[self.silo],
            )
            here = here.clone()
            here[kept] += mean
        return here - start

    def _key(self, round: Round, step: int) -> int:
        """A number of its own for every (round, silo, step), for streams that never repeat."""
        silos = len(self.tokens.data.clients)
        return (round.index * silos + self.silo) * self.silos.steps + step

    def _drawn(self, key: int) -> NDArray[np.int64]:
        """The examples of a step; a silo without any has an empty one."""
        count = len(self.held.ids)
        if count == 0:
            return np.zeros(0, dtype=np.int64)
        return poisson_cohort(count, rate=self.silos.rate, rng=self.randomness.cohort(key))
