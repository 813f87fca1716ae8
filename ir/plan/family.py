"""Families of strategies, by the names that the field gives them: `pipeline + tensor + ZeRO`."""

from __future__ import annotations

from collections.abc import Iterable

from .strategy import ROLES, Strategy

MODEL_AXES = (("pp", "pipeline"), ("tp", "tensor"), ("cp", "context"), ("sp", "context"))
DEVICE_GROUPS = (
    "device groups"  # of a mixed cluster: pipelines whose stages differ in kind and width
)
MEGATRON = frozenset({"pipeline", "tensor"})


def family(strategies: Iterable[Strategy]) -> str:
    """What the axes of all strategies do together; sizes do not count.

    `DDP` replicates all states, `ZeRO` shards optimizer states and perhaps gradients, `FSDP` shards
    parameters too; before it stand the axes that split the model.
    """
    sizes = [axis for strategy in strategies for axis in strategy.axes if axis[1] > 1]
    roles = {role for role, _ in sizes}
    parts = [name for role, name in MODEL_AXES if role in roles]
    parts += ["experts"] if "ep" in roles else []
    parts += ["slices"] if any(ROLES[role].slices for role in roles) else []
    parts += ["tables"] if any(ROLES[role].tables for role in roles) else []
    sharded = {state for role in roles for state in ROLES[role].shards}
    if "parameter" in sharded:
        parts.append("FSDP")
    elif sharded:
        parts.append("ZeRO")
    elif "dp" in roles:
        parts.append("DDP")
    return " + ".join(dict.fromkeys(parts)) or "one device"


def is_megatron(name: str) -> bool:
    """Whether a family splits the model by pipeline or tensor axes, and replicates it otherwise."""
    parts = set(name.split(" + "))
    return bool(parts & MEGATRON) and parts <= MEGATRON | {"DDP", "ZeRO"}
