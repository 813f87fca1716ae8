"""Partition of a joint graph into forward and backward, and the values saved between them.

The memory variant decides: `keep` saves every value that backward reads, `recompute` saves only the
inputs and runs the needed part of forward again. Between these ends lies any set of values to save:
backward recomputes what it reads from them and from the inputs.
"""

from __future__ import annotations

from ..analysis.liveness import needed_ops, produced_values, read_values
from ..model.model import Function, GraphHalves
from ..passes import Pass
from ..plan.memory_action import Variant


class ForwardBackward(Pass[Function, GraphHalves], frozen=True):
    """Split a joint graph into forward and backward; `variant` says which values forward saves."""

    variant: Variant
    name = "forward_backward"

    def apply(self, value: Function) -> GraphHalves:
        return partition(value, self.variant)


def partition(function: Function, variant: Variant) -> GraphHalves:
    """Split a joint graph into its forward and backward halves under a memory variant."""
    outputs = {o.value for o in function.outputs}
    gradients = {i.gradient for i in function.inputs if i.gradient is not None}
    backward = needed_ops(function.backward_ops, gradients)
    activations = {i.value for i in function.inputs if i.kind in ("activation", "key")}
    computed = produced_values(function.forward_ops)
    savable = {"keep": computed, "recompute": set[int]()}
    allowed = savable[variant] if isinstance(variant, str) else set(variant)
    reads = read_values(backward) | gradients
    backward = needed_ops(function.forward_ops, reads & computed, allowed) + backward
    reads = read_values(backward) | gradients
    saved = (reads & (allowed & computed | activations)) - produced_values(backward)
    forward = needed_ops(function.forward_ops, outputs | (saved - activations))
    return GraphHalves(forward, backward, tuple(sorted(saved)))
