"""Forward and backward of a function as two pieces, and what the first must save for the second.

The memory variant decides: `keep` saves every value that backward reads, `recompute` saves only the
inputs and runs the needed part of forward again. Between these ends lies any set of values to save:
backward runs again what leads from them, and from the inputs, to what it reads.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..model import Function, Op

Variant = Literal["keep", "recompute"] | tuple[int, ...]  # the values to save


class Pieces(msgspec.Struct, frozen=True):
    """`forward` operators make the outputs and `saved`; `backward` operators make the gradients.

    Both number values as the function does. `saved` leaves out held inputs: they are at hand.
    """

    forward: tuple[Op, ...]
    backward: tuple[Op, ...]
    saved: tuple[int, ...]


def split(function: Function, variant: Variant) -> Pieces:
    """Cut a joint graph into its two pieces."""
    outputs = {o.value for o in function.outputs}
    gradients = {i.gradient for i in function.inputs if i.gradient is not None}
    backward = needed(function.backward_ops, gradients)
    given = {i.value for i in function.inputs if i.kind in ("activation", "key")}
    made = made_by(function.forward_ops)
    ends = {"keep": made, "recompute": set[int]()}
    kept = ends[variant] if isinstance(variant, str) else set(variant)
    again = needed(function.forward_ops, (reads(backward) | gradients) & made, kept)
    backward = again + backward
    saved = ((reads(backward) | gradients) & (kept & made | given)) - made_by(backward)
    forward = needed(function.forward_ops, outputs | (saved - given))
    return Pieces(forward, backward, tuple(sorted(saved)))


def needed(
    ops: tuple[Op, ...], wanted: set[int], known: set[int] | frozenset[int] = frozenset()
) -> tuple[Op, ...]:
    """The operators that lead from `known` values to `wanted`, in order; results nobody reads become
    -1."""
    live, kept = wanted - known, []
    for op in reversed(ops):
        if any(r in live for r in op.results):
            live.update(v for v in op.operands() if v not in known)
            results = tuple(r if r in live else -1 for r in op.results)
            kept.append(op if results == op.results else _with_results(op, results))
    return tuple(reversed(kept))


def _with_results(op: Op, results: tuple[int, ...]) -> Op:
    return Op(op.target, op.args, op.kwargs, results, op.scope)


def reads(ops: tuple[Op, ...]) -> set[int]:
    return {v for op in ops for v in op.operands()}


def made_by(ops: tuple[Op, ...]) -> set[int]:
    return {r for op in ops for r in op.results if r >= 0}


def last_uses(ops: tuple[Op, ...], kept: set[int]) -> list[tuple[int, ...]]:
    """Per operator, the values that nothing reads afterwards (and that are not `kept`)."""
    seen, found = set(kept), []
    for op in reversed(ops):
        ending = []
        for value in (*op.operands(), *(r for r in op.results if r >= 0)):
            if value not in seen:
                seen.add(value)
                ending.append(value)
        found.append(tuple(ending))
    return found[::-1]
