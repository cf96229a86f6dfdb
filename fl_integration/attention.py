"""Attention masks: who may look at whom, in a form that does not branch on its values.

A 2-D mask makes transformers branch on its values, which `torch.func.vmap` may refuse. A 4-D mask
that is added to the attention scores does not; which one a model means is found out by trying.
"""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

MASKED = -1e9  # finite, so that a row without a real token gives no NaN; fits bf16
CLOSE = 1e-2
MaskForm = Literal["plain", "additive", "causal"]


def additive(attention_mask: Tensor, dtype: torch.dtype, *, causal: bool = False) -> Tensor:
    """Turn a mask (n, L) of zeros and ones into (n, 1, L, L), to be added to attention scores.

    Args:
        causal: whether a token is also kept from looking at those after it.
    """
    n, length = attention_mask.shape
    bias = (1.0 - attention_mask.to(dtype)) * MASKED
    square = bias[:, None, None, :].expand(n, 1, length, length)
    if not causal:
        return square
    ahead = torch.ones(length, length, dtype=dtype, device=attention_mask.device).triu(1)
    return square + ahead * MASKED


def shaped(attention_mask: Tensor, dtype: torch.dtype, form: MaskForm) -> Tensor:
    """Bring a mask (n, L) into the form that a model takes."""
    if form == "plain":
        return attention_mask
    return additive(attention_mask, dtype, causal=form == "causal")


def mask_form(model: nn.Module) -> MaskForm:
    """Try which 4-D mask gives this model the outputs that a 2-D mask gives.

    `plain` where neither does, or where the two cannot be told apart.
    """
    ids = torch.tensor([[3, 4, 5], [3, 4, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    device, dtype = cast(Any, model).device, cast(Any, model).dtype
    ids, mask = ids.to(device), mask.to(device)
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask)[0][mask.bool()]
        both, causal = (
            _distance(model, ids, shaped(mask, dtype, form), mask, wanted)
            for form in ("additive", "causal")
        )
    if min(both, causal) > CLOSE or both == causal:
        return "plain"
    return "additive" if both < causal else "causal"


def _distance(model: nn.Module, ids: Tensor, tried: Tensor, real: Tensor, wanted: Tensor) -> float:
    """How far the outputs at real tokens are from the wanted ones; infinite if it cannot be."""
    try:
        output: Tensor = model(ids, attention_mask=tried)[0]
    except Exception:  # whatever a foreign model raises on a mask it cannot read
        return float("inf")
    if output.shape[:2] != ids.shape:
        return float("inf")
    gap = float((output[real.bool()].float() - wanted.float()).abs().max())
    return gap if gap >= 0 else float("inf")  # NaN is no agreement


def looks_ahead(model: nn.Module) -> bool:
    """Whether a token's output depends on a token after it."""
    ids = torch.tensor([[3, 4, 5], [3, 4, 6]], device=cast(Any, model).device)
    with torch.no_grad():
        output: Tensor = model(ids, attention_mask=torch.ones_like(ids))[0]
    one, other = output[:, :2].float()
    rounding = 4 * torch.finfo(output.dtype).eps * float(one.abs().max())
    return bool((one - other).abs().max() > rounding)
