"""Which stage runs which model chunk: round the stages again and again, or there and back.

3 stages, 2 chunks each     looped   0 1 2 │ 0 1 2        folded   0 1 2 │ 2 1 0
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")
ScheduleStep = tuple[str, int, int]  # kind, chunk of its stage, micro-batch
ScheduleRows = tuple[tuple[ScheduleStep, ...], ...]
BACKWARD = "BI"  # kinds whose result the model chunk before waits for


class ChunkPlace(NamedTuple):
    """A stage, and the number of one of its chunks."""

    stage: int
    chunk: int


class ChunkMap(NamedTuple):
    """The chunks of a model on its stages; `folded`: every other pass runs from the last stage to the
    first, so that the values in between do not travel."""

    stages: int
    chunks: int = 1
    folded: bool = False

    @property
    def total(self) -> int:
        """Model chunks of all stages."""
        return self.stages * self.chunks

    def number(self, stage: int, chunk: int) -> int:
        """Place in the model of a chunk of a stage."""
        back = self.folded and chunk % 2
        return chunk * self.stages + (self.stages - 1 - stage if back else stage)

    def place(self, number: int) -> ChunkPlace:
        """Where a chunk of the model runs."""
        chunk, at = divmod(number, self.stages)
        return ChunkPlace(self.stages - 1 - at if self.folded and chunk % 2 else at, chunk)

    def numbers(self, stage: int) -> list[int]:
        """Places in the model of all chunks of a stage."""
        return [self.number(stage, chunk) for chunk in range(self.chunks)]

    def deal(self, model_chunks: Sequence[T]) -> list[tuple[T, ...]]:
        """The chunks of a model by stage."""
        return [tuple(model_chunks[n] for n in self.numbers(s)) for s in range(self.stages)]

    def collect(self, by_stage: Sequence[Sequence[T]]) -> tuple[T, ...]:
        """The chunks of all stages in the order of the model."""
        places = map(self.place, range(self.total))
        return tuple(by_stage[place.stage][place.chunk] for place in places)

    def neighbour(
        self, stage: int, step: ScheduleStep, offset: int
    ) -> tuple[int, ScheduleStep] | None:
        """Stage and step of the model chunk before (`offset` -1) or after (1) that of a step; None
        beyond the ends of the model."""
        kind, chunk, micro_batch = step
        number = self.number(stage, chunk) + offset
        if not 0 <= number < self.total:
            return None
        place = self.place(number)
        return place.stage, (kind, place.chunk, micro_batch)

    def sources(self, stage: int, step: ScheduleStep) -> Iterator[tuple[int, ScheduleStep]]:
        """The (stage, step) pairs of the neighbouring chunk that may give what this step receives."""
        kind = step[0]
        near = None if kind == "W" else self.neighbour(stage, step, -1 if kind == "F" else 1)
        if near is not None:
            neighbour, (_, chunk, micro_batch) = near
            for given in "F" if kind == "F" else BACKWARD:
                yield neighbour, (given, chunk, micro_batch)

    def needs_of(
        self, rows: ScheduleRows
    ) -> Callable[[ScheduleStep, int], Iterator[tuple[int, ScheduleStep]]]:
        """A function of a step of these rows and its stage: what must end before it, with stages."""
        steps = [set(row) for row in rows]

        def needs(step: ScheduleStep, stage: int) -> Iterator[tuple[int, ScheduleStep]]:
            yield from ((stage, need) for need in stage_dependencies(step))
            yield from (s for s in self.sources(stage, step) if s[1] in steps[s[0]])

        return needs


def stage_dependencies(step: ScheduleStep) -> tuple[ScheduleStep, ...]:
    """Steps of the same stage that must end before this one."""
    kind, chunk, number = step
    return {"F": (), "W": (("I", chunk, number),)}.get(kind, (("F", chunk, number),))
