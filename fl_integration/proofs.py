"""What is proved of a law that is added to a sum of clipped vectors, and by which accountant."""

from __future__ import annotations

import numpy as np

from accountants.rdp import renyi_divergence
from dpmech import Mechanism, NoDominatingPair, Noise
from dpmech.discrete import DiscreteNoise
from dpmech.guarantee import Guarantee


def check_has_density(noise: Noise) -> None:
    """Refuse what cannot be added to a sum of real numbers.

    Raises:
        ValueError: for a guarantee in the place of a noise. NoDominatingPair: for noise on the
            whole numbers.
    """
    if isinstance(noise, Guarantee):
        raise ValueError(f"Expected a noise to add, got the guarantee {noise}; name a law.")
    if isinstance(noise, DiscreteNoise):
        raise NoDominatingPair(
            f"{noise} protects whole numbers only, and a sum of real ones is none.",
            "Use a law with a density, such as gaussian, laplace or a searched one.",
        )


def accountant_for(*releases: Mechanism) -> str:
    """The accountant that proves most: ``pld``, or ``rdp`` where one of them has no pair."""
    try:
        for release in releases:
            _ = release.pairs()
    except NoDominatingPair:
        return "rdp"
    return "pld"


def check_bounded(release: Mechanism) -> None:
    """Refuse before anything is trained what no accountant could say a number about after it.

    Raises:
        NoDominatingPair: where there is neither a pair nor a finite Rényi divergence.
    """
    if accountant_for(release) == "rdp" and not np.any(
        np.isfinite(renyi_divergence(release, (1.01, 2.0)))
    ):
        raise NoDominatingPair(
            f"No bound is proved for {release.noise} on a vector of "
            f"dim={release.sensitivity.dim}: no finite Rényi divergence is known for it.",
            "Use gaussian, spherical-gg, gg, laplace, logistic or lmo noise.",
        )
