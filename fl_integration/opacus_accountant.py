"""Our accountants in the place of Opacus's: PLD by the name ``dpmech``, and one with a ledger.

:class:`PLDAccountant` is for Opacus's own engine and Gaussian noise; :class:`LedgerAccountant` is
that of :class:`~fl_integration.opacus_engine.NoiseEngine`, for noise of any law.

The module needs the extra ``opacus``; it is imported by those who use Opacus, and by nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from accountants import PLD, Ledger
from dpmech import Gaussian, Mechanism, Sampling
from fl_integration.gradient_release import spent

try:
    from opacus.accountants import IAccountant, register_accountant
except ImportError as error:
    raise ImportError(
        f"The accountant for Opacus needs the opacus package ({error}): "
        "pip install 'dpmech[opacus]'.",
        name="opacus",
    ) from None

__all__ = ["LEDGER", "NAME", "LedgerAccountant", "PLDAccountant", "register", "sampled_rate"]

NAME = "dpmech"
LEDGER = "dpmech-ledger"
_STEPS_OF_RAND = 2.0**24


def sampled_rate(rate: float) -> float:
    """The probability that Opacus's sampler takes a record where ``rate`` is asked for.

    It takes those with ``torch.rand() < rate``, in fp32: multiples of 2^-24, of which as many are
    below the rate as fit, 0 among them. So it is up to 2^-24 above ``rate``, and never below.

    >>> sampled_rate(0.25), sampled_rate(1e-9) == 2.0**-24
    (0.25, True)
    """
    rate = float(rate)
    return max(rate, float(np.ceil(np.float64(np.float32(rate)) * _STEPS_OF_RAND)) / _STEPS_OF_RAND)


class PLDAccountant(IAccountant):  # type: ignore[misc]  # opacus carries no types
    """Opacus's accounting of DP-SGD by :class:`accountants.PLD`.

    **Guarantees.** :meth:`get_epsilon` is a proved upper bound under add/remove of one record, for
    Poisson sampling, which is what Opacus's data loader does unless it is told otherwise, at the
    rate that its draws give (`sampled_rate`), which is not always the one that is asked for.

    >>> accountant = PLDAccountant()
    >>> accountant.step(noise_multiplier=1.0, sample_rate=0.01)
    >>> accountant.history
    [(1.0, 0.01, 1)]
    """

    def __init__(self) -> None:
        self.history: list[tuple[float, float, int]] = []

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """Count one optimiser step at the rate that is asked for; equal neighbours are gathered."""
        count = 1
        if self.history and tuple(self.history[-1][:2]) == (noise_multiplier, sample_rate):
            count += self.history.pop()[2]
        self.history.append((noise_multiplier, sample_rate, count))

    def ledger(self) -> Ledger:
        """The steps so far, as mechanisms; ValueError where a step adds no noise."""
        ledger = Ledger()
        for multiplier, rate, count in self.history:
            noise, sampling = Gaussian(sigma=float(multiplier)), Sampling(rate=sampled_rate(rate))
            ledger = ledger.add(Mechanism(noise=noise, sampling=sampling), int(count))
        return ledger

    def get_optimizer_hook_fn(self, sample_rate: float) -> Callable[[Any], None]:
        """What an optimiser calls in every step.

        The batches of a step are sampled one by one, so the rate is rounded before they are
        counted: the rounded rate of all together would be less.
        """
        return super().get_optimizer_hook_fn(sample_rate=sampled_rate(sample_rate))

    def get_epsilon(self, delta: float, *, tolerance: float = 1e-4) -> float:
        """A proved upper bound on the epsilon spent so far at ``delta``; 0 before the first step.

        ``tolerance`` is the relative gap to the lower bound to aim at.
        """
        return PLD(tolerance=tolerance).compose_ledger(self.ledger()).epsilon(delta)

    def __len__(self) -> int:
        """The number of different phases, as in Opacus's own accountants."""
        return len(self.history)

    @classmethod
    def mechanism(cls) -> str:
        """The name to choose it by."""
        return NAME


class Releasing(Protocol):
    """An optimiser that knows the mechanism of its step."""

    release: Mechanism


class LedgerAccountant(IAccountant):  # type: ignore[misc]  # opacus carries no types
    """The mechanisms of the steps that ran, whatever their noise.

    **Guarantees.** :meth:`get_epsilon` is a proved upper bound under add/remove of one example for
    everything in :attr:`ledger`; each step enters it with the mechanism that the optimiser ran.

    >>> accountant = LedgerAccountant()
    >>> accountant.step(noise_multiplier=1.0, sample_rate=0.01)
    >>> accountant.ledger.runs
    1
    """

    def __init__(self) -> None:
        self.ledger = Ledger()

    @property
    def history(self) -> str:
        """The ledger as JSON: what Opacus's checkpoints keep."""
        return self.ledger.to_json()

    @history.setter
    def history(self, text: str) -> None:
        self.ledger = Ledger.from_json(text)

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """Count a step with Gaussian noise, which is all that Opacus's own optimisers tell."""
        noise = Gaussian(sigma=noise_multiplier)
        sampling = Sampling(rate=sampled_rate(sample_rate))
        self.ledger = self.ledger.add(Mechanism(noise=noise, sampling=sampling))

    def get_optimizer_hook_fn(self, sample_rate: float) -> Callable[[Releasing], None]:
        """What an optimiser calls in every step; the rate is that of its release."""
        del sample_rate  # 1/len(loader), which need not be the rate that is sampled at

        def count(optimizer: Releasing) -> None:
            self.ledger = self.ledger.add(optimizer.release)

        return count

    def get_epsilon(self, delta: float) -> float:
        """A proved upper bound on the epsilon so far at ``delta``; 0 before the first step."""
        return spent(self.ledger, delta)

    def __len__(self) -> int:
        """The number of different phases, as in Opacus's own accountants."""
        return len(self.ledger.entries)

    @classmethod
    def mechanism(cls) -> str:
        """The name in checkpoints."""
        return LEDGER


def register() -> None:
    """Make ``PrivacyEngine(accountant="dpmech")`` and ``get_noise_multiplier`` know it.

    Registering again changes nothing.
    """
    register_accountant(NAME, PLDAccountant, force=True)
