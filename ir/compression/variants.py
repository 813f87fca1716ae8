"""Program variants with another constant: momentum decay, element type of the replica."""

from __future__ import annotations

from msgspec.structs import replace

from .program import CompressionProgram
from .stage import AddRef, CompressionStage, Element, MovingAverage, SubRef


def with_decay(program: CompressionProgram, decay: float) -> CompressionProgram:
    """Return `program` with momentum decay `decay`."""

    def with_constant(stage: CompressionStage) -> CompressionStage:
        return replace(stage, decay=decay) if isinstance(stage, MovingAverage) else stage

    stages = tuple(map(with_constant, program.stages))
    name = program.name if stages == program.stages else f"{program.name}.{decay}"
    return replace(program, name=name, stages=stages)


def with_reference(program: CompressionProgram, element: Element) -> CompressionProgram:
    """Return `program` with replica, differences and sums in `element`."""

    def with_constant(stage: CompressionStage) -> CompressionStage:
        return replace(stage, element=element) if isinstance(stage, SubRef | AddRef) else stage

    name = program.name if element == "fp32" else f"{program.name}.{element}"
    return replace(program, name=name, stages=tuple(map(with_constant, program.stages)))
