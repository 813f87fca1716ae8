"""The laws of compression programs: what is refused, with the reason and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import prod

from ..errors import UsageError
from .program import Program
from .stage import (
    WHOLE,
    AddRef,
    AddState,
    AllGather,
    AllToAll,
    Collective,
    Dequantize,
    Hadamard,
    Pack,
    Quantize,
    Reduce,
    Residual,
    Scale,
    Score,
    Select,
    Send,
    Stage,
    Stages,
    Stat,
    SubRef,
    Unpack,
    power_of_two,
    show,
)  # fmt: skip
from .wire import LANES

BITS = {"integer": (2, 4, 8), "sign": (1,), "e4m3": (8,)}
ROBUST = ("trimmed_mean", "median", "phocas")
AFTER: dict[type[Stage], tuple[type[Stage], ...]] = {
    Quantize: (Stat,),
    Pack: (Quantize,),
    Residual: (Pack,),
    Unpack: (AllToAll, AllGather, Send),
    Dequantize: (Unpack,),
}


def check(program: Program) -> None:
    """Raises UsageError that names the stage, the law it breaks and what would be legal."""
    for problem in problems(program):
        raise UsageError(f"compression program {program.name!r}: {problem}")


def problems(program: Program) -> Iterator[str]:
    """Every law that a program breaks, as a sentence each."""
    stages = program.stages
    yield from _order(stages)
    for stage in stages:
        yield from _numbers(stage)
    yield from _codes(stages)
    yield from _transforms(stages)
    yield from _robust(stages)
    if not program.accepts_bias:
        yield from _bias(program)


def _order(stages: Stages) -> Iterator[str]:
    for before, stage in zip((None, *stages), stages, strict=False):
        wanted = AFTER.get(type(stage))
        if wanted and not isinstance(before, wanted):
            names = " or ".join(kind.__name__ for kind in wanted)
            found = show(before) if before else "the start"
            yield f"{show(stage)} must come right after {names}, not after {found}"
    if any(isinstance(stage, Select) for stage in stages[1:]):
        yield "Select must be the first stage"
    if not any(isinstance(stage, Collective) for stage in stages):
        yield "no stage sends anything: add AllToAll, AllGather or Send"


def _numbers(stage: Stage) -> Iterator[str]:
    if isinstance(stage, Stat) and stage.group != WHOLE and not power_of_two(stage.group):
        yield f"{show(stage)}: the group must be a power of two"
    if isinstance(stage, Stat) and 0 < stage.group < LANES:
        yield f"{show(stage)}: the group must have at least {LANES} elements"
    if isinstance(stage, Hadamard) and not power_of_two(stage.block):
        yield f"{show(stage)}: the block must be a power of two"
    if isinstance(stage, Select) and stage.ratio < 2:
        yield f"{show(stage)}: the ratio must be at least 2"
    if isinstance(stage, Quantize) and stage.bits not in BITS[stage.codes]:
        yield f"{show(stage)}: {stage.codes} codes have {BITS[stage.codes]} bits"


def _codes(stages: Stages) -> Iterator[str]:
    """Codes fit their statistic, their rounding and their words."""
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


def _transforms(stages: Stages) -> Iterator[str]:
    """What is transformed or subtracted is undone, and a Hadamard block lies inside its group."""
    blocks = [stage.block for stage in stages if isinstance(stage, Hadamard)]
    factor = prod(stage.factor for stage in stages if isinstance(stage, Scale))
    if len(blocks) % 2 or blocks[::2] != blocks[1::2]:
        yield f"Hadamard blocks {blocks} do not come in equal pairs, so the result is transformed"
    elif blocks and factor * prod(blocks[::2]) != 1:
        yield f"two Hadamard({blocks[0]}) multiply by {blocks[0]}: a Scale must divide by it"
    elif any(s.group % blocks[0] for s in stages if blocks and isinstance(s, Stat) and s.group):
        yield f"a Stat's group is no multiple of the Hadamard block {blocks[0]}"
    taken = {stage.state for stage in stages if isinstance(stage, SubRef)}
    given = {stage.state for stage in stages if isinstance(stage, AddRef)}
    if taken != given:
        yield f"SubRef of {sorted(taken)} but AddRef of {sorted(given)}: they must be the same"


def _robust(stages: Stages) -> Iterator[str]:
    """Robust rules see every rank's own values: before any sum, in no transformed domain."""
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


def _bias(program: Program) -> Iterator[str]:
    """Rounding with a bias is carried over to the next step, or refused."""
    if program.subject == "activations":
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
        if program.subject == "weights":
            if not any(isinstance(s, SubRef) for s in program.stages[:number]):
                yield (
                    f"{show(stage)} is biased and acts on weights themselves, where small updates "
                    f"vanish: quantise the difference to the compressed replica (SubRef, AddRef)"
                )
        elif not _fed_back(program.stages, number):
            yield (
                f"{show(stage)} is biased and its error is lost: add AddState before Stat and "
                f"Residual after Pack with one state, or round stochastically"
            )


def _fed_back(stages: Stages, number: int) -> bool:
    """The quantisation at `number` leaves its error in a state that was added before it."""
    left = stages[number + 2] if number + 2 < len(stages) else None
    if not isinstance(left, Residual):
        return False
    for stage in reversed(stages[:number]):
        if isinstance(stage, Collective):
            return False
        if isinstance(stage, AddState) and stage.state == left.state:
            return True
    return False
