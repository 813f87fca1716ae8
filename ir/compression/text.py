"""Print programs and kernel pipelines as text, one stage or step per line."""

from __future__ import annotations

from collections.abc import Iterator

from .kernel import (
    CompressionKernel,
    FinishStatistic,
    KernelPipeline,
    KernelPipelineStep,
    MessageTransfer,
    ScoreVectors,
)
from .message_format import MessageFormat
from .program import CompressionProgram
from .stage import show


def print_program(program: CompressionProgram) -> str:
    """Print name, collective and payload, then the stages."""
    head = f"{program.name}: {program.collective} of {program.payload}"
    if program.accepts_bias:
        head += f"  # biased, {program.accepts_bias}"
    return "\n".join([head, *(f"  {show(stage)}" for stage in program.stages)])


def print_pipeline(pipeline: KernelPipeline) -> str:
    """Print kernels with their stages, the transfers between them, and state tensors."""
    lines = [f"{pipeline.name}: tiles of {pipeline.tile}, {pipeline.chunks} chunks"]
    if pipeline.select is not None:
        lines.append(f"  {show(pipeline.select)}")
    for step in pipeline.steps:
        lines += [f"  {line}" for line in _step(step)]
    for state in pipeline.states:
        size = "1 chunk" if state.chunks == 1 else f"{state.chunks} chunks"
        lines.append(f"  state {state.name}: {size} of {state.element}, {state.on_reshard}")
    return "\n".join(lines)


def _step(step: KernelPipelineStep) -> Iterator[str]:
    if isinstance(step, CompressionKernel):
        yield f"kernel {step.name}: {_source(step)} -> {_target(step)}"
        yield from (f"  {show(stage)}" for stage in step.body)
    elif isinstance(step, MessageTransfer):
        messages = f"{step.count} × {_message_format(step.message_format)}"
        yield f"{step.kind} over {step.size} ({step.level}): {messages}"
    elif isinstance(step, FinishStatistic):
        yield f"finish {step.kind}"
    else:
        assert isinstance(step, ScoreVectors)
        yield f"choose {step.score.rule} of {step.size}, dropping {step.score.drop}"


def _source(kernel: CompressionKernel) -> str:
    if kernel.source is None:
        return "flat" if kernel.swizzle is None else "flat, chunks by node"
    return f"{kernel.ranks} × {kernel.chunks} × {_message_format(kernel.source)}"


def _target(kernel: CompressionKernel) -> str:
    if kernel.partial:
        return "partials"
    return (
        "flat" if kernel.target is None else f"{kernel.chunks} × {_message_format(kernel.target)}"
    )


def _message_format(fmt: MessageFormat) -> str:
    if fmt.plain:
        return str(fmt.codes)
    scope = f"groups of {fmt.group}" if fmt.group else "one scale"
    return f"{fmt.bits}-bit {fmt.codes}, {scope}"
