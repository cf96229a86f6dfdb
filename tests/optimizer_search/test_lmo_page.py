"""docs/explanation/lmo.md shows what benchmarks/lmo_tables.py computes; its code runs."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from pathlib import Path
from types import ModuleType

import pytest

from dpmech import LMO_PRESETS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "lmo.md").read_text()
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("lmo_tables")


def shown(name: str) -> list[list[str]]:
    """The rows of a table of the page, without its head."""
    found = re.search(rf"<!-- table {name} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    assert found, name
    rows = [line for line in found[1].splitlines() if line]
    # A bar inside a cell is escaped, and none of these has a space on each side.
    return [row.strip("| ").split(" | ") for row in rows[2:]]


def numbers(cells: list[str]) -> list[float]:
    return [float(x) for cell in cells for x in NUMBER.findall(cell)]


def agree(row: list[str], computed: list[str]) -> None:
    assert len(row) == len(computed)
    assert numbers(row) == pytest.approx(numbers(computed), rel=2e-3)


def test_every_table_is_there_and_whole(tables: ModuleType) -> None:
    names = re.findall(r"<!-- table (\w+) -->", PAGE)
    assert sorted(names) == sorted(tables.TABLES)
    for name in names:
        assert len({len(row) for row in shown(name)}) == 1, name


def test_the_sets(tables: ModuleType) -> None:
    for row in shown("sets"):
        agree(row, tables.set_row(row[0]))


def test_the_gaussians(tables: ModuleType) -> None:
    for row in shown("gaussians"):
        agree(row, tables.gaussian_row(row[0]))


@pytest.mark.parametrize("name", ["0.3", "3"])
def test_the_vectors(tables: ModuleType, name: str) -> None:
    rows = [row for row in shown("vectors") if row[0].startswith(f"{name},")]
    for row, computed in zip(rows, tables.vector_rows(name), strict=True):
        agree(row, computed)


def test_one_row_of_the_searches(tables: ModuleType) -> None:
    row = next(row for row in shown("searches") if row[0] == "3")
    # The best of all laws is a search of its own, with tests of its own.
    agree(row[:8], tables.search_row(3.0)[:8])


def test_the_page_draws_its_conclusions_from_its_tables(tables: ModuleType) -> None:
    for row in shown("searches"):
        paper, free_paper, grid, free, mixture, laplace, staircase = (
            float(x) if x != "—" else 0.0 for x in row[1:8]
        )
        assert paper < free_paper < free
        assert grid < free == pytest.approx(laplace, abs=1e-5)
        assert mixture == pytest.approx(laplace, abs=1e-5)
        assert staircase > laplace
    for row in shown("vectors"):
        sigma, own = float(row[5]), float(row[6])
        assert 0.14 < (sigma / own) ** 2 < 0.56
        low, high = (float(x) for x in row[2].split(" … "))
        assert float(row[1]) <= low <= high
    for row in shown("composed"):
        *_, laplace, lmo, mixture = (float(x) for x in row[4:8])
        assert numbers([row[8]])[0] < mixture <= lmo <= laplace
    assert sum(float(row[4]) > float(row[0]) for row in shown("sets")) == 3  # as drawn


def test_the_thresholds(tables: ModuleType) -> None:
    (row,) = shown("thresholds")
    assert row[1:3] == ["3.839", "4.907"]
    assert row[-1] == "every ε"
    assert numbers(tables.thresholds().splitlines()[-1].split(" | ")) == numbers(row)


@pytest.mark.parametrize("epsilon", [float(name) for name in LMO_PRESETS])
def test_delta_leaves_mixtures_next_to_nothing(tables: ModuleType, epsilon: float) -> None:
    assert 0 <= tables.advantage_of_mixtures(epsilon) <= 1.3e-5


def test_the_page_replaces_only_what_is_asked_for() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        page = importlib.import_module("lmo_worth")
    assert page.with_tables(PAGE, []) == PAGE
    stale = PAGE.replace("| 0.3 | 0.2932 (128; 20) |", "| 0.3 | 0 (0; 0) |")
    assert stale != PAGE
    assert page.with_tables(stale, ["sets"]) == PAGE


def test_the_pages_code_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert "laplace:b=" in printed.getvalue()
