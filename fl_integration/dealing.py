"""Who gets which rows: natural clients, or shards of fixed or Zipf sizes with or without a skew."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from dpmech.noise import Floats, checked_positive
from fl_integration.config import Unit
from fl_integration.encoding import Integers
from fl_integration.rows import Text, stable_number


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """How rows become clients and a test set.

    Arguments:
        size: texts a client; at most where rows name their clients, exactly where they are dealt,
            on average with zipf.
        zipf: s >= 0; the sizes of dealt clients are proportional to k^-s, k = 1, 2, …, each at
            least 1. 0 is even, 1 is Zipf's law.
        alpha: Dirichlet concentration > 0 of each dealt client's class shares; None deals at
            random. Small is skewed.
        max_test: test texts to keep at most, None for all.
        min_words: training texts of fewer words are left out, each by a look at itself alone, so
            that no text decides about another: SST-2 trains on phrases and tests on sentences.
        labels: the classes, which are public; () for those of the test texts. Training texts of
            other classes are left out.
        cap: whether rows that name their clients are cut to size texts a client.

    Raises:
        ValueError: a value outside its range.
    """

    size: int = 64
    zipf: float | None = None
    alpha: float | None = None
    max_test: int | None = 2000
    min_words: int = 1
    labels: tuple[str, ...] = ()
    cap: bool = True

    def __post_init__(self) -> None:
        if self.size < 1 or (self.max_test is not None and self.max_test < 1):
            raise ValueError(f"Expected size={self.size} and max_test={self.max_test} >= 1.")
        if self.min_words < 1:
            raise ValueError(f"Expected min_words={self.min_words} >= 1.")
        if self.zipf is not None and not 0.0 <= self.zipf < np.inf:
            raise ValueError(f"Expected zipf={self.zipf} >= 0 and finite.")
        if self.alpha is not None:
            checked_positive("alpha", self.alpha)

    def for_unit(self, unit: Unit) -> Self:
        """The same, at example level without the cap, whose choice depends on the other texts."""
        return self if unit == "user" else replace(self, cap=False)

    def long_enough(self, text: Text) -> bool:
        """Whether a text has the words that a training text needs."""
        return len(text.split() if isinstance(text, str) else text) >= self.min_words

    def refuse(self, source: str, *, clients: bool, classes: bool) -> None:
        """ValueError where clients have names already, or a skew needs the classes of texts."""
        if clients and (self.alpha is not None or self.zipf is not None):
            raise ValueError(
                f"Expected alpha=None and zipf=None for {source}, which names its clients, not "
                f"{self.alpha} and {self.zipf}."
            )
        if self.alpha is not None and not classes:
            raise ValueError(
                f"Expected alpha=None for {source}, whose texts have no class, not {self.alpha}."
            )


def natural(
    clients: Sequence[str], train: Integers, dealing: Dealing, *, seed: int
) -> dict[str, Integers]:
    """The training rows of each client, capped if wanted, clients sorted by name.

    **Guarantees**: what is kept of a client depends on its own rows, its name and the seed.
    """
    groups: dict[str, list[int]] = {}
    for i in map(int, train):
        groups.setdefault(clients[i], []).append(i)
    most = dealing.size if dealing.cap else len(train)
    return {name: _kept(name, groups[name], most, seed) for name in sorted(groups)}


def _kept(name: str, rows: Sequence[int], most: int, seed: int) -> Integers:
    """At most `most` of one client's rows, by a generator of its own."""
    if len(rows) <= most:
        return np.array(rows)
    rng = np.random.default_rng([seed, stable_number(name)])
    return np.sort(rng.permutation(rows)[:most])


def deal(
    train: Integers, codes: Integers, dealing: Dealing, rng: np.random.Generator
) -> dict[str, Integers]:
    """Deal rows to clients: at random, or each with its own Dirichlet class mix.

    **Guarantees**: every row goes to one client, every client has a row.

    Args:
        train: the rows to deal. codes: the class of every row, needed with alpha only.
    """
    order = rng.permutation(train)
    sizes = client_sizes(len(train), dealing)
    if dealing.alpha is not None:
        order = _skewed(order, codes, sizes, dealing.alpha, rng)
    parts = np.split(order, np.cumsum(sizes)[:-1])
    return {f"shard-{i:06d}": np.sort(part) for i, part in enumerate(parts)}


def client_sizes(rows: int, dealing: Dealing) -> Integers:
    """Return how many of the rows each client gets, (clients,), each at least 1, rows in all.

    >>> client_sizes(10, Dealing(size=4)).tolist()
    [4, 4, 2]
    >>> client_sizes(100, Dealing(size=20, zipf=1.0)).tolist()
    [44, 22, 14, 11, 9]
    """
    clients = -(-rows // dealing.size)
    if dealing.zipf is not None:
        return _zipf(rows, clients, dealing.zipf)
    sizes = np.full(clients, dealing.size, dtype=np.int64)
    sizes[-1] = rows - dealing.size * (clients - 1)
    return sizes


def _zipf(rows: int, clients: int, exponent: float) -> Integers:
    """Sizes proportional to k^-s for the large clients, 1 for those whose share is below 1."""
    weights: Floats = np.arange(1, clients + 1, dtype=np.float64) ** -exponent
    after = np.arange(clients)[::-1]  # clients behind each, which have one row
    enough = (rows - after) * weights >= np.cumsum(weights)
    large = int(np.flatnonzero(enough)[-1]) + 1
    share = (rows - (clients - large)) / weights[:large].sum()
    # rounding up halves moves by whole rows: a share of at least 1 never becomes 0
    ends = np.floor(np.cumsum(weights[:large] * share) + 0.5).astype(np.int64)
    ends[-1] = rows - (clients - large)
    return np.concatenate([np.diff(ends, prepend=0), np.ones(clients - large, dtype=np.int64)])


def _skewed(
    order: Integers, codes: Integers, sizes: Integers, alpha: float, rng: np.random.Generator
) -> Integers:
    """Reorder the rows so that each run of `sizes` rows has class shares ~ Dirichlet(alpha).

    When a class runs out its share goes to those that are left, in proportion to what they hold.
    """
    pools = [order[codes[order] == k] for k in range(int(codes.max()) + 1)]
    left = np.array([len(pool) for pool in pools])
    taken = np.zeros_like(left)
    dealt: list[Integers] = []
    for size in sizes.tolist():
        counts = _draw(left, rng.dirichlet(np.full(len(pools), alpha)), size, rng)
        dealt.extend(pool[t : t + n] for pool, t, n in zip(pools, taken, counts, strict=True) if n)
        taken, left = taken + counts, left - counts
    return np.concatenate(dealt)


def _draw(left: Integers, shares: Floats, size: int, rng: np.random.Generator) -> Integers:
    """Draw `size` rows by class with the given shares, never more than are left of a class."""
    counts = np.minimum(rng.multinomial(size, shares), left)
    if missing := size - int(counts.sum()):
        counts = counts + rng.multivariate_hypergeometric(left - counts, missing)
    return counts
