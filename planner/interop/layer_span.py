"""The layers of a model: calls of its most frequent function, or of modules with numbers."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ...ir.errors import UsageError
from ...ir.model.model import Model

NUMBERED = re.compile(r"(\S*?)\.(\d+)(?:\.|$)")  # model.layers.3, model.layers.3.mlp


class LayerSpan(NamedTuple):
    """Calls `first` to `last - 1` are the layers, all of one `function`."""

    first: int
    last: int
    function: str

    @property
    def layers(self) -> int:
        return self.last - self.first


def layer_span(calls: Sequence[tuple[int, str]], whose: str) -> LayerSpan:
    """The span of the most frequent function among calls given as (number, function).

    Raises UsageError where others stand between; `whose` file cannot say it.
    """
    functions = Counter(function for _, function in calls)
    most_frequent = functions.most_common(1)[0][0]
    positions = [i for i, function in calls if function == most_frequent]
    others = {function for i, function in calls if positions[0] < i < positions[-1]} - {
        most_frequent
    }
    if others:
        raise UsageError(
            f"{whose} file has layers of one kind, not {sorted(others)[0]} between those of "
            f"{most_frequent}"
        )
    return LayerSpan(positions[0], positions[-1] + 1, most_frequent)


def layer_span_of_model(model: Model, whose: str) -> LayerSpan:
    """The layers of a model; calls that run once per step are none."""
    once = model.batch_only_calls()
    calls = [(i, c.function) for i, c in enumerate(model.calls) if i not in once]
    return layer_span(calls, whose)


class LayerStack(NamedTuple):
    """The numbered layers of a model, `model.layers.0` and so on: `firsts` are the first calls of
    every layer, `end` is past the last one's."""

    prefix: str
    firsts: tuple[int, ...]
    end: int

    @property
    def layers(self) -> int:
        return len(self.firsts)

    def layer_of(self, call: int) -> int | None:
        """The layer of a call; None before the first and after the last."""
        inside = self.firsts[0] <= call < self.end
        return bisect_right(self.firsts, call) - 1 if inside else None


def layer_stack(paths: Sequence[str], whose: str) -> LayerStack:
    """The layers among calls of these module paths, by the first number in each.

    Raises UsageError for models with no or several such stacks, which `whose` file cannot say.
    """
    firsts: dict[str, dict[int, int]] = {}
    ends: dict[str, int] = {}
    for call, path in enumerate(paths):
        match = NUMBERED.match(path)
        if match:
            firsts.setdefault(match[1], {}).setdefault(int(match[2]), call)
            ends[match[1]] = call + 1
    stacks = {prefix: numbers for prefix, numbers in firsts.items() if len(numbers) > 1} or firsts
    if len(stacks) != 1:
        several = " and ".join(stacks) or "none"
        raise UsageError(f"{whose} file has one stack of layers, the model has {several}")
    ((prefix, numbers),) = stacks.items()
    return LayerStack(prefix, tuple(numbers[n] for n in sorted(numbers)), ends[prefix])
