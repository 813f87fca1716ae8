"""The same program with another constant: momenta that decay otherwise, replicas in another type."""

from __future__ import annotations

from msgspec.structs import replace

from .program import Program
from .stage import AddRef, Blend, Element, Stage, SubRef


def with_decay(program: Program, decay: float) -> Program:
    """Momenta that keep `decay` of themselves."""

    def changed(stage: Stage) -> Stage:
        return replace(stage, decay=decay) if isinstance(stage, Blend) else stage

    stages = tuple(map(changed, program.stages))
    name = program.name if stages == program.stages else f"{program.name}.{decay}"
    return replace(program, name=name, stages=stages)


def with_reference(program: Program, element: Element) -> Program:
    """A replica in another element type, in which differences are taken and added, too."""

    def changed(stage: Stage) -> Stage:
        return replace(stage, element=element) if isinstance(stage, SubRef | AddRef) else stage

    name = program.name if element == "fp32" else f"{program.name}.{element}"
    return replace(program, name=name, stages=tuple(map(changed, program.stages)))
