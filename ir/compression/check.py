"""Check compression programs: every violated rule, with the reason and a legal alternative."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import prod

from ..errors import UsageError
from .message_format import LANES
from .program import CompressionProgram
from .stage import (
    PER_TENSOR,
    AddDifference,
    AddRef,
    AddState,
    AllGather,
    AllToAll,
    Centroids,
    Collective,
    CompressionStage,
    CompressionStages,
    Dequantize,
    ExchangeRows,
    Hadamard,
    Pack,
    Quantize,
    Reduce,
    Residual,
    Scale,
    Score,
    Select,
    SendRecv,
    Stat,
    SubRef,
    Unpack,
    power_of_two,
    show,
)

BITS = {"integer": (2, 4, 8), "sign": (1, 2), "e4m3": (8,)}
ROBUST = ("trimmed_mean", "median", "phocas")
PREDECESSORS: dict[type[CompressionStage], tuple[type[CompressionStage], ...]] = {
    Quantize: (Stat,),
    Pack: (Quantize,),
    Residual: (Pack,),
    Unpack: (AllToAll, AllGather, SendRecv),
    Dequantize: (Unpack,),
    Reduce: (Dequantize, AllToAll),
    Score: (Dequantize, AllToAll),
    AddDifference: (ExchangeRows,),
}


def check(program: CompressionProgram) -> None:
    """Raise UsageError naming the stage, the rule it violates and what would be legal."""
    for violation in violations(program):
        raise UsageError(f"compression program {program.name!r}: {violation}")


def violations(program: CompressionProgram) -> Iterator[str]:
    """Yield one sentence per rule that `program` violates."""
    stages = program.stages
    yield from _order_violations(stages)
    for stage in stages:
        yield from _constant_violations(stage)
    yield from _code_violations(stages)
    yield from _transform_violations(stages)
    yield from _robust_violations(stages)
    if not program.accepts_bias:
        yield from _bias_violations(program)


def _order_violations(stages: CompressionStages) -> Iterator[str]:
    for before, stage in zip((None, *stages), stages, strict=False):
        predecessors = PREDECESSORS.get(type(stage))
        if predecessors and not isinstance(before, predecessors):
            names = " or ".join(kind.__name__ for kind in predecessors)
            actual = show(before) if before else "the start"
            yield f"{show(stage)} must come right after {names}, not after {actual}"
    for number, stage in enumerate(stages):
        after = [s for s in stages[number + 1 :] if not isinstance(s, Unpack | Dequantize)]
        if isinstance(stage, AllToAll) and not isinstance(next(iter(after), None), Reduce | Score):
            yield f"{show(stage)}: what arrives must be reduced before anything else"
    if any(isinstance(stage, Select) for stage in stages[1:]):
        yield "Select must be the first stage"
    if not any(isinstance(stage, Collective) for stage in stages):
        yield "no stage sends anything: add AllToAll, AllGather or SendRecv"


def _constant_violations(stage: CompressionStage) -> Iterator[str]:
    if isinstance(stage, Stat) and stage.group != PER_TENSOR and not power_of_two(stage.group):
        yield f"{show(stage)}: the group must be a power of two"
    if isinstance(stage, Stat) and 0 < stage.group < LANES:
        yield f"{show(stage)}: the group must have at least {LANES} elements"
    if isinstance(stage, Hadamard) and not power_of_two(stage.block):
        yield f"{show(stage)}: the block must be a power of two"
    if isinstance(stage, Select | Centroids) and stage.ratio < 2:
        yield f"{show(stage)}: the ratio must be at least 2"
    if isinstance(stage, Quantize) and stage.bits not in BITS[stage.codes]:
        yield f"{show(stage)}: {stage.codes} codes have {BITS[stage.codes]} bits"


def _code_violations(stages: CompressionStages) -> Iterator[str]:
    """Check that codes fit their statistic and their rounding."""
    for stat, quantize in pairwise(stages):
        if not (isinstance(stat, Stat) and isinstance(quantize, Quantize)):
            continue
        if (quantize.codes == "sign") == (stat.kind == "absmax"):
            yield (
                f"{show(quantize)} after {show(stat)}: sign codes stand for l1 or l2 means, others "
                f"for fractions of absmax"
            )
        if quantize.codes != "integer" and quantize.rounding == "stochastic":
            yield f"{show(quantize)}: only integer codes are rounded stochastically"


def _transform_violations(stages: CompressionStages) -> Iterator[str]:
    """Check that transforms and subtractions are undone and Hadamard blocks lie inside groups."""
    blocks = [stage.block for stage in stages if isinstance(stage, Hadamard)]
    factor = prod(stage.factor for stage in stages if isinstance(stage, Scale))
    if len(blocks) % 2 or blocks[::2] != blocks[1::2]:
        yield f"Hadamard blocks {blocks} do not come in equal pairs, so the result is transformed"
    elif blocks and factor * prod(blocks[::2]) != 1:
        yield f"two Hadamard({blocks[0]}) multiply by {blocks[0]}: a Scale must divide by it"
    elif any(s.group % blocks[0] for s in stages if blocks and isinstance(s, Stat) and s.group):
        yield f"a Stat's group is no multiple of the Hadamard block {blocks[0]}"
    subtracted = {stage.state for stage in stages if isinstance(stage, SubRef)}
    added = {stage.state for stage in stages if isinstance(stage, AddRef)}
    joined, parted = (
        sum(isinstance(stage, kind) for stage in stages) for kind in (Centroids, AddDifference)
    )
    if joined != parted:
        yield "Centroids lose what rows differ from them by: add AddDifference after ExchangeRows"
    if subtracted != added:
        yield f"SubRef of {sorted(subtracted)} but AddRef of {sorted(added)}: they must be the same"


def _robust_violations(stages: CompressionStages) -> Iterator[str]:
    """Check that robust rules see single ranks' values: untransformed, before any reduction."""
    transformed, reduced = False, False
    for stage in stages:
        if isinstance(stage, Hadamard):
            transformed = not transformed
        robust = isinstance(stage, Score) or (isinstance(stage, Reduce) and stage.rule in ROBUST)
        if robust and reduced:
            yield f"{show(stage)} comes after a reduction: single ranks can no longer be told apart"
        if robust and transformed:
            yield f"{show(stage)} between Hadamards: it does not commute with the transform"
        reduced = reduced or isinstance(stage, Reduce | Score)


def _bias_violations(program: CompressionProgram) -> Iterator[str]:
    """Check that biased rounding errors are fed back in the next step."""
    if program.payload == "activations":
        return
    first = program.stages[0]
    if isinstance(first, Select) and not (first.unbiased or first.remainder):
        yield f"{show(first)} loses the rest: give it a remainder, or make it unbiased"
    for number, stage in enumerate(program.stages):
        if not isinstance(stage, Quantize):
            continue
        biased = stage.rounding == "nearest" or stage.codes != "integer"
        if not biased:
            continue
        if program.payload == "weights":
            if not any(isinstance(s, SubRef) for s in program.stages[:number]):
                yield (
                    f"{show(stage)} is biased and acts on weights themselves, where small updates "
                    f"vanish: quantise the difference to the compressed replica (SubRef, AddRef)"
                )
        elif not _has_error_feedback(program.stages, number):
            yield (
                f"{show(stage)} is biased and its error is lost: add AddState before Stat and "
                f"Residual after Pack with one state, or round stochastically"
            )


def _has_error_feedback(stages: CompressionStages, number: int) -> bool:
    """Whether the error of quantisation `number` goes to a state that is added before it."""
    residual = stages[number + 2] if number + 2 < len(stages) else None
    if not isinstance(residual, Residual):
        return False
    for stage in reversed(stages[:number]):
        if isinstance(stage, Collective):
            return False
        if isinstance(stage, AddState) and stage.state == residual.state:
            return True
    return False
