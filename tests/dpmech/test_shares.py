"""Shares of noise: their sum has the law, more only add, fewer are not opened."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dpmech import Gaussian
from dpmech.discrete import DiscreteLaplace
from dpmech.drawing import seeded_words
from dpmech.shares import SharedNoise
from dpmech.skellam import Skellam

LAWS = (Skellam(mu=30.0), Skellam(mu=0.8), DiscreteLaplace(b=3.0))


def chi2_p(drawn: np.ndarray, law: Skellam | DiscreteLaplace) -> float:
    k = np.arange(-60, 61)
    expected = len(drawn) * law.pdf(k)
    kept = expected > 8
    counts = np.array([np.sum(drawn == v) for v in k[kept]])
    return float(
        stats.chi2.sf(np.sum((counts - expected[kept]) ** 2 / expected[kept]), int(kept.sum()))
    )


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("honest", [1, 4, 25])
def test_the_sum_of_the_shares_has_the_law(law: Skellam | DiscreteLaplace, honest: int) -> None:
    noise, words = SharedNoise(law=law, honest=honest), seeded_words(np.random.default_rng(honest))
    total = sum(noise.share(60_000, words) for _ in range(honest))
    assert isinstance(total, np.ndarray)
    assert chi2_p(total, law) > 1e-4
    more = total + sum(noise.share(60_000, words) for _ in range(1 + honest // 5))
    assert chi2_p(more, law) < 1e-4  # too many are another law
    assert noise.distance < 2.0**-100
    assert noise.extra_delta(2.0, coordinates=10**6, releases=10**4) < 1e-18


def test_a_round_of_secure_aggregation() -> None:
    noise, words = (
        SharedNoise(law=Skellam(mu=9.0), honest=8),
        seeded_words(np.random.default_rng(0)),
    )
    values = np.random.default_rng(1).integers(-1000, 1000, (10, 4000))
    sent = [noise.masked(v, bits=16, words=words) for v in values]
    assert all(s.min() >= 0 and s.max() < 2**16 for s in sent)
    left = noise.opened(sent, bits=16) - values.sum(0)
    assert np.var(left) == pytest.approx(9.0 * 10 / 8, rel=0.15)  # ten shares of 9/8
    survivors = noise.opened(sent[:8], bits=16) - values[:8].sum(0)
    assert chi2_p(survivors, Skellam(mu=9.0)) > 1e-4


def test_what_a_party_sends_alone_says_little_without_the_others() -> None:
    """The share is small: secure aggregation, not the share, hides a party from the others."""
    noise = SharedNoise(law=Skellam(mu=9.0), honest=100)
    sent = noise.masked(np.full(1000, 500), bits=16)
    assert np.mean(sent == 500) > 0.8


def test_a_round_with_too_few_is_not_opened() -> None:
    noise = SharedNoise(law=Skellam(mu=9.0), honest=3)
    sent = [noise.masked(np.zeros(2, dtype=np.int64), bits=16) for _ in range(4)]
    assert noise.opened(sent, bits=16).shape == (2,)
    assert noise.opened(sent, bits=16, dishonest=1).shape == (2,)
    for few, dishonest in ((sent[:2], 0), (sent, 2), ([], 0)):
        with pytest.raises(ValueError, match="do not open this round"):
            noise.opened(few, bits=16, dishonest=dishonest)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="sums of other laws"):
        SharedNoise(law=Gaussian(sigma=1.0), honest=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="honest=0"):
        SharedNoise(law=Skellam(mu=1.0), honest=0)
    noise = SharedNoise(law=Skellam(mu=1.0), honest=1)
    with pytest.raises(ValueError, match="round them first"):
        noise.masked(np.zeros(2), bits=16)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bits=63"):
        noise.masked(np.zeros(2, dtype=np.int64), bits=63)
