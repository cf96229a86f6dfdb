"""Plots of what an attack may achieve (see :mod:`dpmech.plotting`, which has them too)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpmech.noise import Floats
from dpmech.plotting_style import finished, started, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Tradeoff", "plot_advantage", "plot_tradeoff"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tradeoff:
    """Bounds on the share of members that an attack misses, at each false positive rate.

    ``lower[i]``: no attack misses less at ``fpr[i]``. ``upper[i]``: the curve that is proved could
    not be higher than this.
    """

    label: str
    fpr: Floats
    lower: Floats
    upper: Floats


def plot_tradeoff(curves: Sequence[Tradeoff], ax: Axes | None = None) -> Axes:
    """Draw false negative against false positive rates: bounds for every attack, and guessing.

    The markers are proved; the lines between them guide the eye, and lie above a convex curve.

    Args:
        curves: one a mechanism.
        ax: axes to draw on (a new figure by default).

    Raises:
        ValueError: nothing to draw, or matplotlib is not installed.
    """
    ax = started(curves, ax)
    for style, curve in zip(styles(), curves, strict=False):
        _band(ax, curve.fpr, (curve.lower, curve.upper), curve.label, style)
    ax.plot([0, 1], [1, 0], color="0.5", lw=1, ls=":", label="guessing", zorder=1)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    return finished(
        ax,
        "false positive rate of an attack (markers: proved; shade: up to the upper bound)",
        "false negative rate (share missed)",
    )


def plot_advantage(curves: Sequence[Tradeoff], ax: Axes | None = None) -> Axes:
    """Draw how far an attack's true positive rate is above its false positive rate, at most.

    Args:
        curves: one a mechanism.
        ax: axes to draw on (a new figure by default).

    Raises:
        ValueError: nothing to draw, or matplotlib is not installed.
    """
    ax = started(curves, ax)
    for style, curve in zip(styles(), curves, strict=False):
        chance = 1 - curve.fpr
        _band(ax, curve.fpr, (chance - curve.lower, chance - curve.upper), curve.label, style)
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    return finished(
        ax,
        "false positive rate of an attack (markers: proved; shade: down to the lower bound)",
        "advantage (true - false positive rate)",
    )


def _band(
    ax: Axes, x: Floats, bounds: tuple[Floats, Floats], label: str, style: dict[str, Any]
) -> None:
    """The bound that is claimed as a line, the other as a thin one, shade between them."""
    claimed, other = bounds
    ax.plot(x, claimed, label=label, **style)
    ax.fill_between(x, claimed, other, color=style["color"], alpha=0.25)
    ax.plot(x, other, color=style["color"], lw=0.6, zorder=1)
