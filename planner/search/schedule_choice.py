"""Which schedules the search tries beside 1F1B, and in how many model chunks per stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple, NoReturn

from ...ir.errors import UsageError
from ...ir.plan.memory_action import KEEP
from ...ir.plan.schedules.registry import SCHEDULES, check_schedule, chunk_map
from ..question.candidate import Candidate
from ..question.options import PlanOptions

SEARCHED = ("interleaved", "zb-h1", "zbv", "v-half", "v-min")  # no other beats these on one copy
FRUGAL = frozenset({"v-half", "v-min"})  # hold fewer micro-batches than 1F1B
MOST_CHUNKS = 8  # per stage: bubbles shrink as their inverse, while sends and code grow with them


def schedules_beside(options: PlanOptions) -> list[str]:
    """The schedules beside 1F1B that may be taken."""
    names = SEARCHED if options.schedule == "auto" else (options.schedule,)
    return [n for n in names if n in options.target.schedules and n != "1f1b"]


def required(options: PlanOptions) -> bool:
    """Whether another schedule than 1F1B is asked for."""
    return options.schedule not in ("auto", "1f1b")


def seconds_without_bubble(
    candidate: Candidate, names: list[str], chunks: int = MOST_CHUNKS
) -> float:
    """A lower bound of a candidate's step seconds under schedules of at most so many model chunks."""
    part = 1 - 1 / chunks if names == ["interleaved"] else 1.0
    return candidate.step_seconds * (1 - candidate.bubble * part)


class ScheduleTrial(NamedTuple):
    """Candidates of one split that a schedule may make the fastest, and a lower bound of their step
    seconds under it."""

    frugal: bool
    least_seconds: float
    order: tuple[int, int]
    schedule: str
    candidates: list[Candidate]


def trials(
    candidates: Iterable[Candidate],
    names: Sequence[str],
    able: Callable[[Candidate, str], bool],
    limit: Callable[[], float],
) -> Iterator[ScheduleTrial]:
    """Every schedule with the candidates that are `able` to have it and have lower bounds below
    `limit`, which may fall meanwhile: most promising first, those of `FRUGAL` last. Of candidates that
    split devices and batch alike, memory actions and the roles of batch axes aside, layers may be
    mixed: they are tried together."""

    def trial(order: tuple[int, int], group: list[Candidate]) -> list[ScheduleTrial]:
        name = names[order[1]]
        seconds = [seconds_without_bubble(c, [name]) for c in group]
        return [ScheduleTrial(name in FRUGAL, min(seconds), order, name, group)] if group else []

    def able_ones(waiting: ScheduleTrial) -> list[Candidate]:
        name, most = waiting.schedule, limit()
        fast = [c for c in waiting.candidates if seconds_without_bubble(c, [name]) < most]
        return [c for c in fast if able(c, name)]

    splits = enumerate(_by_split(candidates))
    heap = [t for i, split in splits for k in range(len(names)) for t in trial((i, k), split)]
    heapify(heap)
    checked = set[tuple[int, int]]()
    while heap:
        first = heappop(heap)
        if first.order in checked:
            yield first
        elif first.least_seconds < limit():
            checked.add(first.order)
            for exact in trial(first.order, able_ones(first)):
                heappush(heap, exact)


def _by_split(candidates: Iterable[Candidate]) -> Iterable[list[Candidate]]:
    """Those with stages, by how they split devices and batch."""
    by_split: dict[object, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.strategies[0].stages > 1:
            assignment = candidate.assignment
            key = tuple(
                (d.first, assignment.point(d).replica._replace(memory=KEEP))
                for d in candidate.decisions
            )
            by_split.setdefault(key, []).append(candidate)
    return by_split.values()


def suits(candidate: Candidate, schedule: str, limit_bytes: int) -> bool:
    """Whether a schedule may make a candidate the fastest: one of `FRUGAL` where it does not fit, the
    others, which are faster, where it does."""
    return (schedule in FRUGAL) == (candidate.peak_bytes > limit_bytes)


def chunk_counts(schedule: str, stages: int, micro_batches: int, most_stages: int) -> Iterator[int]:
    """Model chunks per stage that a schedule may have; none where it cannot have these numbers.

    Every chunk must have work: there are at most `most_stages`.
    """
    fixed = SCHEDULES[schedule].chunks
    for chunks in [fixed] if fixed else range(2, MOST_CHUNKS + 1):
        try:
            check_schedule(schedule, stages, micro_batches, chunks)
        except UsageError:
            return
        if chunk_map(schedule, stages, chunks).total <= most_stages and micro_batches >= stages:
            yield chunks


def refuse(options: PlanOptions, candidates: Iterable[Candidate], most_stages: int) -> NoReturn:
    """Raises UsageError that says why none of the pinned candidates can run the schedule asked for."""
    name = options.schedule
    chunks = SCHEDULES[name].chunks or 2
    reason = f"{name} is a schedule of pipelines: pin a strategy with pp"
    for candidate in candidates:
        stages = candidate.strategies[0].stages
        unable = options.target.schedule_refusal(candidate.strategies[0], name)
        if unable is not None:
            raise UsageError(unable)
        if stages > 1:
            check_schedule(name, stages, candidate.micro_batches, chunks)
            total = chunk_map(name, stages, chunks).total
            reason = (
                f"{name} over {stages} stages takes {total} model chunks with work and at "
                f"least {stages} micro-batches; the model has {most_stages} calls, the plan "
                f"{candidate.micro_batches} micro-batches"
            )
    raise UsageError(reason)
