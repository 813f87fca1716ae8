"""Finds the first layer of a step whose results or gradients are NaN or infinite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..comm.process_group import Group
from .batch import Batch
from .calls import Run
from .compiled_step import CompiledStep
from .placed_rank import PlacedRun


class FirstEvent(NamedTuple):
    """Something not finite; the least is the first: forward in the order of calls, then backward."""

    backward: bool
    order: int
    text: str


class FiniteSearch:
    """While it is entered, looks at what every call of a run gives; the step `number` is run inside.

    `first` is the first event on this rank. Leaves nothing of the step behind.
    """

    def __init__(self, run: Run, number: int) -> None:
        self.run, self.number = run, number
        self.first: FirstEvent | None = None

    def __enter__(self) -> FiniteSearch:
        self.run.start(self.number)
        self.run.look = self.look
        return self

    def __exit__(self, *_: Any) -> None:
        self.run.look = None
        self.run.start(self.number)
        self.run.store.drop_accumulated()

    def result(self, everyone: Group) -> str:
        """The first layer over all ranks, and how; all ranks together."""
        events = everyone.gather_objects(self.first, "layers that are not finite")
        seen = [event for event in events if event is not None]
        return min(seen).text if seen else "none of the model's"

    def look(self, backward: bool, call: int, values: Sequence[Tensor | None]) -> None:
        """Note the call if any of its values is not finite."""
        if all(value is None or _finite(value) for value in values):
            return
        runs = self.run.runs[call]
        path = runs.name(runs.path, call)
        text = f"{path or 'the model'} ({self.reason(backward, call)})"
        event = FirstEvent(backward, -call if backward else call, text)
        self.first = min(filter(None, (self.first, event)))

    def reason(self, backward: bool, call: int) -> str:
        """In which direction, and whether the weights are to blame."""
        for name in self.run.state_names(call):
            if not _finite(self.run.store.parameters[name].flat):
                return f"its weight {name} is not finite"
        return "backward" if backward else "forward"


def first_non_finite(step: CompiledStep, batch: Batch, number: int) -> str:
    """The first layer that gives NaN or infinite values on the `number`-th batch, which is run once
    more; all ranks together."""
    if isinstance(step.run, PlacedRun):
        return "not known in a placed program"
    with FiniteSearch(step.run, number) as search:
        step.micro_batches(step.run, step.pipeline, step.local_batch(batch))
    return search.result(step.groups.everyone)


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())
