"""Per-example clipping without a gradient of any one example: ghost norms in one backward pass.

Symbols: n examples in a batch, C clip, m mass of an example (see ``ghost_norms``).

Where the places of an example cancel to less than m/`SPREAD`, its norm is taken to be that: what
rounding does to the sum then stays within `SUM_MARGIN` of C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpmech.noise import checked_positive
from fl_integration.clipping import SUM_MARGIN
from fl_integration.ghost_norms import KINDS, Pass, sizes_of

SPREAD = 1e3
_SAME = 1e-3  # share of the mass by which an example's norm may differ alone and in company


class GhostGradients:
    """Clipped sums by ghost norms, for Linear, Embedding and LayerNorm layers.

    **Guarantees**

    * The sum is over examples of l2 norm C at most over all trained parameters together, rounding
      from the layers' inputs and output gradients on included.
    * An example whose gradient is not finite adds nothing.
    * Layers of other kinds, shared weights, and modules that mix examples are refused; so is a
      model or a loss in which the first example's gradient depends on its company.

    Arguments:
        model: the module. loss: (model, *batch) -> (n,), every example's own loss.
        chunk: examples in a forward and backward pass; the batch is cut into such parts.

    Raises:
        ValueError: for a module that cannot be trained so, naming it.

    Source: Li et al. (2022), §4; Bu et al. (2023).
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], *, chunk: int = 64) -> None:
        self.model, self.loss, self.chunk = model, loss, chunk
        self._checked = False
        self._layers = _ghost_layers(model)

    def clipped_sum(
        self, parameters: Sequence[nn.Parameter], batch: Sequence[Tensor], *, clip: float
    ) -> Tensor:
        """The sum of the clipped gradients of a batch by ``parameters``, flat, (d,) in fp64.

        Raises:
            ValueError: for parameters that no layer here trains, and losses that are not (n,).
        """
        limit = checked_positive("clip", clip) * (1.0 - SUM_MARGIN)
        self._refuse_foreign(parameters)
        device = parameters[0].device
        sums = {p: torch.zeros(p.shape, dtype=torch.float64, device=device) for p in parameters}
        for part in zip(*(x.split(self.chunk) for x in batch), strict=True):
            if len(part[0]):
                self._refuse_company(part)
                self._add(sums, self._passes(part), limit)
        return torch.cat([sums[p].reshape(-1) for p in parameters])

    def _add(self, sums: dict[nn.Parameter, Tensor], passes: list[Pass], limit: float) -> None:
        squares, masses = sizes_of(passes)
        norms = torch.maximum(squares.sqrt(), masses / SPREAD)
        kept = torch.isfinite(norms)  # 0 times what is not finite is no 0: it is left out
        weights = (limit / norms[kept]).clamp(max=1.0)
        for one in passes:
            seen, back = one.seen[kept], one.back[kept]
            found = KINDS[type(one.layer)].total(one.layer, seen, back, weights)
            trained = [p for p in one.layer.parameters() if p.requires_grad]
            for p, value in zip(trained, found, strict=True):
                sums[p] += value.view_as(p)

    def _passes(self, batch: Sequence[Tensor]) -> list[Pass]:
        """What every trained layer saw and what came back, over all its calls."""
        n, calls = len(batch[0]), list[_Call]()
        with _listening(self._layers, calls), torch.enable_grad():
            losses = self.loss(self.model, *batch)
        if losses.shape != (n,):
            raise ValueError(
                f"Expected losses of shape {tuple(losses.shape)} to be ({n},): one an example, as "
                "with reduction='none'."
            )
        for call in calls:
            call.refuse_changed(n)
        back = torch.autograd.grad(
            losses.sum(), [call.output for call in calls], materialize_grads=True, allow_unused=True
        )
        return _gathered(calls, back)

    def _refuse_foreign(self, parameters: Sequence[nn.Parameter]) -> None:
        known = {p for layer in self._layers for p in layer.parameters() if p.requires_grad}
        if known != set(parameters):
            raise ValueError(
                f"Expected the optimiser's {len(parameters)} parameters to be the model's "
                f"{len(known)} trained ones: freeze the others with requires_grad_(False)."
            )

    def _refuse_company(self, batch: Sequence[Tensor]) -> None:
        """Once: the first example alone must have the gradient that it has among others."""
        if self._checked or len(batch[0]) < 2:
            return
        with _evaluating(self.model):
            among, mass = sizes_of(self._passes(batch))
            alone, _ = sizes_of(self._passes([x[:1] for x in batch]))
        difference = float((among[0].sqrt() - alone[0].sqrt()).abs())
        if difference > _SAME * float(mass[0]):
            raise ValueError(
                f"Expected an example's gradient of norm {float(alone[0].sqrt()):.6g} to be the "
                f"same in company, got {float(among[0].sqrt()):.6g}: the model or the loss mixes "
                "the examples of a batch, so that no clip bounds what one of them changes."
            )
        self._checked = math.isfinite(difference)


def refuse_mixing(model: nn.Module) -> None:
    """ValueError for modules that mix the examples of a batch, or keep statistics of them."""
    mixing = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    for name, module in model.named_modules():
        if isinstance(module, mixing) or getattr(module, "track_running_stats", False):
            raise ValueError(
                f"Expected no {type(module).__name__} ({name or 'the model'}): it mixes the "
                "examples of a batch, or keeps statistics of them. Use LayerNorm or GroupNorm."
            )


def _ghost_layers(model: nn.Module) -> list[nn.Module]:
    """The layers with trained parameters, all of a kind that is known here."""
    refuse_mixing(model)
    layers: list[nn.Module] = []
    for name, module in model.named_modules():
        own = {key for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        if own and (type(module) not in KINDS or not own <= {"weight", "bias"}):
            raise ValueError(
                f"Expected {type(module).__name__} ({name}) to be Linear, Embedding or LayerNorm: "
                "its ghost norms are not known. Freeze it, or use VmapGradients."
            )
        if own:
            layers.append(module)
            _refuse_unusual(module, name)
    owners = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    if len(owners) != len(set(owners)):
        raise ValueError(
            f"Expected {len(owners)} parameters of the layers to be different, got "
            f"{len(set(owners))}: ghost norms do not know shared weights; use VmapGradients."
        )
    return layers


def _refuse_unusual(module: nn.Module, name: str) -> None:
    if isinstance(module, nn.Embedding) and (
        module.scale_grad_by_freq or module.sparse or module.max_norm is not None
    ):
        raise ValueError(
            f"Expected a plain Embedding ({name}), got {module}: its gradient or its weights depend"
            " on what else is in the batch."
        )


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A layer's call as it happened, with the versions of its tensors."""

    layer: nn.Module
    seen: Tensor
    output: Tensor
    versions: tuple[int, int]

    def refuse_changed(self, n: int) -> None:
        """Refuse what was written over since, and what does not begin with the examples."""
        if (self.seen._version, self.output._version) != self.versions:
            raise ValueError(
                f"Expected the input and output of {self.layer} to stay as they are, got versions "
                f"{(self.seen._version, self.output._version)} after {self.versions}: something "
                "writes over them, such as ReLU(inplace=True)."
            )
        if len(self.seen) != n:
            raise ValueError(
                f"Expected the input of {self.layer}, of shape {tuple(self.seen.shape)}, to begin "
                f"with the {n} examples; use VmapGradients."
            )


@contextmanager
def _listening(layers: Sequence[nn.Module], calls: list[_Call]) -> Generator[None]:
    def note(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        seen: Tensor = args[0] if args else next(iter(kwargs.values()))
        versions = seen._version, output._version
        calls.append(_Call(layer=layer, seen=seen, output=output, versions=versions))

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Without dropout, each module as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _gathered(calls: Sequence[_Call], back: Sequence[Tensor]) -> list[Pass]:
    """One pass a layer: the places of its calls side by side, in fp64 (indices as they are)."""
    seen: dict[nn.Module, list[Tensor]] = {}
    came: dict[nn.Module, list[Tensor]] = {}
    for call, gradient in zip(calls, back, strict=True):
        tokens = isinstance(call.layer, nn.Embedding)
        axes = len(call.layer.normalized_shape) if isinstance(call.layer, nn.LayerNorm) else 1
        inputs = call.seen.detach()
        inputs = inputs.reshape(len(inputs), -1) if tokens else _placed(inputs, axes)
        seen.setdefault(call.layer, []).append(inputs)
        came.setdefault(call.layer, []).append(_placed(gradient, axes))
    return [
        Pass(layer=layer, seen=torch.cat(seen[layer], 1), back=torch.cat(came[layer], 1))
        for layer in seen
    ]


def _placed(values: Tensor, axes: int) -> Tensor:
    """(n, places, features) in fp64, the last ``axes`` axes being the features."""
    return values.double().reshape(len(values), -1, *values.shape[values.ndim - axes :]).flatten(2)
