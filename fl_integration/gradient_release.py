"""One step of private training as a mechanism: a sum of clipped gradients, plus noise of any law.

The law is in units of the clip, as Opacus's ``noise_multiplier`` is: what is added to the sum of
gradients of norm C at most is ``noise.scaled(C)``, and what is accounted for is ``noise`` at
sensitivity 1. The rate is that at which the batch is drawn.
"""

from __future__ import annotations

from accountants import Ledger, accountant_named
from dpmech import Mechanism, Noise, Sampling, Sensitivity
from fl_integration.accounting import ledger_epsilon
from fl_integration.proofs import accountant_for, check_bounded, check_has_density


def gradient_release(noise: Noise, *, dim: int, rate: float) -> Mechanism:
    """The mechanism of one step, for one example added to the data or removed from it.

    **Guarantees**

    * It is returned only where an accountant proves something about it: of a Gaussian or spherical
      law by its dominating pair, of independent coordinates by mathematics.md §6.3.

    Arguments:
        noise: the law added to the sum, in units of the clip. dim: trained coordinates.
        rate: the probability with which an example is in the batch.

    Raises:
        NoDominatingPair: where nothing is proved, as for noise on whole numbers.
        ValueError: for a guarantee in the place of a law, and a spherical law of another dim.

    >>> from dpmech import Gaussian
    >>> gradient_release(Gaussian(sigma=1.0), dim=10, rate=0.01).sensitivity.bound
    1.0
    """
    check_has_density(noise)
    release = Mechanism(
        noise=noise,
        sensitivity=Sensitivity(norm="l2", bound=1.0, dim=dim),
        sampling=Sampling(rate=rate),
    )
    check_bounded(release)
    return release


def spent(ledger: Ledger, delta: float) -> float:
    """An upper bound on the epsilon of a ledger at ``delta``; 0 for an empty one.

    Raises:
        NoDominatingPair: where nothing is proved. ValueError: for a delta outside (0, 1).
    """
    used = accountant_for(*(release for release, _ in ledger.entries))
    if not ledger.entries:
        return float(accountant_named(used).epsilon(delta))
    return ledger_epsilon(ledger, accountant=used, delta=delta)
