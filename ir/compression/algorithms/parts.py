"""Runs of stages that several algorithms share."""

from __future__ import annotations

from ..stage import (
    AddState,
    AllGather,
    AllToAll,
    Cast,
    Dequantize,
    Level,
    Pack,
    Quantize,
    Reduce,
    Residual,
    Rounding,
    Rule,
    Stages,
    Stat,
    Statistic,
    Unpack,
)

DECODE: Stages = (Unpack(), Dequantize())


def integers(bits: int, group: int, rounding: Rounding = "nearest") -> Stages:
    """Symmetric integer codes, the largest |x| of a group the largest code."""
    return (Stat("absmax", group), Quantize(bits, rounding), Pack())


def signs(kind: Statistic, group: int) -> Stages:
    """One bit each, and what it stands for per group."""
    return (Stat(kind, group), Quantize(1, codes="sign"), Pack())


def fed_back(encode: Stages, state: str) -> Stages:
    """Encoding that carries its error over to the next step."""
    return (AddState(state), *encode, Residual(state))


def two_phases(first: Stages, second: Stages, rule: Rule = "mean") -> Stages:
    """A compressed all-reduce: every rank reduces its chunk of all messages and shares the result."""
    return (*first, AllToAll(), *DECODE, Reduce(rule), *second, AllGather(), *DECODE)


def feedback_all_reduce(encode: Stages) -> Stages:
    """Two phases whose errors, of workers and of servers, are carried over."""
    return two_phases(fed_back(encode, "worker_error"), fed_back(encode, "server_error"))


def plain_all_reduce(rule: Rule = "mean", drop: int = 0, level: Level = "all") -> Stages:
    """An exchange and a reduction in fp32, then everybody gets everything."""
    return (Cast("fp32"), AllToAll(level), Reduce(rule, drop), Cast("fp32"), AllGather(level))
