"""`import plait` is quick and complete."""

import ast
import subprocess
import sys

import pytest

import plait
from plait.api import _MODULES
from plait.tests.paths import ROOT

LOADED = """
import sys
before = set(sys.modules)
import plait
print(*sorted(set(sys.modules) - before))
"""


def test_import_loads_next_to_nothing():
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    modules = done.stdout.split()
    assert len(modules) <= 15
    ours = [name for name in modules if name.startswith("plait")]
    assert ours == ["plait", "plait.api", "plait.ir", "plait.ir.late_names"]
    assert not {"numpy", "msgspec", "torch", "rich"} & set(modules)


def test_names_are_the_same_to_checkers_and_at_run_time():
    """A name stands in three places: the imports for checkers, the modules by name, and `__all__`."""
    tree = ast.parse((ROOT / "api" / "__init__.py").read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names} - {"late_names"}
    assert names == set(plait.__all__) == set(_MODULES)
    assert dir(plait) == plait.__all__ == sorted(plait.__all__)


def test_every_public_name_is_there_and_documented():
    for name in plait.__all__:
        assert getattr(plait, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        _ = plait.nothing


def test_every_error_has_one_root_and_an_exit_code():
    for name in plait.__all__:
        if name.endswith("Error"):
            kind = getattr(plait, name)
            assert issubclass(kind, plait.PlaitError)
            assert kind.exit_code in (1, 2, 3, 5, 6, 7)  # 1: ranks failed
