"""Print the body of one Triton kernel, stage by stage.

    x is [UNITS, UNIT], a unit being the elements whose codes share words

Results equal the reference bit for bit: butterflies and sums in its order, `div_rn`, rounding by
integers, Philox with the reference's counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...ir.compression.kernel import CompressionKernel
from ...ir.compression.message_format import MessageFormat
from ...ir.compression.stage import (
    AddRef,
    AddState,
    Cast,
    CompressionStage,
    Dequantize,
    Hadamard,
    MovingAverage,
    Pack,
    Quantize,
    Reduce,
    Residual,
    Scale,
    Stat,
    SubRef,
    Unpack,
)
from .triton_reduce import reduction


def unit_elements(kernel: CompressionKernel) -> int:
    """Elements whose codes share words in the message written or read, else those of a tile."""
    formats = [w for w in (kernel.target, kernel.source) if w is not None and not w.plain]
    return max((w.tile for w in formats), default=kernel.tile)


class TritonBody:
    """Prints the body of one kernel."""

    def __init__(self, kernel: CompressionKernel) -> None:
        self.kernel, self.unit = kernel, unit_elements(kernel)
        self.units = kernel.tiles * kernel.tile // self.unit
        self.stat: Stat | None = None

    def lines(self) -> Iterator[str]:
        kernel = self.kernel
        yield from self.offsets()
        stages = list(kernel.body)
        yield from self.read(stages)
        for stage in stages:
            yield from LINES[type(stage)](self, stage)
        yield from self.write()

    def offsets(self) -> Iterator[str]:
        """Print this instance's element offsets in the flat tensor and in a message."""
        kernel, each = self.kernel, self.kernel.tile // self.unit
        yield f"UNITS: tl.constexpr = {self.units}"
        yield f"UNIT: tl.constexpr = {self.unit}"
        yield "chunk = tl.program_id(1)"
        swizzle = kernel.swizzle
        origin = (
            f"(chunk % {swizzle[1]}) * {swizzle[0]} + chunk // {swizzle[1]}" if swizzle else "chunk"
        )
        yield f"origin = ({origin}).to(tl.int64) * elements"
        yield "unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)"
        yield "inside = unit * UNIT < elements"
        yield "offset = unit[:, None] * UNIT + tl.arange(0, UNIT)[None, :]"
        yield "at = origin + offset"
        if kernel.stochastic:
            yield f"row = chunk * (elements // {kernel.tile}) + unit // {each}"

    def read(self, stages: list[CompressionStage]) -> Iterator[str]:
        fmt = self.kernel.source
        if fmt is None:
            yield "x = tl.load(source + at, mask=inside[:, None], other=0.0)"
            return
        while stages and isinstance(stages[0], Unpack | Dequantize):
            stages.pop(0)
        rule = stages[0] if stages and isinstance(stages[0], Reduce) else None
        del stages[: rule is not None]
        yield from reduction(rule, self.kernel, list(self.decode(fmt)))

    def decode(self, fmt: MessageFormat) -> Iterator[str]:
        """Print code that fills `y` from the message number `message`."""
        yield "base = message.to(tl.int64) * source_stride"
        if fmt.plain:
            loaded = "tl.load(source + base + offset, mask=inside[:, None], other=0)"
            yield f"y = widen({loaded})" if fmt.codes == "bf16" else f"y = {loaded}"
            return
        words, planes = fmt.words, 32 // fmt.bits
        yield from self.word_spans(fmt)
        yield f"place = base + part[:, None] * {words} + tl.arange(0, {words})[None, :]"
        yield "words = tl.load(source + place, mask=span_inside[:, None], other=0)"
        yield f"shift = tl.arange(0, {planes})[None, :, None] * {fmt.bits}"
        yield f"code = (words[:, None, :] >> shift) & {(1 << fmt.bits) - 1}"
        yield f"y = tl.reshape({_value(fmt, 'code')}, [UNITS, UNIT])"
        yield "scales = source_scales + message.to(tl.int64) * source_scales_stride"
        if fmt.group:
            groups = self.unit // fmt.group
            yield f"near = unit[:, None] * {groups} + tl.arange(0, {groups})[None, :]"
            yield "scale = tl.load(scales + near, mask=inside[:, None], other=0.0)"
            yield f"y = tl.reshape(y, [UNITS, {groups}, {fmt.group}]) * scale[:, :, None]"
            yield "y = tl.reshape(y, [UNITS, UNIT])"
        else:
            yield "y = y * tl.load(scales)"

    def word_spans(self, fmt: MessageFormat) -> Iterator[str]:
        """Print the spans of elements whose codes share words in this message."""
        rows = self.units * self.unit // fmt.tile
        yield f"part = tl.program_id(0) * {rows} + tl.arange(0, {rows})"
        yield f"span_inside = part * {fmt.tile} < elements"

    def write(self) -> Iterator[str]:
        kernel, fmt = self.kernel, self.kernel.target
        if kernel.partial:
            yield "to = chunk * (elements // UNIT) + unit"
            yield "tl.store(target + to, x, mask=inside)"
        elif fmt is None:
            yield "to = chunk.to(tl.int64) * elements + offset"
            yield "tl.store(target + to, x, mask=inside[:, None])"
        elif fmt.plain:
            yield "to = chunk.to(tl.int64) * target_stride + offset"
            value = "narrow(x)" if fmt.codes == "bf16" else "x"
            yield f"tl.store(target + to, {value}, mask=inside[:, None])"

    def state(self, name: str, element: str = "fp32") -> str:
        loaded = f"tl.load({name} + at, mask=inside[:, None], other=0)"
        return f"widen({loaded})" if element == "bf16" else loaded

    def cast(self, stage: Cast) -> Iterator[str]:
        if stage.element == "bf16":
            yield "x = widen(narrow(x))"

    def scale(self, stage: Scale) -> Iterator[str]:
        yield f"x = x * {stage.factor!r}"

    def add_state(self, stage: AddState) -> Iterator[str]:
        yield f"x = x + {self.state(stage.state)}"

    def moving_average(self, stage: MovingAverage) -> Iterator[str]:
        yield f"decayed = {self.state(stage.state)} * {stage.decay!r}"
        yield f"x = decayed + x * {1 - stage.decay!r}"

    def sub_ref(self, stage: SubRef) -> Iterator[str]:
        return self.reference(stage, "-")

    def add_ref(self, stage: AddRef) -> Iterator[str]:
        return self.reference(stage, "+")

    def reference(self, stage: SubRef | AddRef, sign: str) -> Iterator[str]:
        other = self.state(stage.state, stage.element)
        if stage.element == "bf16":
            yield f"x = widen(narrow(widen(narrow(x)) {sign} {other}))"
        else:
            yield f"x = x {sign} {other}"

    def hadamard(self, stage: Hadamard) -> Iterator[str]:
        """Print butterflies of widths 1, 2, 4 …"""
        width, total = 1, self.units * self.unit
        while width < stage.block:
            yield f"pairs = tl.reshape(x, [{total // (2 * width)}, 2, {width}])"
            yield "first, second = tl.split(tl.permute(pairs, [0, 2, 1]))"
            yield "pairs = tl.permute(tl.join(first + second, first - second), [0, 2, 1])"
            yield "x = tl.reshape(pairs, [UNITS, UNIT])"
            width *= 2

    def measure(self, stage: Stat) -> Iterator[str]:
        self.stat = stage
        if not stage.group and not self.kernel.partial:
            yield "measured = tl.load(number)"
            return
        group = stage.group or self.unit
        rows = self.units * self.unit // group
        value = "x * x" if stage.kind == "l2" else "tl.abs(x)"
        yield f"part = tl.reshape({value}, [{rows}, {group}])"
        if stage.kind == "absmax":
            yield "measured = tl.reduce(part, 1, larger)"
        else:
            yield from _fold(rows, group)
        if self.kernel.partial and not stage.group:
            yield "x = measured"
        elif stage.kind != "absmax":
            yield f"measured = measured * {1 / group!r}"
            if stage.kind == "l2":
                yield "measured = tl.sqrt_rn(measured)"

    def quantize(self, stage: Quantize) -> Iterator[str]:
        fmt, stat = self.kernel.target, self.stat
        assert fmt is not None
        assert stat is not None
        if fmt.codes == "sign":
            yield "scale, inverse = measured, measured * 0.0 + 1.0"
        else:
            largest = f"{fmt.largest!r}"
            yield f"zero = measured < {2.0**-100!r}"
            yield f"scale = tl.where(zero, 1.0, tl.div_rn(measured, measured * 0.0 + {largest}))"
            yield f"inverse = tl.where(zero, 0.0, tl.div_rn(measured * 0.0 + {largest}, measured))"
        groups = self.unit // stat.group if stat.group else 1
        if stat.group:
            yield f"scale = tl.reshape(scale, [UNITS, {groups}])"
            yield f"inverse = tl.reshape(inverse, [UNITS, {groups}])"
            yield f"scaled = tl.reshape(x, [UNITS, {groups}, {stat.group}]) * inverse[:, :, None]"
            yield "scaled = tl.reshape(scaled, [UNITS, UNIT])"
        else:
            yield "scaled = x * inverse"
        if stage.rounding == "stochastic":
            yield from self.noise()
        yield f"code = {_code(stage, fmt)} & {(1 << fmt.bits) - 1}"

    def noise(self) -> Iterator[str]:
        """Print Philox noise: word r of counter q is element r * tile / 4 + q of a tile."""
        tile, tiles = self.kernel.tile, self.kernel.tiles
        quarter = tile // 4
        first = f"chunk * (elements // {tile}) + tl.program_id(0) * {tiles}"
        yield f"tile = {first} + tl.arange(0, {tiles})"
        yield f"counter = tile[:, None] * {quarter} + tl.arange(0, {quarter})[None, :]"
        yield "zeros = counter * 0"
        yield "a, b, c, d = tl.philox(seed, counter, zeros + step, zeros, zeros)"
        yield "words = tl.join(tl.join(a, c), tl.join(b, d))  # [tiles, quarter, (a c | b d)]"
        yield f"words = tl.reshape(tl.permute(words, [0, 2, 3, 1]), [{tiles}, {tile}])"
        yield "noise = (words >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08"
        yield "noise = tl.reshape(noise, [UNITS, UNIT])"

    def pack(self, stage: Pack) -> Iterator[str]:
        fmt = self.kernel.target
        assert fmt is not None
        words, planes = fmt.words, 32 // fmt.bits
        yield f"shift = tl.arange(0, {planes})[None, :, None] * {fmt.bits}"
        rows = self.units * self.unit // fmt.tile
        yield f"words = tl.sum(tl.reshape(code, [{rows}, {planes}, {words}]) << shift, 1)"
        yield "base = chunk.to(tl.int64) * target_stride"
        yield from self.word_spans(fmt)
        yield f"place = base + part[:, None] * {words} + tl.arange(0, {words})[None, :]"
        yield "tl.store(target + place, words, mask=span_inside[:, None])"
        yield "scales = target_scales + chunk.to(tl.int64) * target_scales_stride"
        if fmt.group:
            groups = self.unit // fmt.group
            yield f"near = unit[:, None] * {groups} + tl.arange(0, {groups})[None, :]"
            yield "tl.store(scales + near, scale, mask=inside[:, None])"
        else:
            yield "tl.store(scales, scale, mask=tl.program_id(0) == 0)"

    def residual(self, stage: Residual) -> Iterator[str]:
        fmt = self.kernel.target
        assert fmt is not None
        yield f"value = {_value(fmt, 'code')}"
        if fmt.group:
            groups = self.unit // fmt.group
            yield f"value = tl.reshape(value, [UNITS, {groups}, {fmt.group}]) * scale[:, :, None]"
            yield "value = tl.reshape(value, [UNITS, UNIT])"
        else:
            yield "value = value * scale"
        yield f"tl.store({stage.state} + at, x - value, mask=inside[:, None])"


def _fold(rows: int, group: int) -> Iterator[str]:
    """Print the sum of `part` over its groups, by adding halves until one is left."""
    while group > 1:
        group //= 2
        yield f"part = tl.sum(tl.reshape(part, [{rows}, 2, {group}]), 1)"
    yield f"measured = tl.reshape(part, [{rows}])"


def _value(fmt: MessageFormat, code: str) -> str:
    """The value of a code, in quantisation steps."""
    if fmt.sign_bits:
        return f"(1.0 - 2.0 * ({code}).to(tl.float32))"
    if fmt.codes == "e4m3":
        return f"from_e4m3({code})"
    half = 1 << fmt.bits - 1
    return f"((({code}) ^ {half}) - {half}).to(tl.float32)"


def _code(quantize: Quantize, fmt: MessageFormat) -> str:
    if fmt.sign_bits:
        return "(x < 0).to(tl.int32)"
    if fmt.codes == "sign":
        return "((x > 0).to(tl.int32) - (x < 0).to(tl.int32))"
    if fmt.codes == "e4m3":
        return "to_e4m3(scaled)"
    if quantize.rounding == "stochastic":
        return f"stochastic(scaled, noise, {fmt.largest!r})"
    return "nearest(scaled)"


# fmt: off
LINES: dict[type[CompressionStage], Callable[..., Iterator[str]]] = {
    Cast: TritonBody.cast, Scale: TritonBody.scale, AddState: TritonBody.add_state,
    MovingAverage: TritonBody.moving_average, SubRef: TritonBody.sub_ref,
    AddRef: TritonBody.add_ref, Hadamard: TritonBody.hadamard,
    Stat: TritonBody.measure, Quantize: TritonBody.quantize,
    Pack: TritonBody.pack, Residual: TritonBody.residual,
}
# fmt: on
