"""Values between calls that are sums over the samples: the loss, and the terms that it is made of.

Such a value may stay a partial sum where the batch is split, if the function that makes it leaves it so
in every call, and all calls of a function that read it are given one there.
"""

from __future__ import annotations

from .data_parallel import partial_outputs
from .dataflow import Dataflow


def summed_names(flow: Dataflow) -> frozenset[str]:
    """Names of the values between calls that stay partial sums along the batch; the loss among them."""
    model = flow.graph.model
    updated = {result for call in model.calls for result, _ in call.updates}
    names = {
        name
        for number in range(len(model.calls))
        if number not in flow.graph.batch_only
        for name, output in flow.graph.results(number)
        if _may_be(flow, number, output.value) and name not in updated
    }
    while True:
        fewer = (names & _left_partial(flow, names)) - _read_as_other(flow, names)
        if fewer == names:
            return frozenset({model.loss, *names})
        names = fewer


def _may_be(flow: Dataflow, call: int, value: int) -> bool:
    """Whether a result is a floating-point tensor that does not carry the batch."""
    function = flow.graph.function(call)
    return function.types[value].is_float and flow.batch_shard(function, value) is None


def _left_partial(flow: Dataflow, names: set[str]) -> set[str]:
    """The results that functions leave as partial sums, where `names` are."""
    left: set[str] = set()
    for function in flow.graph.functions.values():
        calls = [n for n, c in enumerate(flow.graph.model.calls) if c.function == function.name]
        ends = [pair for n in calls for pair in flow.graph.arguments(n)]
        summed = frozenset(item.value for name, item in ends if name in names)
        partial = partial_outputs(function, flow, summed)
        results = [pair for n in calls for pair in flow.graph.results(n)]
        left |= {name for name, output in results if output.value in partial}
    return left


def _read_as_other(flow: Dataflow, names: set[str]) -> set[str]:
    """Of `names` those that a function reads, or makes, in a place where another call has none."""
    calls = range(len(flow.graph.model.calls))
    places: dict[tuple[str, int], set[str]] = {}
    for number in calls:
        function = flow.graph.function(number).name
        for name, end in (*flow.graph.arguments(number), *flow.graph.results(number)):
            places.setdefault((function, end.value), set()).add(name)
    mixed = [found for found in places.values() if not found <= names]
    return {name for found in mixed for name in found & names}
