"""Which stage runs which model chunk: round the stages, there and back, or from both ends.

3 stages, 2 chunks each   looped 0 1 2 │ 3 4 5   folded 0 1 2 │ 5 4 3   mirrored 0 1 2 │ 2 1 0
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
    first, so that the values in between do not travel; `mirrored`: every chunk is on two stages, odd
    micro-batches go through the stages from the last to the first."""

    stages: int
    chunks: int = 1
    folded: bool = False
    mirrored: bool = False

    @property
    def total(self) -> int:
        """Chunks of the model."""
        return self.stages if self.mirrored else self.stages * self.chunks

    def passes(self, micro_batches: int) -> int:
        """How many of a step's micro-batches run each of the chunks of a stage."""
        return micro_batches // self.chunks if self.mirrored else micro_batches

    def runs(self, chunk: int, micro_batch: int) -> bool:
        """Whether a micro-batch runs a chunk of a stage."""
        return not self.mirrored or micro_batch % self.chunks == chunk

    def number(self, stage: int, chunk: int) -> int:
        """Place in the model of a chunk of a stage."""
        before = 0 if self.mirrored else chunk * self.stages
        return before + (self.stages - 1 - stage if self.turned(chunk) else stage)

    def turned(self, chunk: int) -> bool:
        """Whether a chunk of the stages runs from the last of them to the first."""
        return (self.folded or self.mirrored) and chunk % 2 == 1

    def place(self, number: int, direction: int = 0) -> ChunkPlace:
        """Where a chunk of the model runs; of mirrored ones in the pipeline of a `direction`."""
        chunk, at = (direction, number) if self.mirrored else divmod(number, self.stages)
        return ChunkPlace(self.stages - 1 - at if self.turned(chunk) else at, chunk)

    def places(self, number: int) -> list[ChunkPlace]:
        """All stages that run a chunk of the model."""
        return [self.place(number, n) for n in range(self.chunks if self.mirrored else 1)]

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
        place = self.place(number, chunk)
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
