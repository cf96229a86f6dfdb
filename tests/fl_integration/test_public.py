"""The package without one of its libraries says which extra to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

HIDE = """
import sys
sys.modules[sys.argv[1]] = None
try:
    import fl_integration
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["torch", "peft", "safetensors"])
def test_a_missing_library_names_the_extra(name: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HIDE, name], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "pip install 'dpmech[train]'" in ran.stdout
    assert name in ran.stdout
