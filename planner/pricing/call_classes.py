"""Equivalence classes of calls: stages of equivalent calls in the same order cost the same.

Calls are equivalent if they run one function, own their parameters alike, and read arguments from
equally far back. Deep models have many calls and few classes, and fewer different stages still.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from ...ir.analysis.model_graph import ModelGraph
from ...ir.model.model import Call

MOST_NEAR_USES = 2  # a value with more uses is compared by name, not by distance


def equivalence_classes(graph: ModelGraph, batch_only: Collection[str]) -> list[int]:
    """A class number for every call; `batch_only`: names of values computed from the batch alone.

    Calls of one class run one function on arguments of the same origin.
    """
    model = graph.model
    value_uses = Counter(name for call in model.calls for name in set(call.arguments))
    parameter_uses = Counter(name for call in model.calls for name in set(call.parameters))
    trained = {p.name: p.trainable for p in model.parameters}

    def argument_key(i: int, name: str) -> object:
        if name in batch_only:
            return "batch only"
        if value_uses[name] > MOST_NEAR_USES:
            return name
        maker = graph.maker(name)
        assert maker is not None, f"{name} comes from the batch"
        return i - maker.call, maker.position

    def signature(i: int, call: Call) -> object:
        return (
            call.function,
            tuple(argument_key(i, name) for name in call.arguments),
            tuple(name for name in call.results if value_uses[name] > MOST_NEAR_USES),
            tuple(name if parameter_uses[name] > 1 else trained[name] for name in call.parameters),
        )

    numbers: dict[object, int] = {}
    return [
        numbers.setdefault(signature(i, call), len(numbers)) for i, call in enumerate(model.calls)
    ]
