"""What a file or folder is, and whether it is sound."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, cast

from ..ir.errors import FileError
from ..ir.files.json_files import parse
from ..ir.files.reading import naming, read_bytes
from ..ir.model.model import Model
from ..ir.plan.placement import GRAPH_FORMAT
from .formats import files

LARGEST_SOURCE = 64 << 20  # bytes of one generated module


def check(path: Path) -> str:
    """The kind of a file or folder that has no fault; nothing in it is run. Raises FileError."""
    if path.is_dir():
        return _check_folder(path)
    if path.suffix == ".toml":
        from ..cost_model.hardware import load_any_cluster

        load_any_cluster(str(path))
        return "cluster"
    if path.suffix == ".jsonl":
        from .plans.step_log import read_steps

        read_steps(path)
        return "log of steps"
    if path.suffix == ".csv":
        from .formats.buffer_files import read_buffers

        read_buffers(path)
        return "list of buffers"
    return _check_json(path)


def _check_json(path: Path) -> str:
    """A JSON file: by its format, or a strategy of Galvatron's, which names none."""
    data = read_bytes(path)
    with naming(path):
        parsed = parse(data)
        if isinstance(parsed, dict) and "pp_deg" in cast("dict[str, Any]", parsed):
            from .formats.galvatron_files import verify_fields

            verify_fields(cast("object", parsed))
            return "strategy of Galvatron's"
        kind = files.known_format(parsed)
    if kind == GRAPH_FORMAT:
        files.read_graph(path)
        return kind
    value = files.read(path, files.KINDS[kind].type, kind)
    if isinstance(value, Model):
        from ..ir.capture.sources.derived_types import verify_types

        with naming(path):
            verify_types(value)
    return kind


def _check_folder(path: Path) -> str:
    if (path / "table.json").exists():
        _check_program(path)
        return "plait/program"
    from ..runtime.checkpoint.generations import MANIFEST, verify_generations

    if (path / MANIFEST).exists() or any(path.glob(f"*/{MANIFEST}")):
        verify_generations(path)
        return "plait/checkpoint"
    raise FileError(f"{path}: neither the folder of a program nor of checkpoints")


def _check_program(folder: Path) -> None:
    """The table, a module for every stage or rank, and Python in all of them."""
    from ..ir.plan.program import PLACED_SCHEDULE
    from ..runtime.launch.program_folder import read_table

    table = read_table(folder)
    kind = "rank" if table.schedule == PLACED_SCHEDULE else "stage"
    modules = [f"{kind}_{n}.py" for n in range(table.stages)]
    if table.groups:
        modules = [f"{group.folder}/stage_{group.stage}.py" for group in table.groups]
    for name in [name for name in modules if not (folder / name).is_file()][:1]:
        raise FileError(f"{folder}: {name} is missing; compile it again")
    for axis in table.compression:
        if axis.has_kernels:
            read_bytes(folder / axis.source, LARGEST_SOURCE)
    for module in sorted(folder.rglob("*.py")):
        data = read_bytes(module, LARGEST_SOURCE)
        with naming(module):
            _parse_source(data)


def _parse_source(data: bytes) -> None:
    try:
        ast.parse(data)
    except (SyntaxError, RecursionError) as error:
        raise FileError(f"not Python: {error}") from None
