"""The same program without compression: what an algorithm must equal when nothing is lost."""

from __future__ import annotations

from msgspec.structs import replace

from .program import Program
from .stage import (
    AddRef,
    AddState,
    Cast,
    Dequantize,
    Hadamard,
    Pack,
    Quantize,
    Residual,
    Scale,
    Select,
    Stage,
    Stat,
    SubRef,
    Unpack,
)

LOSSY = (SubRef, AddRef, Cast, Hadamard, Pack, Quantize, Residual, Select, Stat, Unpack, Dequantize)


def uncompressed(program: Program) -> Program:
    """Plain fp32 messages through the same collectives, without error states."""
    stages = program.stages
    left = {stage.state for stage in stages if isinstance(stage, Residual)}
    transforms = any(isinstance(stage, Hadamard) for stage in stages)

    def lossy(stage: Stage) -> bool:
        undoes = transforms and isinstance(stage, Scale)
        fed = isinstance(stage, AddState) and stage.state in left
        return isinstance(stage, LOSSY) or undoes or fed

    kept = tuple(stage for stage in stages if not lossy(stage))
    return replace(program, name=f"{program.name}.uncompressed", stages=kept)
