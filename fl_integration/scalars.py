"""Scalars that a run releases beside its vectors: each its own mechanism, on a sample of its own.

A quantile for the clip, how many clients answer, a metric of clients' own data: all are sums of one
clipped number a client plus scalar noise. A scalar may use any law with a proved pair, which a
vector may not, so here the searched laws pay (``dpmech search -o law.npz``, read by
``parse_noise("file:law.npz")``).

**A sample of its own.** Two entries of a ledger stand for two samples, drawn independently. From
the cohort that also sends its vectors, a client would be in both releases or in neither, and only
of Gaussian releases is a joint pair proved (:meth:`~dpmech.mechanism.Mechanism.jointly`); for those
`split_jointly` says how much more noise the vectors need.

Symbols: N clients, q sampling rate of the scalar, m its expected sample q·N, [low, high] the range
that a client's number is clipped to, c its centre.
Source: federated.md §3; Andrew et al. (2021), §3 and Theorem 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dpmech import Gaussian, Mechanism, Noise, Sensitivity
from dpmech.noise import Floats
from dpmech.plan import Entries
from fl_integration.accounting import check_same, scalar_release
from fl_integration.clipping import ROUNDING_MARGIN
from fl_integration.queries import ScalarQuery
from fl_integration.sampler import Randomness, Rng, noise_of, poisson_cohort

Numbers = Callable[[NDArray[np.int64]], Floats]

_ROUNDING = 1e-12  # relative; what a few operations in fp64 may lose, and more
_SAMPLE, _NOISE = 5, 6  # keys of their own, after those of the other streams


def scalar_mechanism(query: ScalarQuery, noise: Noise, *, clients: int) -> Mechanism:
    """The mechanism of one release of a query.

    **Guarantees**: sensitivity and rate are the query's; only a law with a proved pair for a
    real-valued scalar comes back.

    Arguments:
        noise: the law on the *sum*, in units of a client's number. clients: N, public.

    Raises:
        NoDominatingPair: from a law without a pair, and from one on the whole numbers.
        ValueError: for a guarantee in the place of a noise, or a sample above N.

    >>> query = ScalarQuery(name="accuracy", cohort=50)
    >>> scalar_mechanism(query, Gaussian(sigma=4.0), clients=5000).sampling.rate
    0.01
    """
    if not query.cohort <= clients:
        raise ValueError(f"Expected cohort={query.cohort} <= {clients} clients.")
    return scalar_release(noise, bound=query.bound, rate=query.cohort / clients)


def entries_of(
    queries: Sequence[ScalarQuery], noises: Sequence[Noise], *, clients: int, rounds: int
) -> Entries:
    """What the queries of a run spend, one entry each: for ``calibrate_scale(others=...)``."""
    return tuple(
        (scalar_mechanism(query, noise, clients=clients), query.count(rounds))
        for query, noise in zip(queries, noises, strict=True)
    )


def check_others(
    others: Entries, queries: Sequence[ScalarQuery], *, clients: int, rounds: int
) -> None:
    """Refuse a plan whose other releases are not the run's queries, in their order.

    Raises:
        ValueError: naming the first thing that differs, the plan's value and the run's.
        NoDominatingPair: from a law without a pair.
    """
    check_same("number of other releases", len(others), len(queries))
    for query, (planned, count) in zip(queries, others, strict=True):
        needed = scalar_mechanism(query, planned.noise, clients=clients)
        for part in ("sensitivity", "sampling", "relation"):
            check_same(f"{query.name}: {part}", getattr(planned, part), getattr(needed, part))
        check_same(f"{query.name}: count", count, query.count(rounds))


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Where a query's sample and noise come from: streams that no other part of a run reads.

    randomness: of the run. place: which of the run's queries this is.
    """

    randomness: Randomness
    place: int

    def sample(self, round: int) -> Rng:
        """The generator that draws whom a release asks; ``None``: secret words."""
        return self._of(_SAMPLE, round)

    def noise(self, round: int) -> Rng:
        """The generator of a release's noise; ``None``: secret words."""
        return self._of(_NOISE, round)

    def _of(self, stream: int, round: int) -> Rng:
        """Seeded for experiments, else nothing that could be replayed."""
        if self.randomness.secret_seed is None:
            return None
        key = (stream, self.place, round)
        return np.random.default_rng(
            np.random.SeedSequence(self.randomness.secret_seed, spawn_key=key)
        )


def release_scalar(
    query: ScalarQuery,
    numbers: Numbers,
    noise: Noise,
    *,
    clients: int,
    streams: Streams,
    round: int,
) -> float:
    """Ask a Poisson sample of the clients for a number each, and release their noised mean or sum.

    **Guarantees**: those of `ScalarQuery`; the sample is drawn here, for this release and nothing
    else; an empty sample releases noise.

    Draws noise: write down the spend, that of `scalar_mechanism`, before calling it.

    Arguments:
        numbers: (n,) clients -> (n,) a number of each, a function of that client's data and of
            what is public; read only for the sample. noise: the law on the sum.
        clients: N, public. round: of the run.

    Raises:
        ValueError: for a wrong number of numbers.
    """
    rate = query.cohort / clients
    drawn = poisson_cohort(clients, rate=rate, rng=streams.sample(round))
    values = np.asarray(numbers(drawn), dtype=np.float64)
    if values.shape != drawn.shape:
        raise ValueError(f"Expected {len(drawn)} numbers, one a client, got shape {values.shape}.")
    return noised(query, values, noise, rate=rate, rng=streams.noise(round))


def noised(query: ScalarQuery, values: Floats, noise: Noise, *, rate: float, rng: Rng) -> float:
    """Release the mean or the sum of the numbers of a sample that was drawn elsewhere.

    For a joint release: the sample is then that of the other Gaussian release (`split_jointly`).
    """
    total = math.fsum(contributions(query, values)) + float(noise_of(noise, 1, rng)[0])
    return total / (query.cohort if query.of == "mean" else rate) + query.centre


def contributions(query: ScalarQuery, values: Floats) -> Floats:
    """What each client adds to the sum, (n,): its number, clipped and centred.

    **Guarantees**: each in [-bound, bound] whatever the numbers are, with a margin for the rounding
    of the sum; one that is not finite becomes 0 *before* the clip.
    """
    finite = np.isfinite(values)
    centred = np.clip(np.where(finite, values, 0.0), query.low, query.high) - query.centre
    limit = query.bound * (1.0 - ROUNDING_MARGIN)
    return np.where(finite, np.clip(centred, -limit, limit), 0.0)


def joint(release: Mechanism, query: ScalarQuery, noise: Noise) -> Mechanism:
    """The one mechanism of a release and a query that are answered by the same sample.

    Raises:
        NoDominatingPair: unless both are Gaussian; release the query from a sample of its own.
    """
    return release.jointly(_in_sample(release, query, noise))


def split_jointly(release: Mechanism, query: ScalarQuery, noise: Noise) -> Mechanism:
    """The release with so much more noise that, jointly with the query, it costs what it cost.

    From one sample, both Gaussian: (C/σ)² + (bound/σ_b)² is to be what (C/σ)² was, so a plan that
    was made for the vectors alone pays for both.

    **Guarantees**: `joint` of the result and the query, the mechanism to put in the ledger, has no
    larger a ratio of bound to noise than ``release`` has.

    Arguments:
        release: of the vectors, Gaussian in l2, as planned. noise: of the query, on its sum.

    Returns:
        the release of the vectors as it must run.

    Raises:
        ValueError: where the query alone costs as much. NoDominatingPair: for other noise.

    >>> planned = Mechanism(noise=Gaussian(sigma=1.0), sampling=Sampling(rate=0.01))
    >>> query = ScalarQuery(name="quantile", cohort=10)
    >>> round(split_jointly(planned, query, Gaussian(sigma=5.0)).noise.sigma, 6)  # 1/√(1 − .1²)
    1.005038

    Source: Andrew et al. (2021), Theorem 1.
    """
    whole = release.jointly().sensitivity.bound  # C/σ; refuses what is not Gaussian
    share = _in_sample(release, query, noise).jointly().sensitivity.bound
    left = whole**2 * (1 - _ROUNDING) - share**2
    if left <= 0:
        raise ValueError(
            f"Expected {query.name}: bound/sigma={share:g} to be below the release's {whole:g};"
            " give the query more noise."
        )
    split = replace(release, noise=Gaussian(sigma=release.sensitivity.bound / math.sqrt(left)))
    if not joint(split, query, noise).sensitivity.bound <= whole:
        raise ValueError(f"Expected {split.noise} with {noise} to cost what {release.noise} does.")
    return split


def _in_sample(release: Mechanism, query: ScalarQuery, noise: Noise) -> Mechanism:
    """The query alone, in a sample such as the release's."""
    sensitivity = Sensitivity(norm="l2", bound=query.bound, dim=1)
    return replace(release, noise=noise, sensitivity=sensitivity)
