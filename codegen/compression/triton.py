"""Print kernels of compression programs as Triton: one program instance per few tiles of a chunk.

A module begins with the functions that all kernels share. Pointers and strides are multiples of
16 bytes.
"""

from __future__ import annotations

from ...ir.compression.kernel import CompressionKernel, KernelPipeline
from ...ir.compression.stage import show
from .triton_body import TritonBody

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
    return "\n".join([str(arguments(kernel)), str(kernel.warps), *TritonBody(kernel).lines()])


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
    body = "\n".join(f"    {line}" if line else "" for line in TritonBody(kernel).lines())
    # a kernel is not compiled anew for some steps and ranks
    changing = '(do_not_specialize=["seed", "step"])' if kernel.stochastic else ""
    return f"# {title}\n@triton.jit{changing}\ndef {kernel.name}({names}):\n{body}\n"
