"""Our PLD accountant in the place of Opacus's, chosen there by the name ``dpmech``.

The module needs the extra ``opacus``; it is imported by those who use Opacus, and by nothing here.
"""

from __future__ import annotations

from accountants import PLD, Ledger
from dpmech import Gaussian, Mechanism, Sampling

try:
    from opacus.accountants import IAccountant, register_accountant
except ImportError as error:
    raise ImportError(
        f"The accountant for Opacus needs the opacus package ({error}): "
        "pip install 'dpmech[opacus]'.",
        name="opacus",
    ) from None

__all__ = ["NAME", "PLDAccountant", "register"]

NAME = "dpmech"


class PLDAccountant(IAccountant):  # type: ignore[misc]  # opacus carries no types
    """Opacus's accounting of DP-SGD by :class:`accountants.PLD`.

    **Guarantees.** :meth:`get_epsilon` is a proved upper bound under add/remove of one record, for
    Poisson sampling, which is what Opacus's data loader does unless it is told otherwise.

    >>> accountant = PLDAccountant()
    >>> accountant.step(noise_multiplier=1.0, sample_rate=0.01)
    >>> accountant.history
    [(1.0, 0.01, 1)]
    """

    def __init__(self) -> None:
        self.history: list[tuple[float, float, int]] = []

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """Count one optimiser step; equal neighbours are gathered."""
        count = 1
        if self.history and tuple(self.history[-1][:2]) == (noise_multiplier, sample_rate):
            count += self.history.pop()[2]
        self.history.append((noise_multiplier, sample_rate, count))

    def ledger(self) -> Ledger:
        """The steps so far, as mechanisms; ValueError where a step adds no noise."""
        ledger = Ledger()
        for multiplier, rate, count in self.history:
            noise, sampling = Gaussian(sigma=float(multiplier)), Sampling(rate=float(rate))
            ledger = ledger.add(Mechanism(noise=noise, sampling=sampling), int(count))
        return ledger

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


def register() -> None:
    """Make ``PrivacyEngine(accountant="dpmech")`` and ``get_noise_multiplier`` know it.

    Registering again changes nothing.
    """
    register_accountant(NAME, PLDAccountant, force=True)
