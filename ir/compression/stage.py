"""The stages of compression programs: one small value per step of what happens to a bucket.

A program is a list of stages over one flat bucket of fp32 numbers. Stages are elementwise, or local
to a tile of neighbouring elements, or they break a kernel: collectives, statistics of a whole
message, scores. What a list lacks (how codes are unpacked) follows from the stage that packed them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from msgspec import Struct

Level = Literal["all", "inner", "outer"]
Rounding = Literal["nearest", "stochastic"]
Codes = Literal["integer", "sign", "e4m3"]
Element = Literal["fp32", "bf16"]
Statistic = Literal["absmax", "l1", "l2"]
Rule = Literal["sum", "mean", "trimmed_mean", "median", "phocas"]

WHOLE = 0  # the group of a statistic over everything that one rank sends


class Stage(Struct, frozen=True, tag=True):
    """A step of a program. `breaks`: no kernel spans it."""

    breaks: ClassVar[bool] = False


class Cast(Stage, frozen=True, tag=True):
    """x rounded to nearest even in a narrower element type; before a collective, its wire type."""

    element: Element


class Scale(Stage, frozen=True, tag=True):
    """factor · x."""

    factor: float


class AddState(Stage, frozen=True, tag=True):
    """x + state, such as the error left over by the last step."""

    state: str


class Blend(Stage, frozen=True, tag=True):
    """decay · state + (1 - decay) · x: the next momentum. The state itself stays."""

    state: str
    decay: float


class SubRef(Stage, frozen=True, tag=True):
    """x - reference, in the reference's element type: weights against their compressed replica."""

    state: str
    element: Element = "fp32"


class AddRef(Stage, frozen=True, tag=True):
    """x + reference, in the reference's element type."""

    state: str
    element: Element = "fp32"


class Hadamard(Stage, frozen=True, tag=True):
    """Unnormalised Walsh-Hadamard transform of every `block` neighbours, in Sylvester order."""

    block: int


class Select(Stage, frozen=True, tag=True):
    """One of `ratio` parts, the same on all ranks: a random block, or one of every `ratio` neighbours.

    First in a list. `unbiased` multiplies by `ratio`. With a `remainder`, that state is added first
    and takes what was not selected.
    """

    breaks: ClassVar[bool] = True
    ratio: int
    kind: Literal["block", "scattered"] = "block"
    unbiased: bool = False
    remainder: str = ""


class Stat(Stage, frozen=True, tag=True):
    """One number per `group` neighbours: largest |x|, mean |x| or root mean square of x.

    Over WHOLE it needs a kernel of its own before the one that uses it.
    """

    kind: Statistic
    group: int


class Quantize(Stage, frozen=True, tag=True):
    """Codes of `bits`; the statistic is the largest code, or with sign codes what each stands for."""

    bits: int
    rounding: Rounding = "nearest"
    codes: Codes = "integer"


class Pack(Stage, frozen=True, tag=True):
    """Codes in 32-bit words, then scales: the message of `wire.Wire`."""


class Residual(Stage, frozen=True, tag=True):
    """state = what went into quantisation - what its codes stand for."""

    state: str


class AllToAll(Stage, frozen=True, tag=True):
    """Message i goes to rank i of the level."""

    breaks: ClassVar[bool] = True
    level: Level = "all"


class AllGather(Stage, frozen=True, tag=True):
    """Every rank gets all messages of the level."""

    breaks: ClassVar[bool] = True
    level: Level = "all"


class Send(Stage, frozen=True, tag=True):
    """One message to one other rank, the next stage of a pipeline."""

    breaks: ClassVar[bool] = True
    level: Level = "all"


class Unpack(Stage, frozen=True, tag=True):
    """Codes out of words, as the last message was packed."""


class Dequantize(Stage, frozen=True, tag=True):
    """code · scale."""


class Reduce(Stage, frozen=True, tag=True):
    """The ranks' values become one, coordinate by coordinate.

    `drop`: how many ranks may lie: dropped on either side by trimmed_mean, farthest by phocas.
    """

    rule: Rule = "sum"
    drop: int = 0


class Score(Stage, frozen=True, tag=True):
    """The mean of the `size - drop` (krum: of the one) best vectors, by a score of whole vectors."""

    breaks: ClassVar[bool] = True
    rule: Literal["krum", "zeno"]
    drop: int


Stages = tuple[Stage, ...]
Collective = AllToAll | AllGather | Send


def power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def show(stage: Stage) -> str:
    """`Stat(absmax, 128)`."""
    values = [str(getattr(stage, name)) for name in stage.__struct_fields__]
    return f"{type(stage).__name__}({', '.join(values)})"
