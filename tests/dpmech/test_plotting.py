"""The plots show what they were given, with units, in greyscale too, and write the same bytes."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb
from typer.testing import CliRunner

from dpmech import Gaussian, Laplace, TruncatedLaplace
from dpmech.cli import app
from dpmech.plotting import (
    AccuracyPoint,
    Curve,
    NoiseSeries,
    Tradeoff,
    blank_axes,
    plot_accuracy_against_epsilon,
    plot_advantage,
    plot_curve,
    plot_densities,
    plot_noise_against_epsilon,
    plot_tradeoff,
    save_figure,
)
from dpmech.plotting_style import styles

DELTA = np.array([1e-8, 1e-5, 1e-2])
CURVES = [
    Curve(label="a", epsilon=np.array([3.0, 2.0, 1.0]), delta=DELTA),
    Curve(
        label="b",
        epsilon=np.array([np.inf, 4.0, 2.0]),
        delta=DELTA,
        lower_epsilon=np.array([np.inf, 3.5, 1.9]),
    ),
]
SERIES = [NoiseSeries(label="a", epsilon=np.array([0.3, 1.0]), value=np.array([40.0, 12.0]))]
POINTS = [
    AccuracyPoint(label="x", epsilon=8.0, accuracies=(0.6,)),
    AccuracyPoint(label="x", epsilon=2.0, accuracies=(0.5, 0.4, 0.6)),
    AccuracyPoint(label="x", epsilon=2.0, accuracies=(0.7, 0.7), hypothetical=True),
]
RATES = [
    Tradeoff(
        label="a",
        fpr=np.array([0.01, 0.1, 0.5]),
        lower=np.array([0.9, 0.7, 0.2]),
        upper=np.array([0.95, 0.8, 0.3]),
    )
]
PLOTS: list[Callable[..., Any]] = [
    lambda ax: plot_curve(CURVES, ax),
    lambda ax: plot_densities([Gaussian(sigma=1.0), Laplace(b=1.0)], ax),
    lambda ax: plot_noise_against_epsilon(SERIES, ax),
    lambda ax: plot_tradeoff(RATES, ax),
    lambda ax: plot_advantage(RATES, ax),
    lambda ax: plot_accuracy_against_epsilon(POINTS, ax, majority=0.2, non_private=(0.8, 0.9)),
]


def line(ax: Any, label: str) -> Any:
    handles, labels = ax.get_legend_handles_labels()
    return handles[labels.index(label)]


@pytest.mark.parametrize("plot", PLOTS)
def test_every_plot_draws_on_the_axes_given_with_labels_and_a_clear_legend(plot: Any) -> None:
    ax = blank_axes()
    assert plot(ax) is ax
    assert ax.get_xlabel()
    assert "(" in ax.get_ylabel()  # units
    ax.figure.draw_without_rendering()
    axes, legend = ax.get_window_extent(), ax.get_legend().get_window_extent()
    assert legend.y0 >= axes.y1 - 1  # above, where nothing is drawn
    page = ax.figure.bbox
    for box in (legend, ax.xaxis.label.get_window_extent(), ax.yaxis.label.get_window_extent()):
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1


def test_axes_are_made_where_none_are_given() -> None:
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    ax = plot_noise_against_epsilon(SERIES)
    assert ax.figure.number in pyplot.get_fignums()
    pyplot.close(ax.figure)


def test_curves_show_the_upper_bounds_and_leave_infinite_ones_out() -> None:
    ax = plot_curve(CURVES, blank_axes())
    assert line(ax, "a").get_xdata().tolist() == [3.0, 2.0, 1.0]
    assert line(ax, "b").get_xdata().tolist() == [4.0, 2.0]
    assert line(ax, "b").get_ydata().tolist() == [1e-5, 1e-2]
    assert ax.lines[-1].get_xdata().tolist() == [3.5, 1.9]  # the lower bound, thin
    assert ax.lines[-1].get_linewidth() < line(ax, "b").get_linewidth()


def test_attacks_are_bounded_by_the_line_and_the_band_is_between() -> None:
    ax = plot_tradeoff(RATES, blank_axes())
    assert line(ax, "a").get_ydata().tolist() == [0.9, 0.7, 0.2]  # no attack misses less
    assert list(line(ax, "guessing").get_ydata()) == [1, 0]
    assert band(ax) == (0.2, 0.95)
    ax = plot_advantage(RATES, blank_axes())
    np.testing.assert_allclose(line(ax, "a").get_ydata(), [0.09, 0.2, 0.3])  # nor gains more
    assert band(ax) == pytest.approx((0.04, 0.3))


def test_a_curve_may_be_bounded_in_delta() -> None:
    curve = Curve(label="a", epsilon=DELTA, delta=DELTA, lower_delta=DELTA / 2)
    ax = plot_curve([curve], blank_axes())
    assert ax.lines[-1].get_ydata().tolist() == (DELTA / 2).tolist()
    assert band(ax) == (5e-9, 1e-2)


def band(ax: Any) -> tuple[float, float]:
    """The least and the largest y of what is shaded."""
    y = ax.collections[0].get_paths()[0].vertices[:, 1]
    return float(y.min()), float(y.max())


@pytest.mark.parametrize("log", [False, True])
def test_densities_are_those_of_the_laws(log: bool) -> None:
    laws = [Gaussian(sigma=2.0), TruncatedLaplace(b=1.0, bound=2.0)]
    ax = plot_densities(laws, blank_axes(), labels=["g", "t"], log=log)
    x, y = line(ax, "g").get_data()
    np.testing.assert_allclose(y, laws[0].pdf(x))
    assert np.trapezoid(y, x) > 0.98
    x, y = line(ax, "t").get_data()
    assert np.isnan(y[np.abs(x) > 2]).all()
    assert np.isfinite(y[np.abs(x) < 2]).all()
    with pytest.raises(ValueError, match="2 labels, got 1"):
        plot_densities(laws, blank_axes(), labels=["g"])


def test_accuracy_shows_means_intervals_and_what_is_hypothetical() -> None:
    ax = plot_accuracy_against_epsilon(POINTS, blank_axes(), majority=0.2, non_private=(0.8, 0.9))
    proved, guess = line(ax, "x (proved ε)"), line(ax, "x (hypothetical ε)")
    assert proved[0].get_xdata().tolist() == [2.0, 8.0]
    np.testing.assert_allclose(proved[0].get_ydata(), [0.5, 0.6])
    bars = proved[2][0].get_segments()
    np.testing.assert_allclose(bars[0][:, 1], [0.4, 0.6])
    assert proved[0].get_markerfacecolor() != "white"
    assert guess[0].get_markerfacecolor() == "white"
    assert guess[0].get_linestyle() != proved[0].get_linestyle()
    assert line(ax, "largest class").get_ydata()[0] == 0.2
    assert line(ax, "without noise").get_ydata()[0] == pytest.approx(0.85)
    with pytest.raises(ValueError, match="at least one accuracy"):
        AccuracyPoint(label="x", epsilon=1.0, accuracies=())


def test_in_greyscale_neighbours_differ() -> None:
    drawn = [style for style, _ in zip(styles(), range(12), strict=False)]
    looks = [(s["color"], str(s["ls"]), s["marker"]) for s in drawn]
    assert len(set(looks)) == 12
    for one, other in itertools.pairwise(drawn[:4]):
        grey = [np.dot(to_rgb(s["color"]), [0.299, 0.587, 0.114]) for s in (one, other)]
        assert abs(grey[0] - grey[1]) > 0.08
        assert one["marker"] != other["marker"]
        assert one["ls"] != other["ls"]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_files_are_reproducible(tmp_path: Path, ending: str) -> None:
    first, second = (tmp_path / f"{n}.{ending}" for n in (1, 2))
    for path in (first, second):
        save_figure(plot_curve(CURVES, blank_axes()), path)
    content = first.read_bytes()
    assert content == second.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<?xml")


def test_nothing_to_draw_is_refused() -> None:
    for plot in (plot_curve, plot_densities, plot_noise_against_epsilon, plot_tradeoff):
        with pytest.raises(ValueError, match=r"something to plot, got \[\]"):
            plot([], blank_axes())
    with pytest.raises(ValueError, match=r"got 'x\.pdf'"):
        save_figure(blank_axes(), "x.pdf")


def test_importing_the_plots_draws_nothing() -> None:
    code = "import sys, dpmech.plotting; print('matplotlib' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


# From the command line


def plotted(*args: str) -> dict[str, Any]:
    ran = CliRunner().invoke(app, ["plot", *args, "--json"])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def test_plot_curve_gives_certified_points(tmp_path: Path) -> None:
    files = [str(tmp_path / "c.png"), str(tmp_path / "c.svg")]
    out = [word for file in files for word in ("-o", file)]
    found = plotted("curve", "gaussian:sigma=2", "--steps", "4", "--points", "3", *out)
    assert found["files"] == files
    assert all(Path(file).stat().st_size > 1000 for file in files)
    (curve,) = found["curves"]
    from accountants import exact

    for delta, low, high in zip(
        curve["delta"], curve["lower_epsilon"], curve["epsilon"], strict=True
    ):
        assert low <= exact.gaussian_epsilon(delta, 1.0) <= high
        assert high - low <= 2e-3 * high


def test_plot_noise_calibrates_each_law(tmp_path: Path) -> None:
    args = ("--delta", "1e-6", "--epsilons", "1,4", "-o", str(tmp_path / "n.png"))
    found = plotted("noise", "laplace", "gaussian", *args, "--measure", "mean-abs")
    laplace, gaussian = (series["mean-abs"] for series in found["series"])
    assert laplace == pytest.approx([1.0, 0.25], rel=1e-3)
    assert gaussian[0] > gaussian[1] > laplace[1]


def report(folder: Path, **changes: Any) -> None:
    folder.mkdir()
    whole = {
        "data": "docstrings",
        "config": {"system": "dylora", "rank": 8, "seed": 0},
        "final_accuracy": 0.5,
        "majority_share": 0.2,
        "epsilon": None,
        "hypothetical": None,
        **changes,
    }
    (folder / "report.json").write_text(json.dumps(whole))


def test_plot_accuracy_gathers_seeds_and_keeps_forecasts_apart(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", str(tmp_path / "a.png")
    runs.mkdir()
    guess = {"epsilon": 1.99998, "population": 10**6}
    report(runs / "a", epsilon=7.99999, final_accuracy=0.5)
    report(runs / "b", epsilon=7.99998, final_accuracy=0.6)
    report(runs / "c", epsilon=900.0, hypothetical=guess)
    report(runs / "d", final_accuracy=0.7)
    report(runs / "e", epsilon="inf")
    found = plotted("accuracy", str(runs), "-o", out)
    points = {(p["epsilon"], p["hypothetical"]): p["accuracies"] for p in found["points"]}
    assert points == {(8.0, False): [0.5, 0.6], (2.0, True): [0.5]}
    assert found["non_private"] == [0.7]
    assert found["majority"] == pytest.approx(0.2)
    ran = CliRunner().invoke(app, ["plot", "accuracy", str(runs), "-o", out])
    assert ran.stdout.strip() == out
    assert "inf" in ran.stderr
    report(runs / "f", data="sst2", epsilon=1.0)
    ran = CliRunner().invoke(app, ["plot", "accuracy", str(runs), "-o", out])
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "docstrings, sst2" in ran.stderr
