"""Plots: each takes what it draws and matplotlib axes (or makes them), and returns the axes.

matplotlib is imported here and in plotting_style only, and only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dpmech.noise import Floats
from dpmech.plotting_attacks import Tradeoff, plot_advantage, plot_tradeoff
from dpmech.plotting_search import (
    NoiseSeries,
    plot_cost,
    plot_densities,
    plot_gain,
    plot_noise_against_epsilon,
)
from dpmech.plotting_style import (
    blank_axes,
    checked_format,
    finished,
    log_epsilon,
    require_matplotlib,
    save_figure,
    started,
    styles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "AccuracyPoint",
    "Curve",
    "NoiseSeries",
    "Tradeoff",
    "blank_axes",
    "checked_format",
    "plot_accuracy_against_epsilon",
    "plot_advantage",
    "plot_cost",
    "plot_curve",
    "plot_densities",
    "plot_gain",
    "plot_noise_against_epsilon",
    "plot_tradeoff",
    "require_matplotlib",
    "save_figure",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Points (epsilon[i], delta[i]) at which a mechanism is proved private.

    ``lower_epsilon``: below it, no epsilon holds at delta[i]; ``lower_delta``: below it, no delta
    holds at epsilon[i]. None where no such bound is known.
    """

    label: str
    epsilon: Floats
    delta: Floats
    lower_epsilon: Floats | None = None
    lower_delta: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class AccuracyPoint:
    """The accuracies (0 to 1), one a seed, of the runs of one kind at one epsilon.

    ``hypothetical``: epsilon is a forecast for a larger population, not what the runs cost.
    """

    label: str
    epsilon: float
    accuracies: tuple[float, ...]
    hypothetical: bool = False

    def __post_init__(self) -> None:
        if not self.accuracies:
            raise ValueError(f"Expected at least one accuracy of {self.label} at {self.epsilon}.")


def plot_curve(curves: Sequence[Curve], ax: Axes | None = None) -> Axes:
    """Draw delta against epsilon: proved upper bounds, and lower bounds as thin lines beside them.

    Args:
        curves: one a mechanism.
        ax: axes to draw on (a new figure by default).

    Raises:
        ValueError: nothing to draw, or matplotlib is not installed.
    """
    ax = started(curves, ax)
    for style, curve in zip(styles(), curves, strict=False):
        finite = np.isfinite(curve.epsilon)
        x, y = curve.epsilon[finite], curve.delta[finite]
        ax.plot(x, y, label=curve.label, **style)
        if curve.lower_epsilon is not None:
            ax.fill_betweenx(y, curve.lower_epsilon[finite], x, color=style["color"], alpha=0.25)
            ax.plot(curve.lower_epsilon[finite], y, color=style["color"], lw=0.6, zorder=1)
        if curve.lower_delta is not None:
            ax.fill_between(x, curve.lower_delta[finite], y, color=style["color"], alpha=0.25)
            ax.plot(x, curve.lower_delta[finite], color=style["color"], lw=0.6, zorder=1)
    ax.set_yscale("log")
    ax.set_xlim(left=0)
    return finished(
        ax, "ε (proved upper bound; thin line and shade: lower bound)", "δ (probability)"
    )


def plot_accuracy_against_epsilon(
    points: Sequence[AccuracyPoint],
    ax: Axes | None = None,
    *,
    majority: float | None = None,
    non_private: Sequence[float] = (),
) -> Axes:
    """Draw accuracy against epsilon: the mean over seeds, with an interval from worst to best seed.

    Filled markers: the epsilon that the run itself costs, proved. Hollow markers with broken lines:
    the hypothetical epsilon of a forecast population.

    Args:
        points: one a kind of run and epsilon.
        ax: axes to draw on (a new figure by default).
        majority: accuracy of always answering the largest class, as a line.
        non_private: accuracies of runs without noise, one a seed, as a line and a band.

    Raises:
        ValueError: nothing to draw, or matplotlib is not installed.
    """
    ax = started(points, ax)
    kinds = list(dict.fromkeys((p.label, p.hypothetical) for p in points))
    for style, (label, hypothetical) in zip(styles(), kinds, strict=False):
        of_kind = [p for p in points if (p.label, p.hypothetical) == (label, hypothetical)]
        _accuracy_line(ax, sorted(of_kind, key=lambda p: p.epsilon), style)
    if non_private:
        mean = float(np.mean(non_private))
        ax.axhline(mean, color="0.25", lw=1, ls=(0, (6, 2)), label="without noise", zorder=1)
        ax.axhspan(min(non_private), max(non_private), color="0.25", alpha=0.12, lw=0)
    if majority is not None:
        ax.axhline(majority, color="0.5", lw=1, ls=":", label="largest class", zorder=1)
    log_epsilon(ax, np.array([p.epsilon for p in points]))
    seeds = {len(p.accuracies) for p in points}
    said = "share correct" if seeds == {1} else "share correct (mean; bars: all seeds)"
    return finished(ax, "ε (filled: proved; hollow: hypothetical)", said)


def _accuracy_line(ax: Axes, points: Sequence[AccuracyPoint], style: dict[str, Any]) -> None:
    """One kind of run: means joined by a line, intervals as bars."""
    hollow = points[0].hypothetical
    mean = np.array([np.mean(p.accuracies) for p in points])
    below = mean - np.array([min(p.accuracies) for p in points])
    above = np.array([max(p.accuracies) for p in points]) - mean
    drawn: Any = style | {"ls": "--" if hollow else "-"} | ({"mfc": "white"} if hollow else {})
    ax.errorbar(
        [p.epsilon for p in points],
        mean,
        yerr=np.maximum([below, above], 0.0),
        label=f"{points[0].label} ({'hypothetical' if hollow else 'proved'} ε)",
        capsize=3,
        **drawn,
    )
