"""A mechanism = noise + sensitivity + sampling; and for which of them a pair is proved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, Self, cast, get_args

from dpmech.errors import NoDominatingPair
from dpmech.families import Gaussian, Laplace
from dpmech.loss import DominatingPair, SubsampledPair, pair_of
from dpmech.noise import Noise, checked_positive
from dpmech.parse import noise_from_dict

Norm = Literal["l1", "l2", "linf"]
_NORMS: tuple[str, ...] = get_args(Norm)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Bound on the ``norm`` of the change of a ``dim``-dimensional query, in units of the query."""

    norm: Norm = "l2"
    bound: float = 1.0
    dim: int = 1

    def __post_init__(self) -> None:
        if self.norm not in _NORMS:
            raise ValueError(f"Expected norm={self.norm!r} to be one of {', '.join(_NORMS)}.")
        checked_positive("sensitivity", self.bound)
        if not (isinstance(self.dim, int) and self.dim >= 1):
            raise ValueError(f"Expected dim={self.dim} to be a whole number, 1 or above.")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Poisson sampling: every record takes part independently with probability ``rate``."""

    rate: float = 1.0
    kind: str = "poisson"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"Expected rate={self.rate} in (0, 1].")
        if self.kind != "poisson":
            raise NoDominatingPair(
                f"No pair is proved here for sampling={self.kind!r}: it is not Poisson sampling, "
                "and amplification must not be claimed as if it were (mathematics.md §3).",
                "Sample every record independently (kind='poisson'), or claim rate=1.",
            )


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """One release: a query of bounded sensitivity on a Poisson sample, plus ``noise``.

    **Guarantees.** :meth:`pairs` returns only pairs proved to dominate (mathematics.md §3, §6);
    everything else raises NoDominatingPair.

    >>> from dpmech import Gaussian, Mechanism
    >>> len(Mechanism(noise=Gaussian(sigma=1.0)).pairs())
    1
    """

    noise: Noise
    sensitivity: Sensitivity = field(default_factory=Sensitivity)
    sampling: Sampling = field(default_factory=Sampling)
    relation: str = "add-remove"

    def __post_init__(self) -> None:
        if self.relation != "add-remove":
            raise NoDominatingPair(
                f"No pair is proved here for relation={self.relation!r}.",
                "Use relation='add-remove'; replacing a record is a removal and then an addition, "
                "so doubling the sensitivity covers it at rate=1.",
            )

    def base_pair(self) -> DominatingPair:
        """The pair of the release before sampling: P centred at the sensitivity, Q at 0."""
        self._refuse_unproved()
        return pair_of(self.noise, self.sensitivity.bound)

    def pairs(self) -> tuple[DominatingPair, ...]:
        """The pairs to compose, one per direction: (remove, add); at rate 1 they coincide."""
        base, rate = self.base_pair(), self.sampling.rate
        if rate == 1:
            return (base,)
        return (
            SubsampledPair(base=base, rate=rate, direction="remove"),
            SubsampledPair(base=base, rate=rate, direction="add"),
        )

    def _refuse_unproved(self) -> None:
        norm, dim = self.sensitivity.norm, self.sensitivity.dim
        proved = dim == 1 or (
            (isinstance(self.noise, Gaussian) and norm == "l2")
            or (isinstance(self.noise, Laplace) and norm == "l1")
        )
        if not proved:
            bound = self.sensitivity.bound
            gaussian = bound * math.sqrt(dim) if norm == "linf" else bound
            raise NoDominatingPair(
                f"No pair is proved for {self.noise.name} noise on a vector of dim={dim} with "
                f"{norm} sensitivity {bound:g}: a scalar proof does not carry over to a clipped "
                "vector (mathematics.md §6).",
                f"Use gaussian noise with an l2 bound of {gaussian!r}, laplace noise with an l1 "
                "bound, or release a scalar (dim=1).",
            )

    def to_dict(self) -> dict[str, object]:
        """JSON-ready description; :meth:`from_dict` reads it back."""
        return {
            "noise": self.noise.to_dict(),
            "sensitivity": asdict(self.sensitivity),
            "sampling": asdict(self.sampling),
            "relation": self.relation,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """The mechanism that :meth:`to_dict` described; ValueError where it describes none."""
        try:
            return cls(
                noise=noise_from_dict(cast("Mapping[str, object]", data["noise"])),
                sensitivity=Sensitivity(**cast("dict[str, object]", data["sensitivity"])),  # type: ignore[arg-type]
                sampling=Sampling(**cast("dict[str, object]", data["sampling"])),  # type: ignore[arg-type]
                relation=str(data["relation"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Not the description of a mechanism: {error!r} in {data!r}."
            ) from None
