"""Print kernels of compression programs as Triton: one program instance per few tiles of a chunk.

    x is [UNITS, UNIT], a unit being the elements whose codes share words

Results equal the reference bit for bit: butterflies and sums in its order, `div_rn`, rounding by
integers, Philox with the reference's counters. Pointers and strides are multiples of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...ir.compression.kernel import CompressionKernel, KernelPipeline
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
    show,
)
from .triton_reduce import reduction

PRELUDE = '''"""Generated: kernels of compressed collectives."""

import triton
import triton.language as tl


@triton.jit
def larger(a, b):
    """The larger one; NaN if there is one."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def narrow(x):
    """The upper half of fp32 bits, rounded to nearest even: bf16."""
    bits = x.to(tl.uint32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16)


@triton.jit
def widen(half):
    """fp32 of bf16 bits."""
    return (half.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def nearest(x):
    """|x| < 2**22 rounded to nearest even; NaN is 0."""
    rounded = (x + 12582912.0) - 12582912.0
    return tl.where(rounded == rounded, rounded, 0.0).to(tl.int32)


@triton.jit
def stochastic(x, noise, LARGEST: tl.constexpr):
    """x rounded up with the probability of its fraction; NaN is 0."""
    rounded = tl.floor(x + noise)
    rounded = tl.where(rounded == rounded, rounded, 0.0)
    return tl.minimum(tl.maximum(rounded, -LARGEST), LARGEST).to(tl.int32)


@triton.jit
def to_e4m3(x):
    """OCP e4m3 codes, to nearest even."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    rounded = magnitude + 0x7FFFF + ((magnitude >> 20) & 1)
    normal = tl.minimum(tl.maximum((rounded >> 20) - 960, 0), 127)
    small = tl.abs(x) < 0.015625
    subnormal = tl.minimum(nearest(tl.where(small, tl.abs(x) * 512.0, 0.0)), 8)
    return ((bits >> 24) & 0x80) | tl.where(small, subnormal, normal)


@triton.jit
def from_e4m3(code):
    """What e4m3 codes stand for."""
    magnitude = code & 0x7F
    normal = ((magnitude + 960) << 20).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, normal)
    return tl.where(code >= 0x80, -value, value)
'''


def source(*pipelines: KernelPipeline) -> str:
    """Print one Python file with every kernel of `pipelines`; equal kernels are printed once."""
    kernels = {kernel.name: kernel for pipeline in pipelines for kernel in pipeline.kernels}
    first: dict[str, str] = {}
    parts = [PRELUDE]
    for name, kernel in kernels.items():
        first_name = first.setdefault(kernel_signature(kernel), name)
        parts.append(print_kernel(kernel) if first_name == name else f"{name} = {first_name}\n")
    return "\n\n".join(parts)


def kernel_signature(kernel: CompressionKernel) -> str:
    """The text of a kernel without its name; equal signatures compile to the same code."""
    return "\n".join([str(arguments(kernel)), str(kernel.warps), *_TritonPrinter(kernel).lines()])


def unit_elements(kernel: CompressionKernel) -> int:
    """Elements whose codes share words in the message written or read, else those of a tile."""
    formats = [w for w in (kernel.target, kernel.source) if w is not None and not w.plain]
    return max((w.tile for w in formats), default=kernel.tile)


def arguments(kernel: CompressionKernel) -> list[tuple[str, str]]:
    """Names and Triton types of arguments, in order; `*i32` for codes, strides in elements."""
    parameters = [("elements", "i32")]
    for name, fmt in (("source", kernel.source), ("target", kernel.target)):
        parameters.append(
            (
                name,
                {None: "*fp32", "fp32": "*fp32", "bf16": "*i16"}.get(
                    fmt.codes if fmt and fmt.plain else None if fmt is None else "", "*i32"
                ),
            )
        )
        if fmt is not None:
            parameters.append((f"{name}_stride", "i32"))
            if not fmt.plain:
                parameters += [(f"{name}_scales", "*fp32"), (f"{name}_scales_stride", "i32")]
    for operand in kernel.operands:
        parameters.append((operand.name, "*fp32" if operand.element == "fp32" else "*i16"))
    if kernel.per_tensor_stat is not None and not kernel.partial:
        parameters.append(("number", "*fp32"))
    if kernel.stochastic:
        parameters += [("seed", "i64"), ("step", "i32")]
    return parameters


def print_kernel(kernel: CompressionKernel) -> str:
    """Print one kernel as a function."""
    names = ", ".join(name for name, _ in arguments(kernel))
    title = ", ".join(show(stage) for stage in kernel.body) or "copy"
    body = "\n".join(f"    {line}" if line else "" for line in _TritonPrinter(kernel).lines())
    return f"# {title}\n@triton.jit\ndef {kernel.name}({names}):\n{body}\n"


class _TritonPrinter:
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
    if fmt.codes == "sign":
        return f"(1.0 - 2.0 * ({code}).to(tl.float32))"
    if fmt.codes == "e4m3":
        return f"from_e4m3({code})"
    half = 1 << fmt.bits - 1
    return f"((({code}) ^ {half}) - {half}).to(tl.float32)"


def _code(quantize: Quantize, fmt: MessageFormat) -> str:
    if fmt.codes == "sign":
        return "(x < 0).to(tl.int32)"
    if fmt.codes == "e4m3":
        return "to_e4m3(scaled)"
    if quantize.rounding == "stochastic":
        return f"stochastic(scaled, noise, {fmt.largest!r})"
    return "nearest(scaled)"


# fmt: off
LINES: dict[type[CompressionStage], Callable[..., Iterator[str]]] = {
    Cast: _TritonPrinter.cast, Scale: _TritonPrinter.scale, AddState: _TritonPrinter.add_state,
    MovingAverage: _TritonPrinter.moving_average, SubRef: _TritonPrinter.sub_ref,
    AddRef: _TritonPrinter.add_ref, Hadamard: _TritonPrinter.hadamard,
    Stat: _TritonPrinter.measure, Quantize: _TritonPrinter.quantize,
    Pack: _TritonPrinter.pack, Residual: _TritonPrinter.residual,
}
# fmt: on
