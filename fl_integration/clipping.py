"""One flat clip over everything a client sends, and the running sum of the clipped.

Symbols: C the clip, Δ a client's flat delta (adapters and head together).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpmech.noise import checked_positive

# fp64 rounding of a norm over d coordinates is at most d·2^-53 relative, about 1e-9 at d = 1e7;
# clipping to a hair less than C keeps the *exact* norm within C.
ROUNDING_MARGIN = 1e-9
# A sum of n terms of norm C is off by at most n·2^-53 times n·C when they are added one at a time,
# so the sums of two neighbours may differ by twice that more than by a term: 2e-6·C at n = 90 000.
SUM_MARGIN = 2e-6
# Norms whose squares, and those of the coordinates that matter, are ordinary fp64 numbers.
SAFE_NORMS = (1e-140, 1e140)
ROWS = 1 << 17  # numbers of deltas that are best added at once: 1 MiB in fp64


def clip_flat(delta: Tensor, bound: float | None, *, margin: float = ROUNDING_MARGIN) -> Tensor:
    """Scale a client's whole delta so that its l2 norm is at most ``bound``.

    **Guarantees**

    * The result is finite, fp64, and of l2 norm <= ``bound``, whatever was sent.
    * A delta with a non-finite coordinate becomes zero; a zero delta stays zero.

    Arguments:
        delta: (d,) every coordinate that will be released; one clip for all of them, because
            clipping k parts at C each has joint sensitivity √k·C.
        bound: C > 0, or ``None`` not to clip (non-private runs). margin: share of it left unused.

    Raises:
        ValueError: when ``bound`` is not positive or ``delta`` is not one vector.

    >>> clip_flat(torch.tensor([3.0, 4.0]), 1.0).norm().item() <= 1.0
    True
    """
    if delta.ndim != 1:
        raise ValueError(f"Expected one flat delta, got shape {tuple(delta.shape)}.")
    limit = _limit(bound, margin)
    wide = delta.detach().double().cpu()
    if not bool(torch.isfinite(wide).all()):
        return torch.zeros_like(wide)
    return wide if limit is None else _shrink(wide, limit)


def _limit(bound: float | None, margin: float) -> float | None:
    """What norms are clipped to: a hair less than C."""
    if bound is None:
        return None
    return checked_positive("bound", bound) * (1.0 - margin)


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

    * Adding or removing one client moves the sum by at most ``bound`` in l2, rounding included (up
      to 90 000 clients one at a time, far more in blocks).

    Arguments:
        dim: d >= 1. bound: C, or ``None`` not to clip.
        keep_norms: keep every client's norm before the clip; only for non-private runs, because
            the norms are functions of the clients' data.

    Raises:
        ValueError: when ``bound`` is not positive.
    """

    def __init__(self, dim: int, bound: float | None, *, keep_norms: bool = False) -> None:
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._bound, self._limit = bound, _limit(bound, SUM_MARGIN)
        self._norms: list[float] | None = [] if keep_norms else None

    def add(self, delta: Tensor) -> None:
        """Clip one client's delta and add it."""
        if delta.ndim != 1:
            raise ValueError(f"Expected one flat delta, got shape {tuple(delta.shape)}.")
        self.add_rows(delta.unsqueeze(0))

    def add_rows(self, rows: Tensor, at: slice = slice(None)) -> None:
        """Clip the deltas of some clients, one a row, and add them: `add` for many at once.

        Arguments:
            rows: (clients, d), on any device; about `ROWS` numbers a call stay in the cache.
            at: the coordinates that the rows are of; 0 elsewhere.

        Raises:
            ValueError: when the rows have another length than that part of the sum.
        """
        size = self._sum[at].numel()
        if rows.ndim != 2 or rows.shape[1] != size:
            raise ValueError(f"Expected deltas of {size} numbers, got shape {tuple(rows.shape)}.")
        wide = rows.detach().double()
        norms = torch.linalg.vector_norm(wide, dim=1)
        if self._norms is not None:
            self._norms.extend(norms.tolist())
        self._sum = self._sum.to(wide.device)
        # a row whose squares overflow, vanish or are no numbers goes by itself, with more care
        plain = (norms > SAFE_NORMS[0]) & (norms < SAFE_NORMS[1])
        if not bool(plain.all()):
            for row in wide[~plain]:
                self._sum[at] += clip_flat(row, self._bound, margin=SUM_MARGIN).to(wide.device)
            wide, norms = wide[plain], norms[plain]
        factors = torch.ones_like(norms) if self._limit is None else self._limit / norms
        self._sum[at].addmv_(wide.T, factors.clamp(max=1.0))

    def add_linear(self, left: Tensor, right: Tensor, head: slice) -> None:
        """Clip and add deltas that are a linear layer's: a product of two vectors each.

        Delta i is left_i ⊗ right_i in the weight, left_i in the bias, and 0 elsewhere; its norm is
        ‖left_i‖·√(‖right_i‖² + 1), so no delta is written down.

        **Guarantees**: those of `add_rows` for such rows; one that is not finite adds nothing.

        Arguments:
            left: (n, K). right: (n, d). head: where weight (K·d, row by row) and bias (K) lie.
        """
        left, right = left.detach().double(), right.detach().double()
        lengths = torch.linalg.vector_norm(right, dim=1)
        norms = torch.linalg.vector_norm(left, dim=1) * torch.hypot(lengths, torch.ones(()))
        if self._norms is not None:
            self._norms.extend(norms.tolist())
        # a product whose squares overflow is as good as none: it adds nothing
        finite = torch.isfinite(norms)
        if not bool(finite.all()):
            left, right, norms = left[finite], right[finite], norms[finite]
        if self._limit is not None:
            left = left * (self._limit / norms).clamp(max=1.0).nan_to_num(nan=1.0)[:, None]
        self._sum[head] += torch.cat([(left.T @ right).reshape(-1), left.sum(0)])

    def absorb(self, value: Tensor, norms: tuple[float, ...] = ()) -> None:
        """Add the sum of *other* clients that were clipped to the same bound elsewhere."""
        if value.shape != self._sum.shape:
            raise ValueError(
                f"Expected a sum of {self._sum.numel()} numbers, got shape {tuple(value.shape)}."
            )
        self._sum += value.to(self._sum)
        if self._norms is not None:
            self._norms.extend(norms)

    @property
    def bound(self) -> float | None:
        """C."""
        return self._bound

    @property
    def keeps_norms(self) -> bool:
        """Whether the norms before the clip are kept."""
        return self._norms is not None

    @property
    def value(self) -> Tensor:
        """The sum so far (d,), fp64; not yet private."""
        return self._sum.to("cpu", copy=True)

    @property
    def norms(self) -> tuple[float, ...]:
        """The norms before the clip, empty unless they were asked for."""
        return tuple(self._norms or ())
