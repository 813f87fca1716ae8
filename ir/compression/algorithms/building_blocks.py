"""Stage sequences shared by several algorithms."""

from __future__ import annotations

from ..stage import (
    AddState,
    AllGather,
    AllToAll,
    Cast,
    CompressionStages,
    Dequantize,
    Level,
    Pack,
    Quantize,
    Reduce,
    ReductionRule,
    Residual,
    Rounding,
    Stat,
    Statistic,
    Unpack,
)

DECODE: CompressionStages = (Unpack(), Dequantize())


def integers(bits: int, group: int, rounding: Rounding = "nearest") -> CompressionStages:
    """Symmetric integer codes, the largest |x| of a group the largest code."""
    return (Stat("absmax", group), Quantize(bits, rounding), Pack())


def signs(kind: Statistic, group: int, zeros: bool = False) -> CompressionStages:
    """One sign per element, one magnitude per group; with `zeros` two bits, and zeros stay zero."""
    return (Stat(kind, group), Quantize(2 if zeros else 1, codes="sign"), Pack())


def with_error_feedback(encode: CompressionStages, state: str) -> CompressionStages:
    """Encode with error feedback: the residual is kept in `state` and added in the next step."""
    return (AddState(state), *encode, Residual(state))


def two_phases(
    first: CompressionStages, second: CompressionStages, rule: ReductionRule = "mean"
) -> CompressionStages:
    """Compressed all-reduce: all-to-all, every rank reduces its chunk, all-gather."""
    return (*first, AllToAll(), *DECODE, Reduce(rule), *second, AllGather(), *DECODE)


def feedback_all_reduce(encode: CompressionStages) -> CompressionStages:
    """Compressed all-reduce with error feedback of workers and of servers."""
    return two_phases(
        with_error_feedback(encode, "worker_error"), with_error_feedback(encode, "server_error")
    )


def plain_all_reduce(
    rule: ReductionRule = "mean", drop: int = 0, level: Level = "all"
) -> CompressionStages:
    """All-reduce in fp32: all-to-all, reduction, all-gather."""
    return (Cast("fp32"), AllToAll(level), Reduce(rule, drop), Cast("fp32"), AllGather(level))
