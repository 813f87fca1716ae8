"""Derive the uncompressed program that an algorithm must equal when nothing is lost."""

from __future__ import annotations

from msgspec.structs import replace

from .program import CompressionProgram
from .stage import (
    AddRef,
    AddState,
    Cast,
    CompressionStage,
    Dequantize,
    Hadamard,
    Pack,
    Quantize,
    Residual,
    Scale,
    Select,
    Stat,
    SubRef,
    Unpack,
)

LOSSY = (SubRef, AddRef, Cast, Hadamard, Pack, Quantize, Residual, Select, Stat, Unpack, Dequantize)


def uncompressed(program: CompressionProgram) -> CompressionProgram:
    """Return `program` with fp32 messages, the same collectives and no error-feedback states."""
    stages = program.stages
    residuals = {stage.state for stage in stages if isinstance(stage, Residual)}
    transformed = any(isinstance(stage, Hadamard) for stage in stages)

    def lossy(stage: CompressionStage) -> bool:
        normalisation = transformed and isinstance(stage, Scale)
        feedback = isinstance(stage, AddState) and stage.state in residuals
        return isinstance(stage, LOSSY) or normalisation or feedback

    lossless = tuple(stage for stage in stages if not lossy(stage))
    return replace(program, name=f"{program.name}.uncompressed", stages=lossless)
