"""Kernels of compression programs in Triton: one program instance per few tiles of a chunk.

    x is [UNITS, TILE], a unit being the elements whose codes share words

What decides bits is spelled out: butterflies and sums in the reference's order, `div_rn`, rounding by
integers, Philox with the reference's counters. Pointers and strides are multiples of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...ir.compression.kernel import Kernel, Pipeline
from ...ir.compression.stage import (
    AddRef,
    AddState,
    Blend,
    Cast,
    Dequantize,
    Hadamard,
    Pack,
    Quantize,
    Reduce,
    Residual,
    Scale,
    Stage,
    Stat,
    SubRef,
    Unpack,
    show,
)
from ...ir.compression.wire import Wire
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


def source(*pipelines: Pipeline) -> str:
    """One Python file with every kernel of pipelines under its name; equal ones are printed once."""
    kernels = {kernel.name: kernel for pipeline in pipelines for kernel in pipeline.kernels}
    first: dict[str, str] = {}
    parts = [PRELUDE]
    for name, kernel in kernels.items():
        same = first.setdefault(work(kernel), name)
        parts.append(print_kernel(kernel) if same == name else f"{name} = {same}\n")
    return "\n\n".join(parts)


def work(kernel: Kernel) -> str:
    """All of a kernel but its name: two that do the same work are one to a compiler."""
    return "\n".join([str(arguments(kernel)), str(kernel.warps), *_Printer(kernel).lines()])


def unit(kernel: Kernel) -> int:
    """Elements whose codes share words: of the message written or read, else a tile."""
    wires = [w for w in (kernel.target, kernel.source) if w is not None and not w.plain]
    return max((w.tile for w in wires), default=kernel.tile)


def arguments(kernel: Kernel) -> list[tuple[str, str]]:
    """Names and Triton types, in order: `*i32` for messages of codes, strides in elements."""
    found = [("elements", "i32")]
    for name, wire in (("source", kernel.source), ("target", kernel.target)):
        found.append(
            (
                name,
                {None: "*fp32", "fp32": "*fp32", "bf16": "*i16"}.get(
                    wire.codes if wire and wire.plain else None if wire is None else "", "*i32"
                ),
            )
        )
        if wire is not None:
            found.append((f"{name}_stride", "i32"))
            if not wire.plain:
                found += [(f"{name}_scales", "*fp32"), (f"{name}_scales_stride", "i32")]
    for operand in kernel.operands:
        found.append((operand.name, "*fp32" if operand.element == "fp32" else "*i16"))
    if kernel.whole is not None and not kernel.partial:
        found.append(("number", "*fp32"))
    if kernel.stochastic:
        found += [("seed", "i64"), ("step", "i32")]
    return found


def print_kernel(kernel: Kernel) -> str:
    """One function."""
    names = ", ".join(name for name, _ in arguments(kernel))
    title = ", ".join(show(stage) for stage in kernel.body) or "copy"
    body = "\n".join(f"    {line}" if line else "" for line in _Printer(kernel).lines())
    return f"# {title}\n@triton.jit\ndef {kernel.name}({names}):\n{body}\n"


class _Printer:
    """The lines of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.unit = kernel, unit(kernel)
        self.units = kernel.tiles * kernel.tile // self.unit
        self.stat: Stat | None = None

    def lines(self) -> Iterator[str]:
        kernel = self.kernel
        yield from self.places()
        stages = list(kernel.body)
        yield from self.read(stages)
        for stage in stages:
            yield from LINES[type(stage)](self, stage)
        yield from self.write()

    def places(self) -> Iterator[str]:
        """Where this instance's elements lie, in the flat tensor and in a message."""
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

    def read(self, stages: list[Stage]) -> Iterator[str]:
        wire = self.kernel.source
        if wire is None:
            yield "x = tl.load(source + at, mask=inside[:, None], other=0.0)"
            return
        while stages and isinstance(stages[0], Unpack | Dequantize):
            stages.pop(0)
        rule = stages[0] if stages and isinstance(stages[0], Reduce) else None
        del stages[: rule is not None]
        yield from reduction(rule, self.kernel, list(self.decode(wire)))

    def decode(self, wire: Wire) -> Iterator[str]:
        """Fills `y` from the message number `message`."""
        yield "base = message.to(tl.int64) * source_stride"
        if wire.plain:
            loaded = "tl.load(source + base + offset, mask=inside[:, None], other=0)"
            yield f"y = widen({loaded})" if wire.codes == "bf16" else f"y = {loaded}"
            return
        words, planes = wire.words, 32 // wire.bits
        yield from self.parts(wire)
        yield f"place = base + part[:, None] * {words} + tl.arange(0, {words})[None, :]"
        yield "words = tl.load(source + place, mask=held[:, None], other=0)"
        yield f"shift = tl.arange(0, {planes})[None, :, None] * {wire.bits}"
        yield f"code = (words[:, None, :] >> shift) & {(1 << wire.bits) - 1}"
        yield f"y = tl.reshape({_value(wire, 'code')}, [UNITS, UNIT])"
        yield "scales = source_scales + message.to(tl.int64) * source_scales_stride"
        if wire.group:
            groups = self.unit // wire.group
            yield f"near = unit[:, None] * {groups} + tl.arange(0, {groups})[None, :]"
            yield "scale = tl.load(scales + near, mask=inside[:, None], other=0.0)"
            yield f"y = tl.reshape(y, [UNITS, {groups}, {wire.group}]) * scale[:, :, None]"
            yield "y = tl.reshape(y, [UNITS, UNIT])"
        else:
            yield "y = y * tl.load(scales)"

    def parts(self, wire: Wire) -> Iterator[str]:
        """The elements whose codes share words in this message, a unit or less of them."""
        rows = self.units * self.unit // wire.tile
        yield f"part = tl.program_id(0) * {rows} + tl.arange(0, {rows})"
        yield f"held = part * {wire.tile} < elements"

    def write(self) -> Iterator[str]:
        kernel, wire = self.kernel, self.kernel.target
        if kernel.partial:
            yield "to = chunk * (elements // UNIT) + unit"
            yield "tl.store(target + to, x, mask=inside)"
        elif wire is None:
            yield "to = chunk.to(tl.int64) * elements + offset"
            yield "tl.store(target + to, x, mask=inside[:, None])"
        elif wire.plain:
            yield "to = chunk.to(tl.int64) * target_stride + offset"
            value = "narrow(x)" if wire.codes == "bf16" else "x"
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

    def blend(self, stage: Blend) -> Iterator[str]:
        yield f"kept = {self.state(stage.state)} * {stage.decay!r}"
        yield f"x = kept + x * {1 - stage.decay!r}"

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
        """Butterflies from neighbours outwards."""
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
        wire, stat = self.kernel.target, self.stat
        assert wire is not None
        assert stat is not None
        if wire.codes == "sign":
            yield "scale, inverse = measured, measured * 0.0 + 1.0"
        else:
            largest = f"{wire.largest!r}"
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
        yield f"code = {_code(stage, wire)} & {(1 << wire.bits) - 1}"

    def noise(self) -> Iterator[str]:
        """Word r of counter q is element r * tile / 4 + q of a tile."""
        tile, tiles = self.kernel.tile, self.kernel.tiles
        quarter = tile // 4
        yield f"tile = chunk * (elements // {tile}) + tl.program_id(0) * {tiles} + tl.arange(0, {tiles})"
        yield f"counter = tile[:, None] * {quarter} + tl.arange(0, {quarter})[None, :]"
        yield "zeros = counter * 0"
        yield "a, b, c, d = tl.philox(seed, counter, zeros + step, zeros, zeros)"
        yield "words = tl.join(tl.join(a, c), tl.join(b, d))  # [tiles, quarter, (a c | b d)]"
        yield f"words = tl.reshape(tl.permute(words, [0, 2, 3, 1]), [{tiles}, {tile}])"
        yield "noise = (words >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08"
        yield "noise = tl.reshape(noise, [UNITS, UNIT])"

    def pack(self, stage: Pack) -> Iterator[str]:
        wire = self.kernel.target
        assert wire is not None
        words, planes = wire.words, 32 // wire.bits
        yield f"shift = tl.arange(0, {planes})[None, :, None] * {wire.bits}"
        rows = self.units * self.unit // wire.tile
        yield f"words = tl.sum(tl.reshape(code, [{rows}, {planes}, {words}]) << shift, 1)"
        yield "base = chunk.to(tl.int64) * target_stride"
        yield from self.parts(wire)
        yield f"place = base + part[:, None] * {words} + tl.arange(0, {words})[None, :]"
        yield "tl.store(target + place, words, mask=held[:, None])"
        yield "scales = target_scales + chunk.to(tl.int64) * target_scales_stride"
        if wire.group:
            groups = self.unit // wire.group
            yield f"near = unit[:, None] * {groups} + tl.arange(0, {groups})[None, :]"
            yield "tl.store(scales + near, scale, mask=inside[:, None])"
        else:
            yield "tl.store(scales, scale, mask=tl.program_id(0) == 0)"

    def residual(self, stage: Residual) -> Iterator[str]:
        wire = self.kernel.target
        assert wire is not None
        yield f"value = {_value(wire, 'code')}"
        if wire.group:
            groups = self.unit // wire.group
            yield f"value = tl.reshape(value, [UNITS, {groups}, {wire.group}]) * scale[:, :, None]"
            yield "value = tl.reshape(value, [UNITS, UNIT])"
        else:
            yield "value = value * scale"
        yield f"tl.store({stage.state} + at, x - value, mask=inside[:, None])"


def _fold(rows: int, group: int) -> Iterator[str]:
    """Sum of `part` over its groups by adding halves until one is left."""
    while group > 1:
        group //= 2
        yield f"part = tl.sum(tl.reshape(part, [{rows}, 2, {group}]), 1)"
    yield f"measured = tl.reshape(part, [{rows}])"


def _value(wire: Wire, code: str) -> str:
    """What a code stands for, in units of a code."""
    if wire.codes == "sign":
        return f"(1.0 - 2.0 * ({code}).to(tl.float32))"
    if wire.codes == "e4m3":
        return f"from_e4m3({code})"
    half = 1 << wire.bits - 1
    return f"((({code}) ^ {half}) - {half}).to(tl.float32)"


def _code(quantize: Quantize, wire: Wire) -> str:
    if wire.codes == "sign":
        return "(x < 0).to(tl.int32)"
    if wire.codes == "e4m3":
        return "to_e4m3(scaled)"
    if quantize.rounding == "stochastic":
        return f"stochastic(scaled, noise, {wire.largest!r})"
    return "nearest(scaled)"


# fmt: off
LINES: dict[type[Stage], Callable[..., Iterator[str]]] = {
    Cast: _Printer.cast, Scale: _Printer.scale, AddState: _Printer.add_state,
    Blend: _Printer.blend, SubRef: _Printer.sub_ref, AddRef: _Printer.add_ref,
    Hadamard: _Printer.hadamard, Stat: _Printer.measure, Quantize: _Printer.quantize,
    Pack: _Printer.pack, Residual: _Printer.residual,
}
# fmt: on
