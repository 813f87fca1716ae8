"""The stages of compression programs.

A program is a list of stages over one flat bucket of fp32 numbers. Stages are elementwise, or local
to a tile of neighbouring elements, or end a kernel: collectives, per-tensor statistics, scores.
Unpacking needs no parameters: they follow from the stage that packed.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from msgspec import Struct

Level = Literal["all", "inner", "outer"]
Rounding = Literal["nearest", "stochastic"]
Codes = Literal["integer", "sign", "e4m3"]
Element = Literal["fp32", "bf16"]
Statistic = Literal["absmax", "l1", "l2"]
ReductionRule = Literal["sum", "mean", "trimmed_mean", "median", "phocas"]

PER_TENSOR = 0  # group of a statistic over all that one rank sends


class CompressionStage(Struct, frozen=True, tag=True):
    """One stage. `breaks`: no kernel spans it."""

    breaks: ClassVar[bool] = False


class Cast(CompressionStage, frozen=True, tag=True):
    """Round x to nearest even in `element`; before a collective, the type of its messages."""

    element: Element


class Scale(CompressionStage, frozen=True, tag=True):
    """factor · x."""

    factor: float


class AddState(CompressionStage, frozen=True, tag=True):
    """x + state, such as the residual of the last step (error feedback)."""

    state: str


class MovingAverage(CompressionStage, frozen=True, tag=True):
    """decay · state + (1 - decay) · x: the next momentum. The state is not written."""

    state: str
    decay: float


class SubRef(CompressionStage, frozen=True, tag=True):
    """x - reference, in the reference's element type: weights against their compressed replica."""

    state: str
    element: Element = "fp32"


class AddRef(CompressionStage, frozen=True, tag=True):
    """x + reference, in the reference's element type."""

    state: str
    element: Element = "fp32"


class Hadamard(CompressionStage, frozen=True, tag=True):
    """Unnormalised Walsh-Hadamard transform of every `block` neighbours, in Sylvester order."""

    block: int


class Select(CompressionStage, frozen=True, tag=True):
    """Keep 1 / `ratio` of the bucket, the same on all ranks (random sparsification).

    `kind`: a random block, or one of every `ratio` neighbours. Must be the first stage. `unbiased`
    multiplies by `ratio`. `remainder` names a state that is added first and then takes what was
    not selected.
    """

    breaks: ClassVar[bool] = True
    ratio: int
    kind: Literal["block", "scattered"] = "block"
    unbiased: bool = False
    remainder: str = ""


class Stat(CompressionStage, frozen=True, tag=True):
    """One number per `group` neighbours: largest |x|, mean |x| or root mean square of x.

    With `group` PER_TENSOR, a kernel of its own computes it first.
    """

    kind: Statistic
    group: int


class Quantize(CompressionStage, frozen=True, tag=True):
    """Quantise to codes of `bits`. The statistic is the value of the largest code, or of a sign.

    Signs of two bits have a code of zero; of one bit, zero is a plus.
    """

    bits: int
    rounding: Rounding = "nearest"
    codes: Codes = "integer"


class Pack(CompressionStage, frozen=True, tag=True):
    """Pack codes in 32-bit words, then scales, as in `MessageFormat`."""


class Residual(CompressionStage, frozen=True, tag=True):
    """state = input of quantisation - dequantised codes (error feedback)."""

    state: str


class AllToAll(CompressionStage, frozen=True, tag=True):
    """Message i goes to rank i of the level."""

    breaks: ClassVar[bool] = True
    level: Level = "all"


class AllGather(CompressionStage, frozen=True, tag=True):
    """Every rank gets all messages of the level."""

    breaks: ClassVar[bool] = True
    level: Level = "all"


class SendRecv(CompressionStage, frozen=True, tag=True):
    """One message to one other rank, the next stage of a pipeline."""

    breaks: ClassVar[bool] = True
    level: Level = "all"


class Centroids(CompressionStage, frozen=True, tag=True):
    """Rows of one destination that hash alike become their mean: at most one in `ratio` is left, and one
    of every destination."""

    breaks: ClassVar[bool] = True
    ratio: int


class ExchangeRows(CompressionStage, frozen=True, tag=True):
    """Rows go to the ranks that they choose, and what these make of them comes back."""

    breaks: ClassVar[bool] = True
    level: Level = "all"


class AddDifference(CompressionStage, frozen=True, tag=True):
    """What came back for a centroid + what a row differs from it by, for each of its rows."""


class Unpack(CompressionStage, frozen=True, tag=True):
    """Unpack codes from words, as the last message was packed."""


class Dequantize(CompressionStage, frozen=True, tag=True):
    """code · scale."""


class Reduce(CompressionStage, frozen=True, tag=True):
    """Reduce over ranks, coordinate by coordinate.

    `drop`: Byzantine ranks tolerated; trimmed_mean drops as many on either side, phocas the
    farthest from the trimmed mean.
    """

    rule: ReductionRule = "sum"
    drop: int = 0


class Score(CompressionStage, frozen=True, tag=True):
    """The mean of the `size - drop` vectors with the best scores (krum: the single best)."""

    breaks: ClassVar[bool] = True
    rule: Literal["krum", "zeno"]
    drop: int


CompressionStages = tuple[CompressionStage, ...]
Collective = AllToAll | AllGather | SendRecv | ExchangeRows


def power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def show(stage: CompressionStage) -> str:
    """`Stat(absmax, 128)`."""
    fields = [str(getattr(stage, name)) for name in stage.__struct_fields__]
    return f"{type(stage).__name__}({', '.join(fields)})"
