"""Training batch norm without its hidden write: normalise by the batch, then update explicitly."""

from __future__ import annotations

from ..model import Argument, Ref
from ..tensor import TensorType
from .memory import Memory

LOW = ("float16", "bfloat16")


def batch_norm(
    memory: Memory,
    x: int,
    args: tuple[Argument, ...],
    running: tuple[int, int] | None,
    scope: str,
) -> int:
    """`aten.batch_norm` with `args`; `running` are the tensors of running mean and variance."""
    source, weight, bias, _, _, _, momentum, epsilon = args[:8]
    type_ = memory.graph.types[x]
    wide = "float32" if type_.dtype in LOW else type_.dtype
    statistics = TensorType((type_.shape[1],), wide)
    result, mean, inverse = memory.emit(
        "aten.native_batch_norm.default",
        (source, weight, bias, None, None, True, momentum, epsilon),
        (type_, statistics, statistics),
        None,
        scope,
    )
    if running is not None:
        assert isinstance(momentum, float)
        assert isinstance(epsilon, float)
        count = type_.elements // type_.shape[1]
        inverse = memory.detached(inverse, scope)
        variance = _variance(memory, inverse, epsilon, count, scope)
        _update(memory, running[0], memory.detached(mean, scope), momentum, scope)
        _update(memory, running[1], variance, momentum, scope)
    return result


def _variance(memory: Memory, inverse: int, epsilon: float, count: int, scope: str) -> int:
    """The unbiased variance from 1 / sqrt(variance + epsilon)."""
    steps: tuple[tuple[str, Argument], ...] = (
        ("aten.pow.Tensor_Scalar", -2),
        ("aten.sub.Scalar", epsilon),
        ("aten.mul.Scalar", count / max(count - 1, 1)),
    )
    type_ = memory.graph.types[inverse]
    for name, number in steps:
        (inverse,) = memory.emit(name, (Ref(inverse), number), (type_,), None, scope)
    return inverse


def _update(memory: Memory, buffer: int, batch: int, momentum: float, scope: str) -> None:
    """buffer = (1 - momentum) * buffer + momentum * batch"""
    type_ = memory.graph.types[buffer]

    def scaled(value: int, factor: float) -> Ref:
        args = (Ref(value), factor)
        return Ref(memory.emit("aten.mul.Scalar", args, (type_,), None, scope)[0])

    old = scaled(memory.resolve(buffer), 1.0 - momentum)
    new = scaled(memory.cast(batch, type_.dtype, scope), momentum)
    (value,) = memory.emit("aten.add.Tensor", (old, new), (type_,), None, scope)
    memory.assign(buffer, value, scope)
