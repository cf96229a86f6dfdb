"""Every law under one contract: a test that takes ``every_law`` runs once for each in the list.

One that takes ``law_with_levels`` skips laws whose pair may know no masses between levels of the
loss.
"""

import pytest

from dpmech import (
    LMO,
    LMO_PRESETS,
    GeneralizedGaussian,
    LaplaceMixture,
    Noise,
    Staircase,
    TruncatedLaplace,
)
from dpmech.heavy_tailed import StudentT
from dpmech.lattice_mixtures import MultiGaussian, Tulap
from dpmech.logconcave import FlippedHuber, OffsetGaussian
from dpmech.parse import DEFAULTS

LAWS: tuple[Noise, ...] = (
    *DEFAULTS,
    GeneralizedGaussian(scale=1.3, beta=0.7),
    GeneralizedGaussian(scale=0.8, beta=3.0),
    *LMO_PRESETS.values(),
    LMO(a1=0.0, a3=0.0, a4=1.0, low=0.5, high=2.0),
    LMO(a1=0.4, a3=0.0, a4=0.0, k=3.5, theta=2.0),
    LMO(a1=0.3, a3=0.2, a4=0.0, k=2.0, rate=0.4),
    LMO(a1=0.3, a3=0.2, a4=0.3, k=2.0, rate=0.4, low=0.0, high=3.0, size=7.0),
    LaplaceMixture(scales=(0.2, 1.0, 9.0), weights=(1.0, 2.0, 0.5)),
    LaplaceMixture(scales=(2.0,), weights=(1.0,)),
    Staircase(epsilon=1.5, width=0.7, gamma=0.3),
    Staircase(epsilon=0.6, width=1.9, gamma=0.8),
    TruncatedLaplace(b=2.0, bound=1.5),
    OffsetGaussian(sigma=1.5, offset=20.0),
    FlippedHuber(sigma=0.7, alpha=0.2),
    StudentT(scale=0.6, df=40.0),
    Tulap(epsilon=0.6, width=1.9, delta=0.0),
    Tulap(epsilon=0.8, width=1.1, delta=0.2),
    MultiGaussian(sigma=1.3, width=0.7, epsilon=0.3),
)


def _label(law: Noise) -> str:
    return str(law)[:48]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "every_law" in metafunc.fixturenames:
        metafunc.parametrize("every_law", LAWS, ids=_label)
    if "law_with_levels" in metafunc.fixturenames:
        known = [law for law in LAWS if not isinstance(law, MultiGaussian)]
        metafunc.parametrize("law_with_levels", known, ids=_label)
