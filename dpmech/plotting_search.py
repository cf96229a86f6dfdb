"""Plots of laws and of what they cost (see :mod:`dpmech.plotting`, which has them too)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dpmech.noise import Floats, Noise
from dpmech.plotting_style import finished, log_epsilon, log_values, started, styles
from dpmech.spherical import Spherical
from dpmech.tabulated import Tabulated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "NoiseSeries",
    "plot_cost",
    "plot_densities",
    "plot_gain",
    "plot_noise_against_epsilon",
]

_NODES, _MARKERS = 801, 11
_LOG_FLOOR = 1e-8  # densities below this share of the largest are left out


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseSeries:
    """What a law costs, ``value[i]`` at ``epsilon[i]``: its std, its variance, its mean size."""

    label: str
    epsilon: Floats
    value: Floats


def plot_densities(
    noises: Sequence[Noise],
    ax: Axes | None = None,
    *,
    labels: Sequence[str] | None = None,
    log: bool = False,
) -> Axes:
    """Draw the densities of laws over the range that holds most of the widest of them.

    Tables are drawn as the steps that they are. Of spherical laws, the density of the radius is.

    Args:
        noises: the laws: all of them scalar, or all spherical.
        ax: axes to draw on (a new figure by default).
        labels: names for the legend (by default the laws as they are written).
        log: logarithmic density, for comparing tails.

    Raises:
        ValueError: nothing to draw, scalar and spherical laws at once, as many labels as laws are
            not given, or no matplotlib.
    """
    names = [str(noise) for noise in noises] if labels is None else list(labels)
    if len(names) != len(noises):
        raise ValueError(f"Expected {len(noises)} labels, got {len(names)}.")
    ax, spherical = started(noises, ax), _all_spherical(noises)
    reach = max(_reach(noise, 1e-4 if log else 5e-3) for noise in noises)
    for place, (style, noise) in enumerate(zip(styles(), noises, strict=False)):
        x, y = _line(noise, reach)
        steps = "steps-post" if isinstance(noise, Tabulated | Spherical) else "default"
        # Between the markers of a line; those of the next line start later.
        apart = max(1, len(x) // _MARKERS)
        every = (place * apart // len(noises), apart)
        ax.plot(x, _or_gap(y), label=names[place], markevery=every, drawstyle=steps, **style)
    if log:
        ax.set_yscale("log")
        ax.set_ylim(bottom=max(ax.get_ylim()[0], _LOG_FLOOR * ax.get_ylim()[1]))
    else:
        ax.set_ylim(bottom=0)
    ax.set_xlim(0 if spherical else -reach, reach)
    what = "radius |x|" if spherical else "noise x"
    return finished(ax, f"{what} (units of the query)", "density (1 / unit of the query)")


def _all_spherical(noises: Sequence[Noise]) -> bool:
    """Whether the laws are spherical; ValueError where some are."""
    count = sum(isinstance(noise, Spherical) for noise in noises)
    if 0 < count < len(noises):
        raise ValueError(
            f"Expected scalar laws or spherical ones, got {count} spherical of {len(noises)}: the "
            "density of a radius is no density of a scalar. Use spherical-gg:beta=2 for a Gaussian."
        )
    return count > 0


def _reach(noise: Noise, tail: float) -> float:
    """How far out the law has all of its mass but ``tail``."""
    if not isinstance(noise, Spherical):
        return float(noise.isf(tail))
    inside = np.cumsum(noise.shells.masses)
    last = min(int(np.searchsorted(inside, 1 - tail)), len(inside) - 1)
    return float(noise.shells.edges[last + 1])


def _line(noise: Noise, reach: float) -> tuple[Floats, Floats]:
    """Places and densities there: of laws in steps, where each step starts, and its height."""
    if isinstance(noise, Spherical):
        shells = noise.shells
        count = _within(shells.edges, reach)
        edges = shells.edges[: count + 1]
        return edges, np.append(shells.masses[:count] / np.diff(edges), 0.0)
    if not isinstance(noise, Tabulated):
        x = np.linspace(-reach, reach, _NODES)
        return x, noise.pdf(x)
    width, end = noise.edges[-1] - noise.edges[-2], min(reach, float(noise.isf(1e-12)))
    half = np.append(noise.edges, np.arange(noise.edges[-1] + width, end + width, width))
    half = half[: _within(half, reach) + 1]
    x = np.concatenate([-half[:0:-1], half])
    return x, np.append(noise.pdf((x[1:] + x[:-1]) / 2), 0.0)


def _within(edges: Floats, reach: float) -> int:
    """How many steps start before ``reach``: what lies beyond would only squeeze the rest."""
    return min(int(np.searchsorted(edges, reach)), len(edges) - 1)


def plot_noise_against_epsilon(
    series: Sequence[NoiseSeries], ax: Axes | None = None, *, measure: str = "standard deviation"
) -> Axes:
    """Draw how much noise each law needs for an epsilon, both axes logarithmic.

    Args:
        series: one a law.
        ax: axes to draw on (a new figure by default).
        measure: what the values are, such as "standard deviation" or "E|X|".

    Raises:
        ValueError: nothing to draw, or matplotlib is not installed.
    """
    return plot_cost(series, ax, cost=f"{measure} of the noise (query units)")


def plot_cost(
    series: Sequence[NoiseSeries], ax: Axes | None = None, *, cost: str = "variance (query units²)"
) -> Axes:
    """Draw what each law costs at the epsilons it is scaled to; infinite costs are left out.

    Both axes are logarithmic; that of the cost only where all costs are above 0 (entropy may not
    be).

    Args:
        series: one a law.
        ax: axes to draw on (a new figure by default).
        cost: what the values are, with their unit.

    Raises:
        ValueError: nothing to draw, or matplotlib is not installed.
    """
    ax = started(series, ax)
    for style, one in zip(styles(), series, strict=False):
        finite = np.isfinite(one.value)
        ax.plot(one.epsilon[finite], one.value[finite], label=one.label, **style)
    log_epsilon(ax, np.concatenate([one.epsilon for one in series]))
    if all(np.all(one.value > 0) for one in series):
        log_values(ax)
    return finished(ax, "ε (target, proved)", cost)


def plot_gain(
    dims: Sequence[int],
    gains: Sequence[float],
    ax: Axes | None = None,
    *,
    label: str = "best found",
) -> Axes:
    """Draw how much of the Gaussian's epsilon a law of the same variance saves, by dimension.

    Args:
        dims: dimensions of the query, one a gain.
        gains: 1 - epsilon / epsilon of the Gaussian.
        ax: axes to draw on (a new figure by default).
        label: name of the laws for the legend.

    Raises:
        ValueError: nothing to draw, not one gain a dimension, or no matplotlib.
    """
    if len(dims) != len(gains):
        raise ValueError(f"Expected one gain a dimension, got {len(gains)} for {len(dims)}.")
    ax = started(dims, ax)
    order = np.argsort(dims)
    x, y = np.array(dims, dtype=np.float64)[order], 100 * np.array(gains)[order]
    ax.plot(x, y, label=label, **next(styles()))
    ax.axhline(0.0, color="0.5", lw=1, ls=":", label="Gaussian", zorder=1)
    log_epsilon(ax, x)
    return finished(
        ax,
        "dimension of the query (coordinates)",
        "ε saved at equal variance (% of the Gaussian's)",
    )


def _or_gap(values: Floats) -> Floats:
    """Zeros as gaps: outside its support a law has no density to draw."""
    return np.where(values > 0, values, np.nan)
