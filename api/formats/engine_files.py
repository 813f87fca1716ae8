"""Configuration files of other engines: TOML, YAML, JSON or command lines, as settings and back.

Whatever stands in a file that is not about spreading training is left to the job; what is about it and
cannot be read is a FileError with its place.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from ...ir.errors import FileError, UsageError
from ...ir.files.json_files import located, parse
from ...planner.interop import accelerate, deepspeed, megatron, torchtitan
from ...planner.interop.engine_layout import EngineLayout, check_layout
from .command_lines import Settings, parse_flags
from .yaml_text import parse_yaml

MOST_BYTES = 4 << 20
COMMENTS = "comments"  # JSON has none: a key that the engines do not read


class EngineFormat(NamedTuple):
    """How an engine writes: the struct of what is read, both directions, its usual file, and keys by
    which a file is known."""

    file: type[Any]
    read: Callable[[Any, int], EngineLayout]
    settings: Callable[[EngineLayout], Settings]
    suffix: str
    keys: tuple[str, ...]


FORMATS: dict[str, EngineFormat] = {
    "torchtitan": EngineFormat(
        torchtitan.TorchtitanFile, torchtitan.read, torchtitan.settings, ".toml",
        ("parallelism", "activation_checkpoint"),
    ),
    "megatron": EngineFormat(
        megatron.MegatronFile, megatron.read, megatron.settings, ".args",
        tuple(n for n in megatron.MegatronFile.__struct_fields__ if n not in ("bf16", "fp16")),
    ),
    "accelerate": EngineFormat(
        accelerate.AccelerateFile, accelerate.read, accelerate.settings, ".yaml",
        ("distributed_type",),
    ),
    "deepspeed": EngineFormat(
        deepspeed.DeepSpeedFile, deepspeed.read, deepspeed.settings, ".json",
        ("zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu"),
    ),
}  # fmt: skip


def read_engine_file(path: Path, devices: int) -> EngineLayout:
    """The layout that a file says for `devices` devices; raises FileError naming what is wrong."""
    settings = read_settings(path)
    engine = engine_of(settings)
    if engine is None:
        raise FileError(f"{path}: $: no configuration of {', '.join(FORMATS)}")
    format_ = FORMATS[engine]
    if engine == "megatron":
        settings = _flat(settings)
    for name in format_.file.__struct_fields__:
        value = settings.get(name)
        if isinstance(value, str) and value.startswith("$"):
            raise FileError(f"{path}: $.{name}: the script says no one value of {value}")
    try:
        file = msgspec.convert(settings, format_.file, strict=False)
        layout = format_.read(file, devices)
        check_layout(layout)
    except msgspec.ValidationError as error:
        raise FileError(f"{path}: {located(str(error))}") from None
    except (ValueError, UsageError) as error:
        raise FileError(f"{path}: $: {error}") from None
    return layout


def engine_of(settings: Settings) -> str | None:
    """The engine whose keys these settings have."""
    names = {str(name).lstrip("-").replace("-", "_") for name in (*settings, *_flat(settings))}
    return next((e for e, f in FORMATS.items() if any(key in names for key in f.keys)), None)


def is_engine_file(path: str) -> bool:
    """Whether a name can be that of an engine's file, and none of Plait's."""
    suffix = Path(path).suffix
    if suffix == ".json":
        try:
            head = json.loads(Path(path).read_bytes())
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(head, dict) and "format" not in head and engine_of(head) is not None
    return suffix in (".toml", ".yaml", ".yml", ".args", ".sh", ".txt")


def read_settings(path: Path) -> Settings:
    """The settings of a file by its suffix; text of flags where that is none of the known ones."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise FileError(f"{path}: $: {len(data)} bytes; at most {MOST_BYTES} are read")
    try:
        settings = _parsed(path.suffix, data)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: $: {str(error)[:200]}") from None
    if not isinstance(settings, dict):
        raise FileError(f"{path}: $: not a table of settings")
    return cast(Settings, settings)


def _parsed(suffix: str, data: bytes) -> object:
    if suffix == ".json":
        return parse(data)
    text = data.decode("utf-8")
    if suffix == ".toml":
        return tomllib.loads(text)
    if suffix in (".yaml", ".yml"):
        return parse_yaml(text)
    script = suffix == ".sh" or text.startswith("#!") or "=(" in text
    return parse_flags(text, script)


def _flat(settings: Mapping[str, Any]) -> Settings:
    """Settings of all sections in one table, under names with underscores."""
    flat: Settings = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(cast(Settings, value))
        else:
            flat[str(name).lstrip("-").replace("-", "_")] = value
    return flat


def engine_text(layout: EngineLayout, comments: Sequence[str], suffix: str = "") -> str:
    """The file of a layout with comments, in the form of a suffix (default: the engine's usual)."""
    format_ = FORMATS[layout.engine]
    settings, suffix = format_.settings(layout), suffix or format_.suffix
    if suffix == ".json":
        return json.dumps({COMMENTS: list(comments), **settings}, indent=2) + "\n"
    writers = {".toml": _toml_lines, ".yaml": _yaml_lines, ".yml": _yaml_lines}
    lines = writers.get(suffix, _flag_lines)(settings)
    return "\n".join([*(f"# {comment}" for comment in comments), *lines]) + "\n"


def _toml_lines(settings: Settings) -> Iterator[str]:
    """Scalars, then sections, each of scalars and lists."""
    tables = {k: v for k, v in settings.items() if isinstance(v, dict)}
    for name, value in settings.items():
        if name not in tables:
            yield f"{name} = {json.dumps(value)}"
    for name, table in tables.items():
        yield f"\n[{name}]"
        yield from _toml_lines(table)


def _yaml_lines(settings: Settings, indent: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _yaml_lines(cast(Settings, value), indent + "  ")
        else:
            plain = isinstance(value, str) and re.fullmatch(r"[A-Z_]{4,}|bf16|fp16", value)
            yield f"{indent}{name}: {value if plain else json.dumps(value)}"


def _flag_lines(settings: Settings, section: str = "") -> Iterator[str]:
    """One flag a line; Megatron writes dashes, torchtitan sections and a policy at the end."""
    for name, value in settings.items():
        if name == "activation_checkpoint":
            continue
        if isinstance(value, dict):
            yield from _flag_lines(cast(Settings, value), f"{name}.")
            continue
        flag = f"--{section}{name}" if section else f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            yield f"# {section}{name}: no flag takes lists of lists; a .toml file says the stages"
        elif isinstance(value, bool) and not section:
            yield flag
        elif isinstance(value, bool):
            yield f"{flag if value else flag.replace('.', '.no-', 1)}"
        else:
            yield f"{flag} {shlex.quote(str(value))}"
    if "activation_checkpoint" in settings:
        mode = settings["activation_checkpoint"]["mode"]
        yield f"activation-checkpoint:{mode.replace('_', '-')}"
