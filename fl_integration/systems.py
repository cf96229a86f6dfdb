"""What each system trains in a round: a public function of the configuration and the round alone.

Every system is a choice of coordinates of one flat vector. Those that a round does not train have
a local step of 0, and are not in what it releases: no noise is added to them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fl_integration.adapters import AdapterSpace
from fl_integration.config import FederatedConfig, System
from fl_integration.spaces import FlatSpace, FullSpace, HeadSpace
from fl_integration.tasks import TextModel

# By system: the parts that its rounds train, in turn.
_TURNS: dict[System, tuple[str, ...]] = {
    "dylora": ("A B head",),
    "lora": ("A B head",),
    "ffa-lora": ("B head",),
    "rolora": ("B head", "A head"),  # B first: while it is zero, A has no gradient
    "probe": ("head",),
    "full": ("base head",),
}


def space_for(classifier: TextModel, config: FederatedConfig) -> FlatSpace:
    """The trainable vector of a configuration's system, its adapters drawn from the public seed.

    Raises:
        ValueError: an unfit model, or one without the head that a head start would train.
    """
    if config.head_start is not None:
        head_space_for(classifier, config)
    if config.system == "full":
        return FullSpace(classifier)
    return AdapterSpace(
        classifier,
        rank=config.rank,
        alpha=config.alpha,
        scale=config.scale,
        generator=torch.Generator().manual_seed(config.seed),
        targets=config.targets or None,
    )


def head_space_for(classifier: TextModel, config: FederatedConfig) -> FlatSpace:
    """The trainable vector of a head start (ValueError for a model without a head)."""
    return HeadSpace(classifier, rank=config.rank, alpha=config.alpha, scale=config.scale)


def check_space(space: FlatSpace, config: FederatedConfig) -> None:
    """ValueError where a space was made for another configuration."""
    fitting = {"full": FullSpace, "probe": (HeadSpace, AdapterSpace)}.get(
        config.system, AdapterSpace
    )
    if not isinstance(space, fitting):
        raise ValueError(
            f"Expected the space of system={config.system!r}, got a {type(space).__name__}."
        )
    for name in () if config.system == "full" else ("rank", "scale", "alpha"):
        if getattr(space, name) != getattr(config, name):
            raise ValueError(
                f"Expected the adapters' {name}={getattr(space, name)!r} to be the"
                f" configuration's {getattr(config, name)!r}."
            )


def trained(space: FlatSpace, system: System, *, rank: int, round: int) -> Tensor:
    """Which coordinates of the slice at a rank a round trains, (dim(rank),) bool; public."""
    turns = _TURNS[system]
    parts = turns[round % len(turns)].split()
    masks = [
        torch.full((shape.numel(),), _part(name) in parts)
        for name, shape in zip(space.names, space.shapes(rank), strict=True)
    ]
    return torch.cat(masks)


def period(system: System) -> int:
    """After how many rounds a system trains the same coordinates again."""
    return len(_TURNS[system])


def released_dim(space: FlatSpace, system: System) -> int:
    """The most coordinates that any round of a system releases."""
    rounds = range(period(system))
    return max(int(trained(space, system, rank=space.rank, round=r).sum()) for r in rounds)


def _part(name: str) -> str:
    """Which part of the model a tensor belongs to."""
    for part in ("A", "B"):
        if f".lora_{part}." in name:
            return part
    return "head" if name.startswith("head.") else "base"
