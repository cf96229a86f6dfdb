"""What multiplies B·A at a rank.

Symbols: R largest rank, b rank of the round, α the adapter's alpha.
"""

import math
from typing import Literal, get_args

Scale = Literal["dylora", "rs", "fixed"]


def effective_scale(mode: Scale, *, alpha: float, maximum: int, rank: int) -> float:
    """Return what multiplies B·A at a rank: α/b (dylora), α/√(R·b) (rs) or α/R (fixed).

    All three are α/R at b = R. Equal independent noise on the entries of B moves W by a length in
    proportion to scale·√b, for rows of A of equal length: α/√(R·b) keeps it the same at every
    rank, α/b makes it √(R/b) times that at rank R.

    >>> effective_scale("rs", alpha=16, maximum=8, rank=2)
    4.0

    Raises:
        ValueError: an unknown mode, or a rank outside 1..maximum.
    """
    check_rank(rank, maximum)
    match mode:
        case "dylora":
            return alpha / rank
        case "rs":
            return alpha / math.sqrt(maximum * rank)
        case "fixed":
            return alpha / maximum
        case _:
            raise ValueError(f"Expected scale={mode!r} to be one of {get_args(Scale)}.")


def check_rank(rank: int, maximum: int) -> None:
    """Refuse a rank outside 1..R."""
    if not 1 <= rank <= maximum:
        raise ValueError(f"Expected rank={rank} in 1..{maximum}.")
