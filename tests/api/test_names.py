"""`import plait` is quick and complete."""

import ast
import subprocess
import sys

import pytest

import plait
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
    assert [name for name in modules if name.startswith("plait")] == ["plait", "plait.api"]
    assert not {"numpy", "msgspec", "torch", "rich"} & set(modules)


def test_names_are_the_same_to_checkers_and_at_run_time():
    """A name stands in four places: `__all__` and the imports for checkers, here and in `plait.api`."""
    for file in (ROOT / "__init__.py", ROOT / "api" / "__init__.py"):
        imports = [
            n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom)
        ]
        names = {alias.name for node in imports for alias in node.names}
        assert {name for name in names if name[0] != "_" and name != "import_module"} == set(
            plait.__all__
        )
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
