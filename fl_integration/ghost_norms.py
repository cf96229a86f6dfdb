"""Norms and sums of single examples' gradients, from what a layer saw and what came back.

Symbols: n examples, T places in each (tokens), a input of a layer (n, T, i), g gradient of the
losses by its output (n, T, o), K the inputs' inner products (n, T, T), w weights (n,), u unit
roundoff of fp64.

The gradient of example e by a linear layer's weight is the sum over t of g_et a_et', so its squared
norm is the sum of K * (g g'), T² numbers instead of i·o, and the weighted sum of all is one product
of all places (Li et al. 2022, ghost clipping; Bu et al. 2023, in one backward pass).

All is fp64. A computed squared norm is below the true one by at most k·u·m², where k counts
operations and m, the mass, is the sum over t of |g_t||a_t|: twice that is added to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_UNIT = 2.0**-53


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a layer saw and what came back, in fp64: a (n, T, i), or indices (n, T); g (n, T, o)."""

    layer: nn.Module
    seen: Tensor
    back: Tensor


class Kind(Protocol):
    """What is known of a kind of layer."""

    def sizes(self, layer: Any, seen: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        """Upper bounds on the squared norms (n,), and the masses (n,)."""
        ...

    def total(self, layer: Any, seen: Tensor, back: Tensor, weights: Tensor) -> list[Tensor]:
        """The weighted sum of the gradients by weight and bias, if trained."""
        ...


def _bounded(squares: Tensor, mass: Tensor, operations: int) -> tuple[Tensor, Tensor]:
    """Squared norms with what rounding may have taken from them."""
    return squares.clamp(min=0) + 2 * operations * _UNIT * mass.square(), mass


def _norms(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1)


def _trained(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad


class _Linear:
    def sizes(self, layer: nn.Linear, seen: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = float(_trained(layer.weight)), float(_trained(layer.bias))
        places, inputs, outputs = seen.shape[1], seen.shape[2], back.shape[2]
        mass = (_norms(back) * (weight * _norms(seen).square() + bias).sqrt()).sum(1)
        if 2 * places**2 <= inputs * outputs:
            inner = weight * (seen @ seen.mT) + bias
            squares = (inner * (back @ back.mT)).sum((1, 2))
            return _bounded(squares, mass, places**2 + inputs + outputs + 8)
        squares = weight * (back.mT @ seen).square().sum((1, 2))
        squares = squares + bias * back.sum(1).square().sum(1)
        return _bounded(squares, mass, inputs * outputs + 2 * places + 8)

    def total(self, layer: nn.Linear, seen: Tensor, back: Tensor, weights: Tensor) -> list[Tensor]:
        back = (back * weights[:, None, None]).flatten(0, 1)
        sums = [back.mT @ seen.flatten(0, 1)] if _trained(layer.weight) else []
        return [*sums, back.sum(0)] if _trained(layer.bias) else sums


class _Embedding:
    def sizes(self, layer: nn.Embedding, seen: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        back = self._counted(layer, seen, back)
        same = seen.unsqueeze(1) == seen.unsqueeze(2)
        squares = (same * (back @ back.mT)).sum((1, 2))
        operations = seen.shape[1] ** 2 + back.shape[2] + 8
        return _bounded(squares, _norms(back).sum(1), operations)

    def total(
        self, layer: nn.Embedding, seen: Tensor, back: Tensor, weights: Tensor
    ) -> list[Tensor]:
        back = self._counted(layer, seen, back) * weights[:, None, None]
        sums = torch.zeros(layer.weight.shape, dtype=back.dtype, device=back.device)
        return [sums.index_add_(0, seen.flatten(), back.flatten(0, 1))]

    def _counted(self, layer: nn.Embedding, seen: Tensor, back: Tensor) -> Tensor:
        """Without the places of padding, whose row is not trained."""
        if layer.padding_idx is None:
            return back
        return back * (seen != layer.padding_idx).unsqueeze(2)


class _LayerNorm:
    def sizes(self, layer: nn.LayerNorm, seen: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.cat(self._rows(layer, seen, back), dim=1)
        longest = torch.hypot(_norms(self._plain(layer, seen)), torch.ones((), device=seen.device))
        operations = 2 * seen.shape[1] + rows.shape[1] + 8
        return _bounded(rows.square().sum(1), (_norms(back) * longest).sum(1), operations)

    def total(
        self, layer: nn.LayerNorm, seen: Tensor, back: Tensor, weights: Tensor
    ) -> list[Tensor]:
        return [weights @ rows for rows in self._rows(layer, seen, back)]

    def _rows(self, layer: nn.LayerNorm, seen: Tensor, back: Tensor) -> list[Tensor]:
        """The gradients of single examples, which are short: by weight, by bias."""
        rows = [(back * self._plain(layer, seen)).sum(1)] if _trained(layer.weight) else []
        return [*rows, back.sum(1)] if _trained(layer.bias) else rows

    def _plain(self, layer: nn.LayerNorm, seen: Tensor) -> Tensor:
        """What the weight multiplies."""
        return F.layer_norm(seen, seen.shape[2:], eps=layer.eps)


KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: _Linear(),
    nn.Embedding: _Embedding(),
    nn.LayerNorm: _LayerNorm(),
}


def sizes_of(passes: Sequence[Pass]) -> tuple[Tensor, Tensor]:
    """Bounds on every example's squared norm over all layers (n,), and its mass (n,)."""
    found = [KINDS[type(one.layer)].sizes(one.layer, one.seen, one.back) for one in passes]
    squares = torch.stack([squares for squares, _ in found]).sum(0)
    return squares, torch.stack([mass for _, mass in found]).square().sum(0).sqrt()
