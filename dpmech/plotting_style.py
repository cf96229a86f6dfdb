"""How plots look: colours, axes, legend and files (see :mod:`dpmech.plotting`).

Colours differ in lightness, and line styles and markers differ too: in greyscale nothing is lost.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpmech.files import write_atomically
from dpmech.noise import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Five colours of different lightness that also differ for readers who confuse red and green.
_COLOURS = ("#0b1f4b", "#9c2f2f", "#3b82c4", "#e09f3e", "#8b8b8b")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v")
FORMATS = (".png", ".svg")
_SIZE = (6.4, 4.2)  # inches
_DPI = 160
_LEGEND_WIDTH = 84  # characters that fit side by side


def require_matplotlib() -> None:
    """Raise ValueError that names the extra, where matplotlib is not installed."""
    try:
        import_module("matplotlib.figure")
    except ImportError:
        raise ValueError("Plots need matplotlib; run: pip install 'dpmech[plot]'.") from None


def blank_axes() -> Axes:
    """Axes of a new figure that needs no display and that no window manager knows of."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=_SIZE, dpi=_DPI, layout="constrained").subplots()


def save_figure(ax: Axes, path: str | Path) -> None:
    """Write the figure of ``ax`` as PNG or SVG, by the name's ending; same plot, same bytes.

    Raises ValueError for another ending, and where the file cannot be written.
    """
    import matplotlib

    path = checked_format(path)
    content, kind = io.BytesIO(), path.suffix[1:]
    # Neither a date nor random ids: a plot that did not change leaves its file as it was.
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure: Any = ax.figure
    with matplotlib.rc_context({"svg.hashsalt": "dpmech"}):
        figure.savefig(content, format=kind, metadata=metadata)
    write_atomically(path, content.getvalue())


def checked_format(path: str | Path) -> Path:
    """The path, if it ends in .png or .svg."""
    if Path(path).suffix not in FORMATS:
        raise ValueError(f"Expected a file that ends in {' or '.join(FORMATS)}, got {str(path)!r}.")
    return Path(path)


def styles() -> Iterator[dict[str, Any]]:
    """Colour, line and marker of the first, second, … thing; they repeat out of step."""
    place = 0
    while True:
        yield {
            "color": _COLOURS[place % len(_COLOURS)],
            "ls": _LINES[(place + place // len(_COLOURS)) % len(_LINES)],
            "marker": _MARKERS[(place + 2 * (place // len(_COLOURS))) % len(_MARKERS)],
            "ms": 5,
            "lw": 1.6,
        }
        place += 1


def log_epsilon(ax: Axes, epsilons: Floats) -> None:
    """A logarithmic axis with plain numbers at the epsilons drawn, as far as they fit."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    ax.set_xscale("log")
    ticks = _apart(sorted(set(epsilons.tolist())))
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())


def log_values(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers: 1, 2, 5, 10, …; powers of ten over a wide range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _apart(values: Sequence[float]) -> list[float]:
    """Those of rising values that leave room for labels: a fourteenth of the range, in logs."""
    kept: list[float] = []
    gap = np.log(values[-1] / values[0]) / 14 if len(values) > 1 else 0.0
    for value in values:
        if not kept or np.log(value / kept[-1]) > gap:
            kept.append(value)
    return kept


def started(things: Sequence[object], ax: Axes | None) -> Axes:
    """The axes to draw on."""
    require_matplotlib()
    if not things:
        raise ValueError(f"Expected something to plot, got {things!r}.")
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=_SIZE, layout="constrained")[1]


def finished(ax: Axes, x: str, y: str) -> Axes:
    """Labels, a light grid, and a legend above the axes, where nothing is drawn."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(visible=True, which="major", color="0.88", lw=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    # Lines of reference come last; runs with intervals are containers, which matplotlib puts last.
    entries = sorted(
        zip(*ax.get_legend_handles_labels(), strict=True), key=lambda e: _is_line(e[0])
    )
    longest = max(len(label) for _, label in entries)
    ax.legend(
        *zip(*entries, strict=True),
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=max(1, min(3, len(entries), _LEGEND_WIDTH // (longest + 8))),
        frameon=False,
        fontsize="small",
    )
    return ax


def _is_line(handle: object) -> bool:
    from matplotlib.lines import Line2D

    return isinstance(handle, Line2D)
