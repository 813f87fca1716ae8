"""Backward in two parts: gradients of activations, which the call before waits for, then of weights.

gradients of results ─▶ inputs ─▶ gradients of activations
                           └─ saved ─▶ weights ─▶ gradients of parameters
"""

from __future__ import annotations

from ..analysis.liveness import Needed, produced_values, read_values
from ..model.model import BackwardParts, Function, GraphHalves
from ..passes import Pass


class SplitBackward(Pass[GraphHalves, BackwardParts], frozen=True):
    """Split the backward half of `function` into the two parts that zero-bubble schedules run apart."""

    function: Function
    name = "split_backward"

    def apply(self, value: GraphHalves) -> BackwardParts:
        return split_backward(self.function, value)


def split_backward(function: Function, halves: GraphHalves) -> BackwardParts:
    """The two parts of a backward half. An operator that gives both kinds of gradients is of the first
    part; no operator runs twice."""
    activations = {i.gradient for i in function.activations() if i.gradient is not None}
    first = set(Needed(halves.backward, activations).numbers)
    inputs, weights = (
        tuple(op for number, op in enumerate(halves.backward) if (number in first) == wanted)
        for wanted in (True, False)
    )
    states = {i.value for i in function.state_inputs()}
    gradients = {i.gradient for i in function.state_inputs() if i.gradient is not None}
    read = (read_values(weights) | gradients) - produced_values(weights) - states
    return BackwardParts(inputs, weights, tuple(sorted(read)))
