"""What the README and the guides tell the reader to run is run, block by block, in a new folder.

* python: the blocks of one page share one namespace.
* console, bash, sh: line by line (with `$ ` the lines between are the expected output). Lines that
  build or fetch the environment that the test already runs in are left out. A line that is one
  dpmech command is run in this process, which has the libraries loaded; tests/dpmech/test_cli.py
  runs dpmech as a process.
* text or json right below such a block: what it must print; `...` stands for anything.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
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
    wanted = [c for c in commands(block.code) if not re.match(rf"({'|'.join(LEFT_OUT)})\b", c[0])]
    printed = ""
    for command, output in wanted:
        args = plain_dpmech(command)
        ran = in_shell(command, folder, script) if args is None else in_process(args)
        if ran.status:
            pytest.fail(f"{block.where}: {command}\nexit status {ran.status}\n{ran.stderr}")
        expect(block, ran.stdout, output)
        printed += ran.stdout
    expect(block, printed, block.output if wanted else None)


@dataclass(frozen=True)
class Ran:
    status: int
    stdout: str
    stderr: str


def plain_dpmech(command: str) -> list[str] | None:
    """The arguments of a line that is one dpmech command and nothing that only a shell knows."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    special = any(set(word) <= set("();<>|&") for word in words) or re.search(r"[$`*?~]", command)
    return words[1:] if words[0] == "dpmech" and not special else None


def in_shell(command: str, folder: Path, script: Path) -> Ran:
    env = {**os.environ, "PATH": f"{script}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}
    ran = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", command],
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def in_process(args: list[str]) -> Ran:
    """Run dpmech as its entry point does; the working directory is the page's folder already."""
    from dpmech.cli import main

    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["dpmech", *args])
        patch.setenv("COLUMNS", "100")
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                main()
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
    return Ran(status, stdout.getvalue(), stderr.getvalue())


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
        "```sh\ndpmech epsilon nonsense --delta 1e-5\n```\n",
        "```console\n$ dpmech --version\ndpmech of another version\n```\n",
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
        "```console\n$ dpmech --version\ndpmech ...\n$ dpmech --version | wc -l\n1\n```\n"
    )
    run_page(page, tmp_path, script)


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("dpmech laws", ["laws"]),
        ("dpmech laws 'lmo' tulap", ["laws", "lmo", "tulap"]),
        ("dpmech laws | head -1", None),
        ("dpmech laws > laws.txt", None),
        ("dpmech laws && true", None),
        ("dpmech plot accuracy runs/*", None),
        ("dpmech epsilon $LAW", None),
        ("X=1 dpmech laws", None),
        ("python -m dpmech", None),
    ],
)  # fmt: skip
def test_only_what_needs_no_shell_is_run_without_one(command: str, args: list[str] | None) -> None:
    assert plain_dpmech(command) == args
