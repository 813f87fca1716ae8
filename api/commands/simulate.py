"""`plait simulate`: the timeline of a plan when ranks are slow or links are down."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ...cost_model.pipeline.simulate import ScheduleEvent, Timeline
from ...cost_model.what_if import Conditions, LostLink, SimulatedStep, simulate_step
from ...ir.errors import UsageError
from ...ir.plan.plan import Plan
from ...ir.text.summary import schedule
from ...ir.text.units import micro_batches, seconds
from .arguments import add_engine, add_json, add_plan_source, plan_of
from .output import print_json

WIDTH = 72  # columns of the timeline
MOST_ROWS = 64
LARGEST_FACTOR = 1000.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN")
    parser.add_argument(
        "--slow",
        action="append",
        default=[],
        metavar="RANK=TIMES",
        help="a rank that computes more slowly: rank3=1.3; repeatable",
    )
    parser.add_argument(
        "--link-down",
        action="append",
        default=[],
        metavar="LINK[=PART]",
        help="a level (network), one rank's (rank3:network) or its innermost (rank3), "
        "lost as a whole or in part (network=0.5); repeatable",
    )
    add_plan_source(parser, help="its model, for --engine; default: the file that the plan names")
    add_engine(parser, "simulate the plan as this engine runs it; default: the plan's own")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    plan = plan_of(arguments, arguments.plan)
    conditions = parse_conditions(plan, arguments.slow, arguments.link_down)
    planned, changed = simulate_step(plan, Conditions()), simulate_step(plan, conditions)
    if arguments.json:
        print_json(_runs_json(plan, planned, changed))
    else:
        print("\n".join(_runs_text(plan, planned, changed)))
    return 0


def parse_conditions(plan: Plan, slow: Sequence[str], down: Sequence[str]) -> Conditions:
    """Parse `rank3=1.3` and `LEVEL`, `rank3:LEVEL` or `rank3` with or without `=PART`.

    Raises UsageError for ranks and levels that the plan's cluster does not have, and for duplicates.
    """
    slowed = tuple(_slow(plan, text) for text in slow)
    lost = tuple(_lost(plan, text) for text in down)
    places = [*(rank for rank, _ in slowed), *((x.level, x.rank) for x in lost)]
    if len(set(places)) < len(places):
        raise UsageError("--slow, --link-down: a rank or link is named twice")
    return Conditions(slowed, lost)


def _slow(plan: Plan, text: str) -> tuple[int, float]:
    name, _, value = text.partition("=")
    factor = _number(value, f"--slow {text}")
    if not 1 / LARGEST_FACTOR <= factor <= LARGEST_FACTOR:
        raise UsageError(
            f"--slow {text}: times as long, at most {LARGEST_FACTOR:g}, as in rank3=1.3"
        )
    return _rank(plan, name, f"--slow {text}"), factor


def _lost(plan: Plan, text: str) -> LostLink:
    place, _, value = text.partition("=")
    if plan.groups:
        raise UsageError(
            f"--link-down {text}: stages of this plan are device groups, whose links differ"
        )
    part = _number(value, f"--link-down {text}") if value else 1.0
    if not 0 < part <= 1:
        raise UsageError(f"--link-down {text}: the part that is lost is above 0 and at most 1")
    names = [link.name for link in plan.cluster.levels]
    rank, colon, level = place.rpartition(":")
    if level in names:
        number = _rank(plan, rank, f"--link-down {text}") if colon else None
        return LostLink(names.index(level), part, number)
    if colon or not re.fullmatch(r"rank\d+", level):
        raise UsageError(
            f"--link-down {text}: {plan.cluster.name} has the levels {', '.join(names)}; name one, or "
            "a rank, or both as in rank3:" + names[-1]
        )
    return LostLink(len(names) - 1, part, _rank(plan, level, f"--link-down {text}"))


def _rank(plan: Plan, text: str, where: str) -> int:
    match = re.fullmatch(r"rank(\d{1,9})", text)
    if match is None or int(match[1]) >= plan.mesh.size:
        raise UsageError(f"{where}: name a rank from rank0 to rank{plan.mesh.size - 1}")
    return int(match[1])


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{where}: {text!r:.40} is not a number") from None


def _runs_text(plan: Plan, planned: SimulatedStep, changed: SimulatedStep) -> Iterator[str]:
    """Step and bubble as planned and as changed, then every stage over time."""
    more = changed.step_seconds / planned.step_seconds - 1
    count = micro_batches(plan.micro_batches)
    yield f"{plan.strategy_text}, {count}, {schedule(plan)}, on {plan.cluster}"
    yield ""
    yield f"{'':<22}{'as planned':>12}{'changed':>12}"
    for name, before, after in (
        ("step", planned.step_seconds, changed.step_seconds),
        ("pipeline", planned.timeline.makespan_seconds, changed.timeline.makespan_seconds),
        ("synchronisation", max(planned.sync_seconds), max(changed.sync_seconds)),
    ):
        last = f"{more:>+10.1%}" if name == "step" else ""
        yield f"{name:<22}{seconds(before):>12}{seconds(after):>12}{last}"
    before, after = planned.most_exposed, changed.most_exposed
    yield f"{'communication':<22}{seconds(before.seconds):>12}{seconds(after.seconds):>12}"
    yield (
        f"{'  beside nothing':<22}{seconds(before.exposed_seconds):>12}"
        f"{seconds(after.exposed_seconds):>12}"
    )
    yield f"{'bubble':<22}{planned.timeline.bubble:>12.1%}{changed.timeline.bubble:>12.1%}"
    for stage, (before, after) in enumerate(
        zip(planned.timeline.bubbles, changed.timeline.bubbles, strict=True)
    ):
        yield f"{f'  stage {stage}':<22}{before:>12.1%}{after:>12.1%}"
    yield ""
    yield f"the pipeline, a column is {seconds(changed.timeline.makespan_seconds / WIDTH)}"
    yield from _timeline_rows(changed.timeline)


def _timeline_rows(timeline: Timeline) -> Iterator[str]:
    """A row per stage: F forward, B backward, a point where it waits."""
    rows: list[list[ScheduleEvent]] = [[] for _ in range(timeline.stages)]
    for event in timeline.events:
        rows[event.stage].append(event)
    for stage, events in enumerate(rows[:MOST_ROWS]):
        yield f"stage {stage:<4}{_drawn(events, timeline.makespan_seconds)}"
    if len(rows) > MOST_ROWS:
        yield f"… {len(rows) - MOST_ROWS} more stages"


def _drawn(events: Sequence[ScheduleEvent], makespan_seconds: float) -> str:
    """A mark per column for what a stage does at its middle; `events` in order of time."""
    marks, at = "", 0
    for column in range(WIDTH):
        now = (column + 0.5) * makespan_seconds / WIDTH
        while at < len(events) and events[at].end_seconds <= now:
            at += 1
        marks += events[at].kind if at < len(events) and events[at].start_seconds <= now else "."
    return marks


def _runs_json(plan: Plan, planned: SimulatedStep, changed: SimulatedStep) -> dict[str, Any]:
    line = changed.timeline
    return {
        "step_time_s": changed.step_seconds,
        "planned_step_time_s": planned.step_seconds,
        "bubble": line.bubble,
        "planned_bubble": planned.timeline.bubble,
        "pipeline_time_s": line.makespan_seconds,
        "stages": [
            {
                "devices": [plan.ranks_of(s)[0], plan.ranks_of(s)[-1]],
                "busy_s": busy,
                "bubble": bubble,
                "planned_bubble": before,
                "sync_s": sync,
                "communication_s": sent.seconds,
                "exposed_communication_s": sent.exposed_seconds,
            }
            for s, (busy, bubble, before, sync, sent) in enumerate(
                zip(
                    line.busy_seconds,
                    line.bubbles,
                    planned.timeline.bubbles,
                    changed.sync_seconds,
                    changed.communication,
                    strict=True,
                )
            )
        ],
        "events": [msgspec.to_builtins(event) for event in line.events],
    }
