"""A mechanism = noise + sensitivity + sampling + relation; for which of them a pair is proved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, Self, cast, get_args

from dpmech.errors import NoDominatingPair
from dpmech.families import Gaussian, GeneralizedGaussian, Laplace, TruncatedLaplace
from dpmech.guarantee import Guarantee
from dpmech.logconcave import FlippedHuber, Logistic, OffsetGaussian
from dpmech.loss import DominatingPair, SubsampledPair, pair_of
from dpmech.noise import Noise, checked_positive
from dpmech.parse import noise_from_dict
from dpmech.relations import RELATIONS, PoissonSubstitutionPair, SubstitutionPair
from dpmech.sampling import Sampling
from dpmech.spherical import Spherical

Norm = Literal["l1", "l2", "linf"]
_NORMS: tuple[str, ...] = get_args(Norm)
_POWERS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
# Whatever their parameters; the Gaussian is as a vector, too.
_LOG_CONCAVE = (Laplace, TruncatedLaplace, OffsetGaussian, FlippedHuber, Logistic)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Bound on the ``norm`` of one contribution to a ``dim``-dimensional query, in its units."""

    norm: Norm = "l2"
    bound: float = 1.0
    dim: int = 1

    def __post_init__(self) -> None:
        if self.norm not in _NORMS:
            raise ValueError(f"Expected norm={self.norm!r} to be one of {', '.join(_NORMS)}.")
        checked_positive("sensitivity", self.bound)
        if not (isinstance(self.dim, int) and self.dim >= 1):
            raise ValueError(f"Expected dim={self.dim} to be a whole number, 1 or above.")

    def spread(self, coordinates: int) -> float:
        """What each of ``coordinates`` changes by when the bound is spread evenly over them.

        >>> Sensitivity(norm="l2", bound=1.0, dim=4).spread(4)
        0.5
        """
        return self.bound * coordinates ** (-1 / _POWERS[self.norm])


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """One release: a query of bounded sensitivity on a sample of the records, plus ``noise``.

    ``sensitivity`` bounds one record's contribution; ``relation`` says what neighbours differ by:

    * ``add-remove``: a record more or less, which changes the query by one contribution.
    * ``zero-out``: a record replaced by one that contributes nothing. Sampled or not, the outputs
      have the same two laws as under add-remove, so Poisson sampling has the same pairs.
    * ``replace-one``: a record replaced by another; the query changes by twice the bound at most.

    A :class:`~dpmech.guarantee.Guarantee` in the place of the noise speaks for the whole release,
    under the relation given.

    **Guarantees.** :meth:`pairs` returns only pairs proved to dominate (mathematics.md §3, §6;
    :class:`~dpmech.relations.SubstitutionPair`); everything else raises NoDominatingPair.

    >>> from dpmech import Gaussian, Mechanism
    >>> len(Mechanism(noise=Gaussian(sigma=1.0)).pairs())
    1
    """

    noise: Noise
    sensitivity: Sensitivity = field(default_factory=Sensitivity)
    sampling: Sampling = field(default_factory=Sampling)
    relation: str = "add-remove"

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise NoDominatingPair(
                f"No pair is proved here for relation={self.relation!r}.",
                f"Use one of {', '.join(f'relation={name!r}' for name in RELATIONS)}.",
            )
        if self.sampling.kind == "without-replacement" and self.relation != "replace-one":
            raise NoDominatingPair(
                f"No pair is proved here for sampling='without-replacement' under "
                f"relation={self.relation!r}: in a batch of fixed size another record takes the "
                "place of the one that is not drawn.",
                "Use relation='replace-one', which covers a record zeroed out as well, or "
                "kind='poisson'.",
            )
        if isinstance(self.noise, Guarantee) and self.sensitivity != Sensitivity():
            raise ValueError(
                f"Expected no sensitivity beside {self.noise}, got {self.sensitivity}: a guarantee "
                "is about the whole release."
            )

    def jointly(self, *others: Mechanism) -> Mechanism:
        """One release of all of these from one sample, such as a gradient and a clipped share.

        Two entries of a ledger stand for two samples, drawn independently. From one sample, a
        record is in both releases or in neither, and the pair is that of both before sampling:
        of Gaussian releases, a Gaussian one whose (bound/sigma)^2 is the sum of theirs (Andrew et
        al. 2021, Theorem 1, on adaptive clipping). Raises NoDominatingPair for other noise.

        >>> step = Mechanism(noise=Gaussian(sigma=2.0), sampling=Sampling(rate=0.1))
        >>> share = Mechanism(noise=Gaussian(sigma=10.0), sampling=Sampling(rate=0.1))
        >>> round(step.jointly(share).sensitivity.bound, 4)  # at sigma 1
        0.5099
        """
        ratios: list[float] = []
        for part in (self, *others):
            if (part.sampling, part.relation) != (self.sampling, self.relation):
                raise ValueError(
                    f"Expected one sample of {self.sampling} under {self.relation!r}, got "
                    f"{part.sampling} under {part.relation!r}."
                )
            if not (isinstance(part.noise, Gaussian) and _is_rotation_invariant(part)):
                raise NoDominatingPair(
                    f"No pair is proved for {part.noise} released jointly with others.",
                    "Use gaussian noise and l2 bounds for all of them, or draw a sample of its own "
                    "for it and make it an entry of its own in the ledger.",
                )
            ratios.append(part.sensitivity.bound / part.noise.sigma)
        dim = sum(part.sensitivity.dim for part in (self, *others))
        return replace(
            self,
            noise=Gaussian(sigma=1.0),
            sensitivity=Sensitivity(norm="l2", bound=math.hypot(*ratios), dim=dim),
        )

    def as_add_remove(self) -> Self:
        """A mechanism under add-remove that costs the same; NoDominatingPair where there is none.

        What an accountant that knows nothing of relations may account for instead.
        """
        if self.relation != "replace-one":
            return replace(self, relation="add-remove")
        if self.sampling.rate < 1:
            raise NoDominatingPair(
                f"Nothing under add-remove costs as much as relation='replace-one' at "
                f"rate={self.sampling.rate:g}.",
                "Use accountant='pld' or 'rdp', rate=1, or relation='add-remove'.",
            )
        bound = self._largest_change
        return replace(
            self,
            sensitivity=replace(self.sensitivity, bound=bound),
            sampling=Sampling(),
            relation="add-remove",
        )

    def base_pair(self) -> DominatingPair:
        """The pair of an addition or removal before sampling: P centred at the sensitivity, Q at 0.

        Not for relation='replace-one': :meth:`pairs` and :meth:`as_add_remove` are.
        """
        if self.relation == "replace-one":
            raise NoDominatingPair(
                f"relation={self.relation!r} has no pair of an addition.",
                "Use accountant='pld', or relation='add-remove'.",
            )
        self._refuse_unproved()
        return pair_of(self.noise, self.sensitivity.bound)

    def pairs(self) -> tuple[DominatingPair, ...]:
        """The pairs to compose, one per direction: (remove, add), or one where they coincide."""
        rate = self.sampling.rate
        if self.relation == "replace-one":
            return (self._substitution(),)
        base = self.base_pair()
        if rate == 1:
            return (base,)
        return (
            SubsampledPair(base=base, rate=rate, direction="remove"),
            SubsampledPair(base=base, rate=rate, direction="add"),
        )

    @property
    def _largest_change(self) -> float:
        """Bound on the norm of the change of the query between neighbours, in its units."""
        doubled = self.relation == "replace-one" and not isinstance(self.noise, Guarantee)
        return self.sensitivity.bound * (2 if doubled else 1)

    def _substitution(self) -> DominatingPair:
        self._refuse_unproved()
        base, rate = pair_of(self.noise, self._largest_change), self.sampling.rate
        if rate == 1:
            return base
        if isinstance(self.noise, Guarantee) and self.sampling.kind == "poisson":
            raise NoDominatingPair(
                f"No pair is proved for {self.noise} in a Poisson sample under "
                "relation='replace-one': the guarantee is about a record that is replaced, and a "
                "sample may lack it altogether.",
                "Use kind='without-replacement', or a guarantee under relation='add-remove'.",
            )
        bound, scalar = self.sensitivity.bound, self.sensitivity.dim == 1
        if self.sampling.kind == "poisson" and _is_log_concave(self.noise, scalar=scalar):
            return PoissonSubstitutionPair(noise=self.noise, bound=bound, rate=rate)
        return SubstitutionPair(base=base, rate=rate)

    def _refuse_unproved(self) -> None:
        norm, dim = self.sensitivity.norm, self.sensitivity.dim
        proved = dim == 1 or (
            (isinstance(self.noise, Gaussian | Spherical) and norm == "l2")
            or (isinstance(self.noise, Laplace) and norm == "l1")
        )
        if isinstance(self.noise, Spherical) and self.noise.dim != dim:
            raise ValueError(
                f"Expected dim={dim} of the query and dim={self.noise.dim:g} of {self.noise.name} "
                "noise to be the same."
            )
        if not proved:
            bound = self.sensitivity.bound
            gaussian = bound * math.sqrt(dim) if norm == "linf" else bound
            raise NoDominatingPair(
                f"No pair is proved for {self.noise.name} noise on a vector of dim={dim} with "
                f"{norm} sensitivity {bound:g}: a scalar proof does not carry over to a clipped "
                "vector (mathematics.md §6).",
                f"Use gaussian noise with an l2 bound of {gaussian!r}, spherical-gg noise, laplace "
                "noise with an l1 bound, accountant='rdp' (§6.3), or release a scalar (dim=1).",
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


def _is_rotation_invariant(mechanism: Mechanism) -> bool:
    """Whether its l2 bound is that of its pair: in one dimension every norm is the same."""
    return mechanism.sensitivity.norm == "l2" or mechanism.sensitivity.dim == 1


def _is_log_concave(noise: Noise, *, scalar: bool) -> bool:
    """Whether the density is, and is rotation invariant where it is that of a vector."""
    if isinstance(noise, GeneralizedGaussian):
        return scalar and noise.beta >= 1
    return isinstance(noise, Gaussian) or (scalar and isinstance(noise, _LOG_CONCAVE))
