"""What a row leaves open, or says in words that nobody knows, with what is taken in its place.

A row is replaced by one that can be read, and every replacement is named: the note of its prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, gcd
from typing import NamedTuple

from ...cost_model.device_names import preset_of
from ...cost_model.hardware import presets
from .architecture import TASKS, config_columns, read_config
from .run import (
    Row,
    UnmodelledError,
    integer,
    number,
    parse_offload,
    parse_precision,
    parse_recompute,
)


class AssumedRow(NamedTuple):
    """A row that can be read, and what was taken in it."""

    row: Row
    notes: tuple[str, ...]


def assume(row: Row) -> AssumedRow:
    """The row with what it does not say, or says in unknown words, replaced. Numbers that are none, and
    devices that do not fit the layout, stay as they are: reading them says what is wrong."""
    changes: dict[str, str] = {}
    notes: list[str] = []
    for change in (_layers, _device, _names, _devices, _batch):
        for column, value, note in change({**row, **changes}):
            changes[column] = value
            notes += [note] if note else []
    return AssumedRow({**row, **changes}, tuple(notes))


def _layers(row: Row) -> list[tuple[str, str, str]]:
    """The layers of a row that names none, by its configuration."""
    said = "" if row.get("layers") else config_columns(read_config(row)).get("layers", "")
    return [("layers", said, "")] if said else []


def _device(row: Row) -> list[tuple[str, str, str]]:
    """A device that no preset is named like: the one nearest in memory, where the row says that."""
    name, memory = row.get("gpu") or "", number(row, "gpu_mem_gb", 0.0)
    if "+" in name or not memory or preset_of(name, memory) is not None:
        return []
    nearest = min(presets(), key=lambda p: abs(presets()[p].device.memory_bytes - memory * 1e9))
    return [("gpu", nearest, f"gpu {name!r} is not known: {nearest}, the nearest in memory")]


def _names(row: Row) -> list[tuple[str, str, str]]:
    """Words for precisions, recomputation, offload and tasks that are not known."""
    replaced: list[tuple[str, str, str]] = []
    columns = ("precision", "recompute", "task", "offload")
    precision, recompute, task, offload = (row.get(c) or "" for c in columns)
    if not _reads(parse_precision, precision or "bf16"):
        replaced.append(("precision", "bf16", f"precision {precision!r} is not known: bf16"))
    if not _reads(parse_recompute, recompute):
        replaced.append(("recompute", "", f"recompute {recompute!r} is not known"))
    if not _reads(parse_offload, offload):
        replaced.append(("offload", "", f"offload {offload!r} is not known: none"))
    if task and task not in TASKS:
        replaced.append(("task", "", f"task {task!r} is not known: pretrain"))
    return replaced


def _devices(row: Row) -> list[tuple[str, str, str]]:
    """Replicas, shard groups and nodes that do not divide the devices."""
    replaced: list[tuple[str, str, str]] = []
    devices, replica = integer(row, "num_gpus"), 1
    for column in ("tp", "pp", "cp"):
        replica *= integer(row, column, 1)
    data = integer(row, "dp", max(devices // replica, 1))
    if data * replica != devices and devices % replica == 0:
        replaced.append(
            ("dp", str(devices // replica), f"dp {data} does not fill {devices} devices")
        )
        data = devices // replica
    experts = gcd(integer(row, "ep", 1), data)
    if (data // experts) % (integer(row, "shard_group", 0) or 1):
        replaced.append(("shard_group", "", f"shard_group does not divide dp {data}: all shard"))
    node = integer(row, "gpus_per_node", 8)
    if devices > node and devices % node:
        fitting = gcd(devices, node)
        note = f"{devices} devices do not fill nodes of {node}: of {fitting}"
        replaced.append(("gpus_per_node", str(fitting), note))
    return replaced


def _batch(row: Row) -> list[tuple[str, str, str]]:
    """A batch that is no multiple of what the replicas take at once: the next one."""
    replica = 1
    for column in ("tp", "pp", "cp"):
        replica *= integer(row, column, 1)
    data = integer(row, "dp", max(integer(row, "num_gpus") // replica, 1))
    once = data * integer(row, "microbatch", 1)
    batch = integer(row, "global_batch", once * integer(row, "grad_accum", 1))
    if batch % once == 0:
        return []
    fitting = once * ceil(batch / once)
    note = f"global_batch {batch} is not a multiple of {once} samples at once: {fitting}"
    return [("global_batch", str(fitting), note)]


def _reads(parse: Callable[[str], str], text: str) -> bool:
    try:
        parse(text)
    except UnmodelledError:
        return False
    return True
