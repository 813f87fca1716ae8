"""Reading a program's folder: the table, and one stage's generated modules."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from ...ir.errors import FileError
from ...ir.files.reading import read_verified
from ...ir.plan.program import ProgramTable
from ...ir.plan.verify.program import verify_program

FORMAT = "plait/program"
MODEL = "model.json"  # the traced model beside a compiled program


def read_table(folder: Path) -> ProgramTable:
    """The table of a program; raises FileError when it is not one."""
    path = folder / "table.json"
    if folder.is_file():
        raise FileError(
            f"{folder} is a file, not the folder of a program: "
            f"`plait compile {folder} SOURCE -o program` writes one of a plan"
        )
    if not path.is_file():
        raise FileError(
            f"{path}: no such file; `plait compile PLAN SOURCE -o {folder}` writes a program"
        )
    return read_verified(path, ProgramTable, FORMAT, verify_program)


def import_stage(folder: Path, number: int, kind: str = "stage") -> ModuleType:
    """Stage (or rank) `number` of a program, imported under a private name, freshly each time. Raises
    FileError where it, or what it imports, is missing or no Python."""
    folder = folder.resolve()
    name = f"_plait_program_{sha256(str(folder).encode()).hexdigest()[:16]}"
    for known in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[known]
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not (folder / f"{kind}_{number}.py").is_file():
        raise FileError(f"{folder}: not a program: {kind}_{number}.py is missing; compile it again")
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    importlib.invalidate_caches()
    try:
        spec.loader.exec_module(package)
        return importlib.import_module(f"{name}.{kind}_{number}")
    except (SyntaxError, ImportError) as error:
        raise FileError(f"{folder}: damaged, compile it again: {error}") from error
