"""What the README and the guides tell the reader to run is run, block by block, in a new folder.

* python: the blocks of one page share one namespace.
* console, bash, sh: line by line (with `$ ` the lines between are the expected output). Lines that
  build or fetch the environment that the test already runs in are left out.
* text or json right below such a block: what it must print; `...` stands for anything.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/tutorial/*.md")),
    *sorted(ROOT.glob("docs/how-to/*.md")),
]
SHELL = {"bash", "console", "sh", "shell"}
LEFT_OUT = ("make", "pip", "git", "cd", "python -m pip", "python -m venv", "source", "export")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: where it is, what it holds, what it must print (None: not said)."""

    where: str
    language: str
    code: str
    output: str | None = None


def blocks(page: Path) -> Iterator[Block]:
    """The runnable blocks of a page, each with the output block directly below it, if any."""
    source = page.read_text()
    found = list(FENCE.finditer(source))
    for this, below in zip(found, [*found[1:], None], strict=True):
        if this[1] == "python" or this[1] in SHELL:
            adjoining = below is not None and not source[this.end() : below.start()].strip()
            answers = below is not None and adjoining and below[1] in {"text", "json"}
            where = f"{page.name}:{source.count(chr(10), 0, this.start()) + 1}"
            output = below[2] if below is not None and answers else None
            yield Block(where=where, language=this[1], code=this[2], output=output)


def commands(code: str) -> Iterator[tuple[str, str | None]]:
    """The command lines of a shell block, each with the output shown below it (`$ ` style only)."""
    lines = code.replace("\\\n", " ").splitlines()
    prompted = any(line.startswith("$ ") for line in lines)
    starts = [i for i, line in enumerate(lines) if line.startswith("$ ") or not prompted]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        command = lines[start].removeprefix("$ ").strip()
        if command and not command.startswith("#"):
            yield command, "\n".join(lines[start + 1 : end]) or None


def expect(block: Block, got: str, want: str | None) -> None:
    flags = ELLIPSIS | NORMALIZE_WHITESPACE
    if want is not None and not OutputChecker().check_output(want, got, flags):
        pytest.fail(f"{block.where} shows\n{want}\nbut printed\n{got}")


def run_python(block: Block, names: dict[str, Any]) -> None:
    printed = io.StringIO()
    lines = int(block.where.rpartition(":")[2]) * "\n"  # tracebacks then name the page's own lines
    with contextlib.redirect_stdout(printed):
        exec(compile(lines + block.code, block.where, "exec"), names)
    expect(block, printed.getvalue(), block.output)


def run_shell(block: Block, folder: Path, script: Path) -> None:
    env = {**os.environ, "PATH": f"{script}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}
    wanted = [c for c in commands(block.code) if not re.match(rf"({'|'.join(LEFT_OUT)})\b", c[0])]
    printed = ""
    for command, output in wanted:
        ran = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", command],
            cwd=folder, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ran.returncode:
            pytest.fail(f"{block.where}: {command}\nexit status {ran.returncode}\n{ran.stderr}")
        expect(block, ran.stdout, output)
        printed += ran.stdout
    expect(block, printed, block.output if wanted else None)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A folder for PATH in which `dpmech` and `python` are those of this environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    main = "import sys; sys.argv[0] = 'dpmech'; from dpmech.cli import main; sys.exit(main())"
    for name, command in {
        "python": [sys.executable],
        "dpmech": [sys.executable, "-c", main],
    }.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def run_page(page: Path, folder: Path, script: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python":
            run_python(block, names)
        else:
            run_shell(block, folder, script)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_the_page_shows_runs(
    page: Path, tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.chdir(folder)
    run_page(page, folder, script)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [to for to in LINK.findall(page.read_text()) if not (page.parent / to).exists()]
    assert missing == []


def test_the_readme_is_short_and_shows_something() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= 120
    assert {block.language for block in blocks(PAGES[0])} & SHELL


@pytest.mark.parametrize(
    "wrong",
    [
        "```python\nx = 1\n```\n```python\nassert x == 2\n```\n",
        "```python\nprint(1.5)\n```\n\n```text\n1.6\n```\n",
        "```bash\nmake demo\nfalse | cat\n```\n",
        "```console\n$ echo a b\na c\n```\n",
        '```bash\necho \'{"a": 1}\'\n```\n```json\n{"a": 2}\n```\n',
        "```sh\nno-such-command-of-ours\n```\n",
    ],
)
def test_a_page_that_is_wrong_fails(tmp_path: Path, script: Path, wrong: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(wrong)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_page(page, tmp_path, script)


def test_a_page_that_is_right_passes(tmp_path: Path, script: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\n```\n```python\nprint(x, 0.123)\n```\n\n```text\n1 0.1...\n```\n"
        "```bash\nmake demo  # left out\necho one \\\n  two | tr a-z A-Z\n```\n"
        "```text\nONE TWO\n```\n"
        "```console\n$ echo a b\na b\n$ true\n```\n"
    )
    run_page(page, tmp_path, script)
