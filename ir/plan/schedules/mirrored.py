"""Two pipelines of one model through the same stages, from either end.

Every stage has two chunks of the model: the first, which saves most, shares its stage with the last,
which has most weights, and where one pipeline waits for its first micro-batches the other works. (Li &
Hoefler 2021, *Chimera*; copies of a model in opposite order: cross model parallelism, ECML-PKDD 2023.)

    2 stages, 4 micro-batches      stage 0   F0.0 F1.1 B1.1 F0.2 B0.0 ...     kind, chunk, micro-batch
                                   stage 1   F1.1 F0.0 B0.0 F1.3 B1.1 ...

Micro-batches take turns: even ones go from the first stage to the last, odd ones back. A stage takes
what would come first if no stage ever waited, of what is ready, and holds of either chunk what 1F1B
would.
"""

from __future__ import annotations

from ...errors import UsageError
from .chunk_map import ChunkMap, ScheduleRows, ScheduleStep

DIRECTIONS = 2
UNITS = {"F": 1, "B": 2}  # of time: backward takes twice as long as forward
TURN = UNITS["F"] + UNITS["B"]  # of a micro-batch on a stage


def bidirectional(stages: int, micro_batches: int, chunks: int) -> ScheduleRows:
    """1F1B from either end, each with every other micro-batch: over four stages half of its bubbles.
    Raises UsageError as `check_even` does."""
    check_even(stages, micro_batches)
    rows = [
        _Stage(ChunkMap(stages, DIRECTIONS, mirrored=True), s, micro_batches) for s in range(stages)
    ]
    ends: dict[tuple[int, ScheduleStep], int] = {}
    now = 0
    while any(stage.unfinished for stage in rows):
        for stage in rows:
            stage.take(now, ends)
        now += 1
    return tuple(tuple(stage.row) for stage in rows)


def check_even(stages: int, micro_batches: int) -> None:
    """Raises UsageError for odd numbers of stages or micro-batches."""
    for what, number in (("stages", stages), ("micro-batches", micro_batches)):
        if number % DIRECTIONS:
            raise UsageError(f"bidirectional takes an even number of {what}, not {number}")


class _Stage:
    """A stage while the schedule is built: what each of its chunks does next."""

    def __init__(self, chunks: ChunkMap, number: int, micro_batches: int) -> None:
        self.map, self.number, self.free = chunks, number, 0
        self.row: list[ScheduleStep] = []
        self.next = {
            (kind, direction): direction for kind in UNITS for direction in range(DIRECTIONS)
        }
        self.micro_batches = micro_batches

    @property
    def unfinished(self) -> bool:
        return len(self.row) < len(UNITS) * self.micro_batches

    def take(self, now: int, ends: dict[tuple[int, ScheduleStep], int]) -> None:
        """Begin the first of the steps that can begin now, if any."""
        if self.free > now:
            return
        steps = [
            (kind, *at) for (kind, direction), n in self.next.items() for at in [(direction, n)]
        ]
        ready = [step for step in steps if self.ready(step, now, ends)]
        if ready:
            step = min(ready, key=self.unhurried)
            kind, direction, number = step
            self.row.append(step)
            self.next[kind, direction] = number + DIRECTIONS
            self.free = ends[self.number, step] = now + UNITS[kind]

    def ready(
        self, step: ScheduleStep, now: int, ends: dict[tuple[int, ScheduleStep], int]
    ) -> bool:
        kind, direction, number = step
        if number >= self.micro_batches:
            return False
        place = self.map.number(self.number, direction)
        needs = [(self.number, ("F", direction, number))] if kind == "B" else []
        near = self.map.neighbour(self.number, step, -1 if kind == "F" else 1)
        needs += [] if near is None else [near]
        alive = (number - self.next["B", direction]) // DIRECTIONS  # between forward and backward
        full = kind == "F" and alive >= self.map.total - place
        return not full and all(ends.get(need, now + 1) <= now for need in needs)

    def unhurried(self, step: ScheduleStep) -> tuple[int, int]:
        """When a step would begin if none waited (twice, since two pipelines share the stages)."""
        kind, direction, number = step
        before, last = self.map.number(self.number, direction), self.map.total - 1
        back = UNITS["F"] * (last + 1) + UNITS["B"] * (last - before)
        passed = UNITS["F"] * before if kind == "F" else back
        return TURN * number + DIRECTIONS * passed, direction
