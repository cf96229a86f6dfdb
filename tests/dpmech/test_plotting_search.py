"""The plots of a search show the laws as they are, what they cost, and what they save."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from typer.testing import CliRunner

from accountants import PLD
from dpmech import Gaussian, Laplace, Noise, Target, parse_noise
from dpmech.cli import app
from dpmech.plotting import (
    NoiseSeries,
    blank_axes,
    plot_cost,
    plot_densities,
    plot_gain,
    plot_noise_against_epsilon,
    save_figure,
)
from dpmech.spherical import SphericalGeneralizedGaussian
from dpmech.tabulated import Tabulated, TabulatedSpherical
from optimizer_search import Budget, Cost, SearchProblem, SearchResult, certified, save_result
from optimizer_search.closed_forms import baselines

TABLE = Tabulated(edges=(0.0, 0.5, 1.0, 2.0), masses=(0.3, 0.5, 0.2))
TAIL = Tabulated(edges=(0.0, 0.25, 1.0), masses=(0.3, 0.4), decay=0.5)
SPHERE = TabulatedSpherical(edges=(0.0, 1.0, 2.0, 2.5), masses=(0.2, 0.6, 0.2), dim=3)
SERIES = [
    NoiseSeries(label="a", epsilon=np.array([0.3, 1.0]), value=np.array([40.0, 12.0])),
    NoiseSeries(label="b", epsilon=np.array([0.3, 1.0]), value=np.array([np.inf, 5.0])),
]


def line(ax: Any, label: str) -> Any:
    handles, labels = ax.get_legend_handles_labels()
    return handles[labels.index(label)]


def area(drawn: Any) -> float:
    """Below a line of steps, each from its place to the next."""
    x, y = drawn.get_data()
    return float(np.sum(np.diff(x) * np.nan_to_num(y[:-1])))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("law", [TABLE, TAIL], ids=str)
def test_tables_are_drawn_as_their_steps(law: Tabulated, log: bool) -> None:
    ax = plot_densities([law, Laplace(b=3.0)], blank_axes(), labels=["t", "l"], log=log)
    drawn = line(ax, "t")
    assert drawn.get_drawstyle() == "steps-post"
    assert line(ax, "l").get_drawstyle() == "default"
    x, y = drawn.get_data()
    assert set(law.edges) <= set(x.tolist())
    assert set((-np.array(law.edges)).tolist()) <= set(x.tolist())
    inside = (x[1:] + x[:-1]) / 2
    np.testing.assert_allclose(np.nan_to_num(y[:-1]), law.pdf(inside))
    assert area(drawn) == pytest.approx(1.0, abs=1e-3)
    assert ax.get_yscale() == ("log" if log else "linear")


def test_of_spherical_laws_the_radius_is_drawn() -> None:
    laws: list[Noise] = [
        SPHERE,
        SphericalGeneralizedGaussian(scale=1.0, beta=2.0, dim=3, step=0.05),
    ]
    ax = plot_densities(laws, blank_axes(), labels=["t", "g"])
    x, y = line(ax, "t").get_data()
    assert x.tolist() == list(SPHERE.edges)
    np.testing.assert_allclose(y[:-1], [0.2, 0.6, 0.4])
    assert area(line(ax, "t")) == pytest.approx(1.0)
    assert area(line(ax, "g")) == pytest.approx(1.0, abs=1e-2)  # what is off the axes is left out
    assert line(ax, "g").get_xdata()[-1] < 2.6
    # That of the Gaussian: 4 r^2 e^(-r^2) / sqrt(pi), here with sigma^2 = 1/2.
    x, y = line(ax, "g").get_data()
    middle = (x[1:] + x[:-1]) / 2
    near = (middle > 0.5) & (middle < 2)
    exact = 4 * middle**2 * np.exp(-(middle**2)) / np.sqrt(np.pi)
    np.testing.assert_allclose(y[:-1][near], exact[near], rtol=0.03)
    assert "radius" in ax.get_xlabel()
    assert ax.get_xlim()[0] == 0


def test_a_radius_is_not_drawn_beside_a_scalar() -> None:
    with pytest.raises(ValueError, match="got 1 spherical of 2"):
        plot_densities([SPHERE, Gaussian(sigma=1.0)], blank_axes())


def test_costs_are_drawn_where_they_are_finite() -> None:
    ax = plot_cost(SERIES, blank_axes(), cost="entropy (nats)")
    assert line(ax, "a").get_ydata().tolist() == [40.0, 12.0]
    assert line(ax, "b").get_data()[0].tolist() == [1.0]
    assert ax.get_ylabel() == "entropy (nats)"
    assert ax.get_yscale() == ax.get_xscale() == "log"
    other = plot_noise_against_epsilon(SERIES, blank_axes(), measure="std")
    assert other.get_ylabel() == "std of the noise (query units)"


def test_costs_below_zero_are_on_a_plain_axis() -> None:
    below = NoiseSeries(label="a", epsilon=np.array([1.0, 2.0]), value=np.array([0.5, -0.5]))
    ax = plot_cost([below], blank_axes())
    assert ax.get_yscale() == "linear"
    assert line(ax, "a").get_ydata().tolist() == [0.5, -0.5]


def test_gains_are_shares_of_the_gaussians_epsilon_by_dimension() -> None:
    ax = plot_gain([10, 1, 100], [0.02, 0.18, -0.001], blank_axes(), label="found")
    x, y = line(ax, "found").get_data()
    assert x.tolist() == [1, 10, 100]
    np.testing.assert_allclose(y, [18.0, 2.0, -0.1])
    assert line(ax, "Gaussian").get_ydata()[0] == 0
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "10", "100"]
    assert "%" in ax.get_ylabel()
    with pytest.raises(ValueError, match="got 1 for 2"):
        plot_gain([1, 2], [0.1], blank_axes())
    with pytest.raises(ValueError, match="something to plot"):
        plot_gain([], [], blank_axes())


def test_legends_and_labels_fit_the_page(tmp_path: Path) -> None:
    for place, ax in enumerate(
        [
            plot_densities([TABLE, TAIL], blank_axes(), log=True),
            plot_cost(SERIES, blank_axes()),
            plot_gain([1, 2], [0.2, 0.1], blank_axes()),
        ]
    ):
        ax.figure.draw_without_rendering()
        page = ax.figure.bbox
        for part in (ax.get_legend(), ax.xaxis.label, ax.yaxis.label):
            box = part.get_window_extent()
            assert box.x0 >= page.x0 - 1
            assert box.x1 <= page.x1 + 1
            assert box.y1 <= page.y1 + 1
        paths = [tmp_path / f"{place}{end}" for end in (".png", "again.png")]
        for path in paths:
            save_figure(ax, path)
        assert paths[0].read_bytes() == paths[1].read_bytes()


# From the command line


def plotted(*args: str) -> dict[str, Any]:
    ran = CliRunner().invoke(app, ["plot", *args, "--json"])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def refused(*args: str) -> str:
    ran = CliRunner().invoke(app, ["plot", *args])
    assert (ran.exit_code, ran.stdout) == (2, "")
    return ran.stderr


@pytest.fixture
def law(tmp_path: Path) -> str:
    """A file with a table."""
    problem = SearchProblem(target=Target(epsilon=1.0, delta=1e-3), cost=Cost(name="l1"), steps=2)
    found = certified(problem, TAIL)
    result = SearchResult(
        problem=problem, family="composed", status="by hand", seconds=0.0, **vars(found)
    )
    return f"file:{save_result(result, tmp_path / 'law.npz')}"


def test_a_found_law_is_plotted_beside_others(law: str, tmp_path: Path) -> None:
    out = tmp_path / "d.svg"
    found = plotted("densities", "laplace", law, "--log", "-o", str(out))
    assert found["noises"] == ["laplace:b=1.0", str(parse_noise(law))]
    assert out.stat().st_size > 1000


COSTS = ["variance", "l1", "usefulness:0.9", "quantile:0.8", "entropy"]


@pytest.mark.parametrize("cost", COSTS)
def test_plot_cost_scales_each_law_to_each_epsilon(cost: str, law: str, tmp_path: Path) -> None:
    release = ("--delta", "1e-3", "--steps", "2", "--cost", cost)
    found = plotted(
        "cost", "laplace", law, *release, "--epsilons", "2,1", "-o", str(tmp_path / "c.png")
    )
    assert found["cost"] == cost
    assert [series["epsilon"] for series in found["series"]] == [[1.0, 2.0]] * 2
    for series, noise in zip(found["series"], (Laplace(b=1.0), TAIL), strict=True):
        want = [
            certified(
                SearchProblem(target=Target(epsilon=e, delta=1e-3), steps=2, cost=Cost.parse(cost)),
                noise,
            ).cost
            for e in (1.0, 2.0)
        ]
        assert series["cost"] == pytest.approx(want, rel=1e-4)
        assert want[0] > want[1]
    assert found["files"] == [str(tmp_path / "c.png")]


def test_plot_gain_shows_what_a_search_saves(tmp_path: Path) -> None:
    out = str(tmp_path / "g.png")
    sampled = ("--delta", "1e-5", "--rate", ".01", "--steps", "1000")
    ran = CliRunner().invoke(app, ["plot", "gain", "--dims", "1", *sampled, "-o", out, "--json"])
    assert ran.exit_code == 0, ran.output
    assert "dim=1: epsilon" in ran.stderr
    (row,) = json.loads(ran.stdout)["dims"]
    assert row["gaussian"] == pytest.approx(1.82824, abs=1e-4)
    assert row["gain"] == pytest.approx(1 - row["epsilon"] / row["gaussian"])
    assert row["gain"] > 0.17  # measured: 17.7 %
    assert Path(out).stat().st_size > 1000


def test_plot_gain_searches_every_dimension_at_the_gaussians_variance(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the closed forms alone as the search, and a third of the variance as asked."""
    asked: list[SearchProblem] = []

    def closed_forms(problem: SearchProblem, **_: Any) -> SearchResult:
        asked.append(problem)
        rows = baselines(problem)
        best = {n: getattr(rows[0], n) for n in ("law", "cost", "epsilon", "lower_epsilon")}
        return SearchResult(
            problem=problem, family="x", status="", seconds=0.0, baselines=rows, **best
        )

    monkeypatch.setattr("optimizer_search.search", closed_forms)
    release = ("--delta", "1e-5", "--steps", "3", "--rate", ".1", "--sensitivity", "2")
    found = plotted(
        "gain", "--dims", "5,2", "--sigma", ".7", *release, "-o", str(tmp_path / "g.png")
    )
    assert [row["dim"] for row in found["dims"]] == [problem.dim for problem in asked] == [2, 5]
    assert found["sigma"] == 0.7
    for row, problem in zip(found["dims"], asked, strict=True):
        assert problem.target == Budget(cost=0.7**2, delta=1e-5)
        assert (problem.steps, problem.sampling.rate, problem.sensitivity) == (3, 0.1, 2.0)
        plain = PLD().compose(problem.mechanism(Gaussian(sigma=0.7)), 3).epsilon(1e-5)
        assert row["gaussian"] == pytest.approx(plain, rel=2e-4)
        assert row["gain"] == 1 - row["epsilon"] / row["gaussian"] >= 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("cost", "laplace", "--delta", "1e-5", "--cost", "mean"), "Unknown cost 'mean'"),
        (("cost", "laplace", "--delta", "1e-5", "--epsilons", "1,x"), "1,x"),
        (("cost", "magic", "--delta", "1e-5"), "Unknown law 'magic'"),
        (("gain", "--delta", "1e-5", "--dims", "1,b"), "1,b"),
        (("gain", "--delta", "1e-5", "--dims", "0"), "dim=0"),
        (("gain", "--delta", "1e-5", "--sigma", "0"), "cost=0.0"),
        (("gain", "--delta", "2"), "delta=2.0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_computed(
    args: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    assert said in refused(*args, "-o", str(tmp_path / "x.png"))
    assert not (tmp_path / "x.png").exists()
    assert "pdf" in refused(*args, "-o", str(tmp_path / "x.pdf"))


def test_a_long_tail_beside_a_wide_law_stays_small() -> None:
    """The steps of a fine table are drawn as far as there is any mass, not as far as the axis."""
    fine = TAIL.scaled(1e-4)
    ax = plot_densities([fine, Laplace(b=1e3)], blank_axes(), labels=["f", "l"], log=True)
    x, _ = line(ax, "f").get_data()
    assert len(x) < 200
    assert np.max(x) < 1.0
