"""Programs and pipelines as text: one stage or step a line."""

from __future__ import annotations

from collections.abc import Iterator

from .kernel import Choose, Finish, Kernel, Pipeline, Step, Transfer
from .program import Program
from .stage import show
from .wire import Wire


def print_program(program: Program) -> str:
    """Name, subject and result, then the stages."""
    head = f"{program.name}: {program.result} of {program.subject}"
    if program.accepts_bias:
        head += f"  # biased, {program.accepts_bias}"
    return "\n".join([head, *(f"  {show(stage)}" for stage in program.stages)])


def print_pipeline(pipeline: Pipeline) -> str:
    """Kernels with their stages, what travels between them, and what is kept."""
    lines = [f"{pipeline.name}: tiles of {pipeline.tile}, {pipeline.chunks} chunks"]
    if pipeline.select is not None:
        lines.append(f"  {show(pipeline.select)}")
    for step in pipeline.steps:
        lines += [f"  {line}" for line in _step(step)]
    for state in pipeline.states:
        size = "1 chunk" if state.chunks == 1 else f"{state.chunks} chunks"
        lines.append(f"  state {state.name}: {size} of {state.element}, {state.resharded}")
    return "\n".join(lines)


def _step(step: Step) -> Iterator[str]:
    if isinstance(step, Kernel):
        yield f"kernel {step.name}: {_source(step)} -> {_target(step)}"
        yield from (f"  {show(stage)}" for stage in step.body)
    elif isinstance(step, Transfer):
        yield f"{step.kind} over {step.size} ({step.level}): {step.count} × {_wire(step.wire)}"
    elif isinstance(step, Finish):
        yield f"finish {step.kind}"
    else:
        assert isinstance(step, Choose)
        yield f"choose {step.score.rule} of {step.size}, dropping {step.score.drop}"


def _source(kernel: Kernel) -> str:
    if kernel.source is None:
        return "flat" if kernel.swizzle is None else "flat, chunks by node"
    return f"{kernel.ranks} × {kernel.chunks} × {_wire(kernel.source)}"


def _target(kernel: Kernel) -> str:
    if kernel.partial:
        return "partials"
    return "flat" if kernel.target is None else f"{kernel.chunks} × {_wire(kernel.target)}"


def _wire(wire: Wire) -> str:
    if wire.plain:
        return str(wire.codes)
    scope = f"groups of {wire.group}" if wire.group else "one scale"
    return f"{wire.bits}-bit {wire.codes}, {scope}"
