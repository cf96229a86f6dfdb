"""Draws against the law that they are declared to have: the verdict of several tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from accountants._audit_looks import SamplerTest, looks_for
from dpmech.noise import Noise

_LEAST_DRAWS = 1_000
Draw = Callable[[int], ArrayLike]


@dataclass(frozen=True, kw_only=True)
class SamplerAudit:
    """What ``tests`` say of ``draws`` draws that are declared to be independent ones of ``law``.

    **Guarantees.** Draws of the law are rejected with probability ``level`` at most, all tests
    together (Bonferroni), whatever the number of draws.
    """

    law: str
    draws: int
    level: float
    tests: tuple[SamplerTest, ...]

    @property
    def rejected(self) -> tuple[SamplerTest, ...]:
        """The tests that a faithful sampler would hardly fail, the clearest first."""
        failed = (t for t in self.tests if t.p_value * len(self.tests) <= self.level)
        return tuple(sorted(failed, key=lambda test: test.p_value))

    @property
    def verdict(self) -> Literal["refuted", "consistent"]:
        """``refuted``, or ``consistent``: which proves no more than the power says."""
        return "refuted" if self.rejected else "consistent"

    @property
    def power(self) -> float | None:
        """The least relative error of the scale that any of the tests would have caught."""
        return min((t.power for t in self.tests if t.power is not None), default=None)

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        if self.rejected:
            worst = self.rejected[0]
            return (
                f"Refuted: the {self.draws} draws are not {self.law}: {worst.found}; a faithful "
                f"sampler does so with probability {max(worst.p_value, 1e-300):.1e} at most."
            )
        sentence = f"Consistent: nothing speaks against the {self.draws} draws as {self.law}"
        if self.power is None:
            return f"{sentence}."
        percent = f"{100 * self.power:.2g} %"
        return f"{sentence}; a scale off by {percent} is caught 19 times in 20."


def audit_sampler(
    law: Noise, draw: Draw, *, draws: int = 100_000, level: float = 1e-4
) -> SamplerAudit:
    """Test what ``draw(count)`` returns, in two calls, against the law it is declared to have.

    **Guarantees.** Those of :class:`SamplerAudit`. The randomness is the callable's own, as it is
    the sampler that is on trial; two calls show one that starts anew at every call.

    Raises ValueError for draws that are not numbers, or too few.

    >>> from dpmech import Laplace
    >>> rng = np.random.default_rng(1)
    >>> audit_sampler(Laplace(b=1.0), lambda n: rng.laplace(0.0, 1.0, n)).verdict
    'consistent'
    >>> audit_sampler(Laplace(b=1.0), lambda n: rng.laplace(0.0, 1.05, n)).verdict
    'refuted'
    """
    first = draws // 2
    parts = [np.asarray(draw(count)) for count in (first, draws - first)]
    return audit_draws(law, np.concatenate([part.ravel() for part in parts]), level=level)


def audit_draws(law: Noise, draws: ArrayLike, *, level: float = 1e-4) -> SamplerAudit:
    """Test draws, of any shape, against the law: :func:`audit_sampler` for draws that are there.

    >>> from dpmech import Gaussian
    >>> audit = audit_draws(Gaussian(sigma=1.0), np.random.default_rng(1).standard_normal(20_000))
    >>> audit.verdict, audit.power < 0.06
    ('consistent', True)
    """
    given = np.asarray(draws).ravel()
    if len(given) < _LEAST_DRAWS:
        raise ValueError(f"Expected {_LEAST_DRAWS} draws or more, got {len(given)}.")
    if not 0 < level < 1:
        raise ValueError(f"Expected level={level} in (0, 1).")
    x = given.astype(np.float64)
    if not np.all(np.isfinite(x)):
        raise ValueError(f"Expected finite draws, got {int(np.sum(~np.isfinite(x)))} that are not.")
    looks = looks_for(law, doubles=given.dtype == np.float64)
    tests = tuple(look(law, x, level / len(looks)) for look in looks)
    return SamplerAudit(law=str(law), draws=len(x), level=level, tests=tests)
