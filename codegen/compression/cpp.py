"""Print kernels of compression programs as single-threaded C++, sixteen lanes at a time.

    for every chunk, for every tile: read, one block per stage, write

A tile is an array `x` of vectors that stays in the first-level cache. Vector types
and functions are in `vector.h`, which every source begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files

from ...ir.compression.kernel import CompressionKernel, KernelPipeline
from ...ir.compression.message_format import LANES, MessageFormat
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
from .cpp_reduce import reduction
from .cpp_text import number

ELEMENTWISE = (Cast, Scale, AddState, MovingAverage, SubRef, AddRef)
SIGNATURE = (
    "int64_t elements, const uint8_t* source, int64_t source_codes,\n"
    "    int64_t source_bytes, uint8_t* target, int64_t target_codes, int64_t target_bytes,\n"
    "    uint8_t* const* states, float number, uint64_t seed, uint32_t step"
)


def source(*pipelines: KernelPipeline) -> str:
    """Print one C++ file with every kernel of `pipelines`, each `extern "C"` under its name."""
    header = files(__name__.rpartition(".")[0]).joinpath("vector.h").read_text()
    kernels = {kernel.name: kernel for pipeline in pipelines for kernel in pipeline.kernels}
    return "\n".join([header, *(print_kernel(kernel) for kernel in kernels.values())])


def print_kernel(kernel: CompressionKernel) -> str:
    """Print one kernel as a function."""
    title = ", ".join(show(stage) for stage in kernel.body) or "copy"
    body = "\n".join(f"      {line}" if line else "" for line in _CppPrinter(kernel).lines())
    swizzle = kernel.swizzle
    origin = f"(chunk % {swizzle[1]} * {swizzle[0]} + chunk / {swizzle[1]})" if swizzle else "chunk"
    return f"""// {title}
extern "C" void {kernel.name}(
    {SIGNATURE}) {{
  constexpr int CHUNKS = {kernel.chunks}, RANKS = {kernel.ranks}, TILE = {kernel.tile};
  constexpr int VECTORS = TILE / LANES;
  const int64_t tiles = elements / TILE;
  for (int64_t chunk = 0; chunk < CHUNKS; ++chunk) {{
    const int64_t origin = {origin} * elements;
    for (int64_t tile = 0; tile < tiles; ++tile) {{
      const int64_t at = origin + tile * TILE, row = chunk * tiles + tile;
      V x[VECTORS];
{body}
    }}
  }}
}}
"""


class _CppPrinter:
    """Prints the loop body for one tile."""

    def __init__(self, kernel: CompressionKernel) -> None:
        self.kernel = kernel
        self.states = {operand.name: number for number, operand in enumerate(kernel.operands)}
        self.stat: Stat | None = None

    def lines(self) -> Iterator[str]:
        kernel = self.kernel
        stages = list(kernel.body)
        yield from self.read(stages)
        while stages:
            if isinstance(stages[0], ELEMENTWISE):
                yield from self.elementwise(stages)
            else:
                stage = stages.pop(0)
                yield from TILE_STAGES[type(stage)](self, stage)
        if not kernel.partial and (kernel.target is None or kernel.target.plain):
            yield from self.write(kernel.target)

    def write(self, target: MessageFormat | None) -> Iterator[str]:
        """Write uncompressed numbers, flat or as messages; `pack` writes codes."""
        at = "tile * TILE + i * LANES"
        line = f"  write((float*)target + chunk * elements + {at}, x[i]);"
        if target is not None:
            yield "uint8_t* const out = target + chunk * target_bytes;"
            half = target.codes == "bf16"
            line = f"  write((float*)out + {at}, x[i]);"
            line = f"  write((uint16_t*)out + {at}, narrow(x[i]));" if half else line
        yield "for (int i = 0; i < VECTORS; ++i)"
        yield line

    def read(self, stages: list[CompressionStage]) -> Iterator[str]:
        """Read flat numbers, or decode and reduce the messages of all ranks."""
        source = self.kernel.source
        if source is None:
            yield "for (int i = 0; i < VECTORS; ++i)"
            yield "  x[i] = read<V>((const float*)source + at + i * LANES);"
            return
        while stages and isinstance(stages[0], Unpack | Dequantize):
            stages.pop(0)
        rule = stages[0] if stages and isinstance(stages[0], Reduce) else None
        del stages[: rule is not None]
        yield from reduction(rule, self.kernel, list(_decode(source)))

    def elementwise(self, stages: list[CompressionStage]) -> Iterator[str]:
        """Print adjacent elementwise stages as one loop."""
        yield "for (int i = 0; i < VECTORS; ++i) {"
        yield "  V v = x[i];"
        while stages and isinstance(stages[0], ELEMENTWISE):
            stage = stages.pop(0)
            yield f"  {ELEMENTWISE_STAGES[type(stage)](self, stage)}"
        yield "  x[i] = v;"
        yield "}"

    def load(self, name: str, element: str = "fp32") -> str:
        pointer = f"states[{self.states[name]}]"
        if element == "bf16":
            return f"widen(read<H>((uint16_t*){pointer} + at + i * LANES))"
        return f"read<V>((float*){pointer} + at + i * LANES)"

    def cast(self, stage: Cast) -> str:
        return "v = widen(narrow(v));" if stage.element == "bf16" else "// already fp32"

    def scale(self, stage: Scale) -> str:
        return f"v = v * {number(stage.factor)};"

    def add_state(self, stage: AddState) -> str:
        return f"v = v + {self.load(stage.state)};"

    def moving_average(self, stage: MovingAverage) -> str:
        decay, rest = number(stage.decay), number(1 - stage.decay)
        return f"v = {self.load(stage.state)} * {decay} + v * {rest};"

    def sub_ref(self, stage: SubRef) -> str:
        return self._reference(stage, "-")

    def add_ref(self, stage: AddRef) -> str:
        return self._reference(stage, "+")

    def _reference(self, stage: SubRef | AddRef, sign: str) -> str:
        other = self.load(stage.state, stage.element)
        if stage.element == "bf16":
            return f"v = widen(narrow(widen(narrow(v)) {sign} {other}));"
        return f"v = v {sign} {other};"

    def hadamard(self, stage: Hadamard) -> Iterator[str]:
        yield f"hadamard(x, VECTORS, {stage.block});"

    def measure(self, stage: Stat) -> Iterator[str]:
        self.stat = stage
        if self.kernel.partial and stage.group == 0:
            call = "largest(x, VECTORS)"
            if stage.kind != "absmax":
                yield "V scratch[VECTORS];"
                call = f"sum<{_summand(stage)}>(x, VECTORS, scratch)"
            yield f"((float*)target)[row] = {call};"
            return
        if stage.group and stage.kind != "absmax":
            yield f"V scratch[{max(stage.group // LANES // 2, 1)}];"

    def quantize(self, stage: Quantize) -> Iterator[str]:
        """Print the quantisation step of every group and, for stochastic rounding, the noise."""
        fmt, stat = self.kernel.target, self.stat
        assert fmt is not None
        assert stat is not None
        group = stat.group or self.kernel.tile
        yield f"constexpr int GROUP = {group}, GROUPS = TILE / GROUP;"
        yield "Step steps[GROUPS];"
        yield "for (int g = 0; g < GROUPS; ++g)"
        yield f"  steps[g] = {_step(stat, fmt)};"
        if stage.rounding == "stochastic":
            yield "V noise[VECTORS];"
            yield "for (int i = 0; i < VECTORS / 4; ++i) {"
            yield "  V four[4];"
            yield "  noise_of(row * (TILE / 4) + i * LANES, step, seed, four);"
            yield "  for (int r = 0; r < 4; ++r) noise[r * VECTORS / 4 + i] = four[r];"
            yield "}"

    def pack(self, stage: Pack) -> Iterator[str]:
        fmt, kernel = self.kernel.target, self.kernel
        assert fmt is not None
        quantize = next(s for s in kernel.body if isinstance(s, Quantize))
        residual = next((s for s in kernel.body if isinstance(s, Residual)), None)
        yield "uint8_t* const out = target + chunk * target_bytes;"
        yield f"uint8_t* const words = out + tile * (TILE / 8 * {fmt.bits});"
        yield from _planes(fmt)
        yield "    U word = U{};"
        yield "    for (int plane = 0; plane < PLANES; ++plane) {"
        yield "      const int i = s * SPAN + plane * WIDTH + w;"
        yield "      const Step& one = steps[i * LANES / GROUP];"
        yield f"      const U code = {_code(quantize, fmt)} & {(1 << fmt.bits) - 1}u;"
        yield f"      word |= code << plane * {fmt.bits};"
        if residual is not None:
            yield f"      const V left = x[i] - {_value(fmt, 'code')} * one.scale;"
            state = f"(float*)states[{self.states[residual.state]}]"
            yield f"      write({state} + at + i * LANES, left);"
        yield "    }"
        yield "    write(words + (s * WIDTH + w) * sizeof word, word);"
        yield "  }"
        yield "float* const scales = (float*)(out + target_codes);"
        if fmt.group:
            yield "for (int g = 0; g < GROUPS; ++g) scales[tile * GROUPS + g] = steps[g].scale;"
        else:
            yield "scales[0] = steps[0].scale;"

    def residual(self, stage: Residual) -> Iterator[str]:
        """Print nothing: `pack` writes residuals beside codes."""
        yield from ()


def _planes(fmt: MessageFormat) -> Iterator[str]:
    """Print loops over words of a tile: `s` over spans that share words, `w` over word vectors."""
    yield f"constexpr int PLANES = {32 // fmt.bits}, WIDTH = {fmt.words // LANES};"
    yield "constexpr int SPAN = PLANES * WIDTH;"
    yield "for (int s = 0; s < VECTORS / SPAN; ++s)"
    yield "  for (int w = 0; w < WIDTH; ++w) {"


def _decode(fmt: MessageFormat) -> Iterator[str]:
    """Print code that fills `y` from the message `in`."""
    if fmt.plain:
        half = fmt.codes == "bf16"
        yield "for (int i = 0; i < VECTORS; ++i)"
        yield (
            "  y[i] = widen(read<H>((const uint16_t*)in + tile * TILE + i * LANES));"
            if half
            else "  y[i] = read<V>((const float*)in + tile * TILE + i * LANES);"
        )
        return
    scale = f"[(tile * TILE + i * LANES) / {fmt.group}]" if fmt.group else "[0]"
    yield f"const uint8_t* const words = in + tile * (TILE / 8 * {fmt.bits});"
    yield "const float* const scales = (const float*)(in + source_codes);"
    yield from _planes(fmt)
    yield "    const U word = read<U>(words + (s * WIDTH + w) * sizeof(U));"
    yield "    for (int plane = 0; plane < PLANES; ++plane) {"
    yield "      const int i = s * SPAN + plane * WIDTH + w;"
    yield f"      const U code = word >> plane * {fmt.bits} & {(1 << fmt.bits) - 1}u;"
    yield f"      y[i] = {_value(fmt, 'code')} * scales{scale};"
    yield "    }"
    yield "  }"


def _value(fmt: MessageFormat, code: str) -> str:
    """The value of a code, in quantisation steps."""
    if fmt.sign_bits:
        return f"signs({code})"
    if fmt.codes == "e4m3":
        return f"from_e4m3({code})"
    shift = 32 - fmt.bits
    return f"__builtin_convertvector((I)({code} << {shift}) >> {shift}, V)"


def _code(quantize: Quantize, fmt: MessageFormat) -> str:
    if fmt.sign_bits:
        return "sign(x[i])"
    if fmt.codes == "sign":
        return "(U)((x[i] < 0) - (x[i] > 0))"
    if fmt.codes == "e4m3":
        return "to_e4m3(x[i] * one.inverse)"
    if quantize.rounding == "stochastic":
        return f"stochastic(x[i] * one.inverse, noise[i], {int(fmt.largest)})"
    return "nearest(x[i] * one.inverse)"


def _step(stat: Stat, fmt: MessageFormat) -> str:
    """The quantisation step of group `g`."""
    group, count = "x + g * (GROUP / LANES)", "GROUP / LANES"
    if not stat.group:
        measured = "number"
    elif stat.kind == "absmax":
        measured = f"largest({group}, {count})"
    else:
        measured = f"sum<{_summand(stat)}>({group}, {count}, scratch) * {number(1 / stat.group)}"
        if stat.kind == "l2":
            measured = f"std::sqrt({measured})"
    if fmt.codes == "sign":
        return f"{{{measured}, 1.0f}}"
    return f"step_of({measured}, {number(fmt.largest)})"


def _summand(stat: Stat) -> str:
    return "magnitude" if stat.kind == "l1" else "squared"


# fmt: off
ELEMENTWISE_STAGES: dict[type[CompressionStage], Callable[..., str]] = {
    Cast: _CppPrinter.cast, Scale: _CppPrinter.scale, AddState: _CppPrinter.add_state,
    MovingAverage: _CppPrinter.moving_average, SubRef: _CppPrinter.sub_ref,
    AddRef: _CppPrinter.add_ref,
}
# fmt: on
# fmt: off
TILE_STAGES: dict[type[CompressionStage], Callable[..., Iterator[str]]] = {
    Hadamard: _CppPrinter.hadamard, Stat: _CppPrinter.measure, Quantize: _CppPrinter.quantize,
    Pack: _CppPrinter.pack, Residual: _CppPrinter.residual,
}
# fmt: on
