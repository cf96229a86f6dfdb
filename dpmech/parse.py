"""Noise written as text, ``NAME[:key=value,…]``, and as the dictionaries of JSON files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from dpmech.discrete import DiscreteGaussian, DiscreteLaplace
from dpmech.families import Gaussian, GeneralizedGaussian, Laplace, Staircase, TruncatedLaplace
from dpmech.guarantee import ApproximateDP, RandomizedResponse
from dpmech.heavy_tailed import StudentT
from dpmech.lattice import LatticeNoise
from dpmech.lattice_mixtures import MultiGaussian, Tulap
from dpmech.logconcave import FlippedHuber, Logistic, OffsetGaussian
from dpmech.mixture import LMO, LMO_PRESETS, LaplaceMixture
from dpmech.noise import Noise
from dpmech.skellam import Skellam
from dpmech.spherical import SphericalGeneralizedGaussian
from dpmech.tabulated import Tabulated, TabulatedSpherical

# Every law with a density, with the parameters it takes when none are written: unit scale, or
# the published ones.
DEFAULTS: tuple[Noise, ...] = (
    Gaussian(sigma=1.0),
    Laplace(b=1.0),
    GeneralizedGaussian(scale=1.0, beta=1.4),
    Staircase.least_mean_abs(1.0),
    TruncatedLaplace.for_target(1.0, 1e-5),
    LMO(),
    LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7)),
    OffsetGaussian(sigma=1.0, offset=1.0),
    FlippedHuber(sigma=1.0, alpha=1.0),
    Logistic(scale=1.0),
    StudentT(scale=1.0, df=3.0),
    Tulap(epsilon=1.0, width=1.0, delta=1e-5),
    MultiGaussian(sigma=0.5, width=1.0, epsilon=1.0),
)
# Laws on the whole numbers, releases that are known by their guarantee alone, laws of vectors.
OTHERS: tuple[Noise, ...] = (
    DiscreteGaussian(sigma=1.0),
    DiscreteLaplace(b=1.0),
    Skellam(mu=1.0),
    LatticeNoise(masses=(0.25, 0.125)),
    ApproximateDP(epsilon=1.0),
    RandomizedResponse(epsilon=1.0),
    SphericalGeneralizedGaussian(scale=1.0, beta=1.4, dim=2),
    Tabulated(edges=(0.0, 1.0, 2.0), masses=(0.6, 0.3), decay=0.25),
    TabulatedSpherical(edges=(0.0, 1.0, 2.0), masses=(0.6, 0.4), dim=2),
)
# Short keys of the command line that stand for longer field names.
_ALIASES = {"w": "weights", "b": "scales"}


def law_names() -> tuple[str, ...]:
    """The laws with a density that :func:`parse_noise` knows; it knows ``OTHERS`` as well."""
    return tuple(law.name for law in DEFAULTS)


def _default(name: str) -> Noise:
    for law in (*DEFAULTS, *OTHERS):
        if law.name == name:
            return law
    known = ", ".join((*law_names(), *(law.name for law in OTHERS), "file"))
    raise ValueError(f"Unknown law {name!r}; the laws are {known}.")


def noise_from_dict(data: Mapping[str, object]) -> Noise:
    """The law that :meth:`Noise.to_dict` described.

    Raises ValueError naming the law, key or value that is wrong.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"Expected the description of a law, got {data!r}.")
    rest = {key: value for key, value in data.items() if key != "name"}
    default = _default(str(data.get("name")))
    known = [field.name for field in dataclasses.fields(default)]  # type: ignore[arg-type]
    for key in rest:
        if key not in known:
            raise ValueError(
                f"Unknown parameter {key!r} of {default.name}; it has {', '.join(known)}."
            )
    try:
        values = {
            key: tuple(map(float, cast("list[float]", value)))
            if isinstance(default.parameters()[key], tuple)
            else float(cast("float", value))
            for key, value in rest.items()
        }
    except (TypeError, ValueError):
        raise ValueError(f"Expected numbers as parameters of {default.name}, got {rest}.") from None
    return type(default)(**{**default.parameters(), **values})


def parse_noise(text: str) -> Noise:
    """The law written ``NAME[:key=value,…]``, or read from a result file by ``file:PATH``.

    Keys left out keep the defaults of ``dpmech laws``. Lists are written with slashes.

    >>> parse_noise("laplace-mixture:b=.5/5,w=.3/.7").variance
    35.15
    >>> str(parse_noise("gaussian:sigma=2"))
    'gaussian:sigma=2.0'
    """
    name, _, rest = text.strip().partition(":")
    if name == "file":
        return _noise_from_file(Path(rest))
    default = _default(name)
    keys: dict[str, object] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"Expected key=value, got {part!r} in {text!r}.")
        keys[_field(default, key.strip())] = value.strip()
    if name == "lmo" and "preset" in keys:
        default = _preset(str(keys.pop("preset")))
    listed = default.parameters()
    spread = {
        key: str(value).split("/") if isinstance(listed.get(key), tuple) else value
        for key, value in keys.items()
    }
    return noise_from_dict({**default.to_dict(), **spread})


def _field(law: Noise, key: str) -> str:
    return _ALIASES.get(key, key) if isinstance(law, LaplaceMixture) else key


def _preset(key: str) -> LMO:
    for name, law in LMO_PRESETS.items():
        if key in (name, f"{float(name)}"):
            return law
    raise ValueError(f"Unknown preset {key!r} of lmo; the presets are {', '.join(LMO_PRESETS)}.")


def _noise_from_file(path: Path) -> Noise:
    """A law saved by a search (.npz) or as JSON (a law, or a plan with a mechanism)."""
    import json

    import numpy as np

    if not path.is_file():
        raise ValueError(f"No such file: {str(path)!r}.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                data = json.loads(str(stored["law"]))
        else:
            data = json.loads(path.read_text())
        data = data.get("mechanism", data).get("noise", data.get("mechanism", data))
    except (OSError, KeyError, ValueError, AttributeError, EOFError) as error:
        raise ValueError(f"{str(path)!r} does not hold a law ({error}).") from None
    return noise_from_dict(data)
