"""How the records of a release are drawn, and why other ways of drawing them are refused."""

from __future__ import annotations

from dataclasses import dataclass

from dpmech.errors import NoDominatingPair

_POISSON = "Sample every record independently (kind='poisson')"
_EACH_ONCE = (
    f"{_POISSON}, or claim no amplification: rate=1 with relation='zero-out', one run for every "
    "pass over the data."
)
_DRAWN_ONCE = "Use kind='without-replacement' with relation='replace-one', or kind='poisson'."
_SHUFFLED = (
    "amplification by shuffling is proved for randomisers that answer record by record, and for "
    "batches of a shuffled pass the privacy can be worse than Poisson sampling's (Chua et al. 2024)"
)
_ALLOCATED = (
    "the batches of one pass share each record among them, so that the steps do not compose one by "
    "one, and no bound for the pass as a whole is proved here"
)
_FIXED = "a cohort that is the same every time, or whose size alone is known, amplifies nothing"
_REPEATED = "a record drawn several times into a batch changes the query by several contributions"

# kind: (why it has no pair, what has)
_REFUSED = {
    "shuffle": (_SHUFFLED, _EACH_ONCE),
    "shuffling": (_SHUFFLED, _EACH_ONCE),
    "balls-in-bins": (_ALLOCATED, _EACH_ONCE),
    "balls-and-bins": (_ALLOCATED, _EACH_ONCE),
    "random-allocation": (_ALLOCATED, _EACH_ONCE),
    "fixed-cohort": (_FIXED, _DRAWN_ONCE),
    "fixed-size": (_FIXED, _DRAWN_ONCE),
    "with-replacement": (_REPEATED, _DRAWN_ONCE),
}
_UNKNOWN = ("it is none of poisson and without-replacement, for which pairs are proved", _POISSON)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Every record takes part with probability ``rate``, in one of two ways.

    ``poisson``: each independently of the others. ``without-replacement``: a batch of fixed size,
    uniform among all of that size, ``rate`` being batch size / number of records.

    **Guarantees.** Any other kind is refused with the reason, never accounted for as Poisson
    sampling (mathematics.md §3).

    >>> Sampling(rate=0.1, kind="without-replacement").rate
    0.1
    """

    rate: float = 1.0
    kind: str = "poisson"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"Expected rate={self.rate} in (0, 1].")
        if self.kind not in ("poisson", "without-replacement"):
            reason, alternative = _REFUSED.get(self.kind, _UNKNOWN)
            raise NoDominatingPair(
                f"No pair is proved here for sampling={self.kind!r}, which is not Poisson "
                f"sampling: {reason}.",
                f"{alternative.rstrip('.')}.",
            )
