"""Noise laws, mechanisms and privacy plans. Accountants, search and training live upstairs."""

from __future__ import annotations

import typing
from importlib import import_module

if typing.TYPE_CHECKING:
    from dpmech.errors import NoDominatingPair, Unattainable
    from dpmech.families import Gaussian, GeneralizedGaussian, Laplace, Staircase, TruncatedLaplace
    from dpmech.loss import DominatingPair
    from dpmech.mechanism import Mechanism, Sensitivity
    from dpmech.mixture import LMO, LMO_PRESETS, LaplaceMixture
    from dpmech.noise import Noise
    from dpmech.parse import noise_from_dict, parse_noise
    from dpmech.plan import PrivacyPlan, Target
    from dpmech.sampling import Sampling

    __version__: str

# Imported on first use: `dpmech --help` must not wait for numpy and scipy (PEP 562).
_HOMES = {
    "errors": ("NoDominatingPair", "Unattainable"),
    "families": ("Gaussian", "GeneralizedGaussian", "Laplace", "Staircase", "TruncatedLaplace"),
    "loss": ("DominatingPair",),
    "mechanism": ("Mechanism", "Sensitivity"),
    "mixture": ("LMO", "LMO_PRESETS", "LaplaceMixture"),
    "noise": ("Noise",),
    "parse": ("noise_from_dict", "parse_noise"),
    "plan": ("PrivacyPlan", "Target"),
    "sampling": ("Sampling",),
}

__all__ = [
    "LMO",
    "LMO_PRESETS",
    "DominatingPair",
    "Gaussian",
    "GeneralizedGaussian",
    "Laplace",
    "LaplaceMixture",
    "Mechanism",
    "NoDominatingPair",
    "Noise",
    "PrivacyPlan",
    "Sampling",
    "Sensitivity",
    "Staircase",
    "Target",
    "TruncatedLaplace",
    "Unattainable",
    "noise_from_dict",
    "parse_noise",
]


def __getattr__(name: str) -> object:
    """A public name, from its module."""
    for module, names in _HOMES.items():
        if name in names:
            found = getattr(import_module(f"dpmech.{module}"), name)
            globals()[name] = found  # asked once
            return found
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'dpmech' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dpmech")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"
