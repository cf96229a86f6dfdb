"""One flat clip over everything a client sends, and the running sum of the clipped.

Symbols: C the clip, Δ a client's flat delta (adapters and head together).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# fp64 rounding of a norm over d coordinates is at most d·2^-53 relative, about 1e-9 at d = 1e7;
# clipping to a hair less than C keeps the *exact* norm within C.
ROUNDING_MARGIN = 1e-9


def clip_flat(delta: Tensor, bound: float | None) -> Tensor:
    """Scale a client's whole delta so that its l2 norm is at most ``bound``.

    **Guarantees**

    * The result is finite, fp64, and of l2 norm <= ``bound``, whatever was sent.
    * A delta with a non-finite coordinate becomes zero; a zero delta stays zero.

    Arguments:
        delta: (d,) every coordinate that will be released; one clip for all of them, because
            clipping k parts at C each has joint sensitivity √k·C.
        bound: C > 0, or ``None`` not to clip (non-private runs).

    Raises:
        ValueError: when ``bound`` is not positive or ``delta`` is not one vector.

    >>> clip_flat(torch.tensor([3.0, 4.0]), 1.0).norm().item() <= 1.0
    True
    """
    if delta.ndim != 1:
        raise ValueError(f"Expected one flat delta, got shape {tuple(delta.shape)}.")
    if bound is not None and not (bound > 0 and math.isfinite(bound)):
        raise ValueError(f"Expected bound={bound} > 0 and finite.")
    wide = delta.detach().double().cpu()
    if not bool(torch.isfinite(wide).all()):
        return torch.zeros_like(wide)
    if bound is None:
        return wide
    return _shrink(wide, bound * (1.0 - ROUNDING_MARGIN))


def _shrink(vector: Tensor, limit: float) -> Tensor:
    """Multiply by min(1, limit/‖v‖), dividing by the largest entry first so squares stay finite."""
    peak = float(vector.abs().max()) if vector.numel() else 0.0
    if peak == 0.0:
        return vector
    norm = float(torch.linalg.vector_norm(vector / peak))
    if peak * norm <= limit:
        return vector
    return (vector / peak) * (limit / norm)


class ClippedSum:
    """The running fp64 sum of clipped deltas: one vector, however many clients add to it.

    **Guarantees**

    * Adding or removing one client moves the sum by at most ``bound`` in l2.

    Arguments:
        dim: d >= 1. bound: C, or ``None`` not to clip.
        keep_norms: keep every client's norm before the clip; only for non-private runs, because
            the norms are functions of the clients' data.
    """

    def __init__(self, dim: int, bound: float | None, *, keep_norms: bool = False) -> None:
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._bound = bound
        self._norms: list[float] | None = [] if keep_norms else None

    def add(self, delta: Tensor) -> None:
        """Clip one client's delta and add it."""
        if delta.shape != self._sum.shape:
            raise ValueError(
                f"Expected a delta of {self._sum.numel()} numbers, got shape {tuple(delta.shape)}."
            )
        if self._norms is not None:
            self._norms.append(float(delta.double().norm()))
        self._sum += clip_flat(delta, self._bound)

    @property
    def value(self) -> Tensor:
        """The sum so far (d,), fp64; not yet private."""
        return self._sum.clone()

    @property
    def norms(self) -> tuple[float, ...]:
        """The norms before the clip, empty unless they were asked for."""
        return tuple(self._norms or ())
