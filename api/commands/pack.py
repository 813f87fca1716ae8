"""`plait pack`: an address for every buffer of a CSV file, or of a plan's stages, in an arena."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...ir.errors import InfeasibleError, UsageError
from ...ir.plan.allocation import Buffer, Packing
from ...ir.text.units import gib, parse_bytes
from .arguments import add_json, add_plan_source
from .output import TIME_LIMIT, Update, best_so_far, print_json, progress

if TYPE_CHECKING:
    from ...ir.model.model import Model
    from ...ir.plan.plan import Plan

SECONDS, PLAN_SECONDS = 60.0, 10.0  # time limits where none is given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "buffers", metavar="FILE", help="CSV with columns id, lower, upper, size; or plan.json"
    )
    parser.add_argument(
        "--capacity", help="bytes of the arena, as in 1048576 or 72GiB; a plan needs none"
    )
    parser.add_argument(
        "--time-limit", type=float, metavar="SECONDS", help="default: 60, of a plan 10"
    )
    parser.add_argument("--minimise", action="store_true", help="go on to the least peak")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="buffers with offsets"
    )
    add_plan_source(parser, help="the plan's model; default: the file that the plan names")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit codes: 3 where nothing fits the capacity, 4 where time was up before anything did."""
    of_plan = arguments.buffers.endswith(".json")
    limit_seconds = arguments.time_limit
    if limit_seconds is None:
        limit_seconds = PLAN_SECONDS if of_plan else SECONDS
    if not limit_seconds >= 0:
        raise UsageError(f"--time-limit {limit_seconds} is not a number of seconds")
    capacity = None if arguments.capacity is None else parse_bytes(arguments.capacity)
    if of_plan:
        return _pack_plan(arguments, capacity, limit_seconds)
    if capacity is None:
        raise UsageError("pack: --capacity is missing: the bytes of the arena")
    return _pack_file(arguments, capacity, limit_seconds)


def _pack_file(arguments: argparse.Namespace, capacity: int, limit_seconds: float) -> int:
    from ...planner.allocation.arena import pack
    from ..formats.buffer_files import read_buffers, write_offsets

    buffers = read_buffers(Path(arguments.buffers))
    start = time.perf_counter()
    with progress("packing") as update:
        packing = pack(
            buffers,
            capacity,
            time_limit_seconds=limit_seconds,
            minimise=arguments.minimise,
            watch=best_so_far(update, gib),
        )
    seconds = time.perf_counter() - start
    if packing.status != "infeasible":
        write_offsets(Path(arguments.output), buffers, packing)
    if arguments.json:
        print_json(_packing_json(packing) | {"capacity": capacity, "time_s": seconds})
    else:
        print(f"{arguments.output}: {packing}")
    return _exit_code([packing], capacity)


def _packing_json(packing: Packing) -> dict[str, Any]:
    return {
        "status": packing.status,
        "buffers": len(packing.offsets),
        "peak": packing.peak_bytes,
        "lower_bound": packing.lower_bound_bytes,
        "gap": packing.gap,
    }


def _exit_code(packings: Sequence[Packing], capacity: int | None) -> int:
    """Raises InfeasibleError where buffers cannot fit the capacity."""
    worst = max(packings, key=lambda packing: packing.lower_bound_bytes)
    if capacity is not None and worst.status == "infeasible":
        least = worst.lower_bound_bytes
        raise InfeasibleError(
            f"the buffers need at least {least} bytes, {least - capacity} more "
            f"than the capacity of {capacity}; a capacity of {worst.peak_bytes} is enough"
        )
    return TIME_LIMIT if any(packing.status == "unknown" for packing in packings) else 0


class Arena(NamedTuple):
    """The buffers of a stage with their addresses. `promised_bytes`: what the plan counts for them."""

    stage: int
    buffers: tuple[Buffer, ...]
    packing: Packing
    promised_bytes: int

    def __str__(self) -> str:
        packing = self.packing
        live_bytes = packing.lower_bound_bytes
        ratio = packing.peak_bytes / live_bytes if live_bytes else 1.0
        return (
            f"stage {self.stage}: {len(self.buffers)} buffers, live {gib(live_bytes)}, arena "
            f"{gib(packing.peak_bytes)} ({ratio:.2%}), promised {gib(self.promised_bytes)}"
        )


def _arenas(
    plan: Plan,
    model: Model,
    capacity: int | None,
    limit_seconds: float,
    minimise: bool,
    update: Update,
) -> list[Arena]:
    """Pack every stage's buffers; stages share the time that is left equally."""
    from ...cost_model.explain.memory_terms import working_bytes
    from ...planner.allocation.repeated_layers import pack_repeated
    from ...planner.allocation.stage_buffers import plan_buffers

    arenas: list[Arena] = []
    start = time.perf_counter()
    for number, stage in enumerate(plan_buffers(plan, model)):
        left_seconds = max(0.0, limit_seconds - (time.perf_counter() - start))
        packing = pack_repeated(
            stage.buffers,
            stage.segment_starts,
            capacity,
            minimise=minimise,
            time_limit_seconds=left_seconds / (len(plan.stages) - number),
        )
        arenas.append(Arena(number, stage.buffers, packing, working_bytes(plan, number)))
        update(number + 1, len(plan.stages), f"stage {number} in {gib(packing.peak_bytes)}")
    return arenas


def _pack_plan(arguments: argparse.Namespace, capacity: int | None, limit_seconds: float) -> int:
    from ..formats.buffer_files import COLUMNS, buffer_rows, write_rows
    from ..plans.plan_model import model_of_plan
    from ..plans.plan_object import load_uniform_plan

    plan = load_uniform_plan(Path(arguments.buffers), "pack")
    model = model_of_plan(plan, arguments.model, arguments.batch, arguments.seq)
    start = time.perf_counter()
    with progress("packing") as update:
        arenas = _arenas(plan, model, capacity, limit_seconds, arguments.minimise, update)
    packings = [arena.packing for arena in arenas]
    if all(packing.status != "infeasible" for packing in packings):
        rows = ((a.stage, *row) for a in arenas for row in buffer_rows(a.buffers, a.packing))
        write_rows(Path(arguments.output), ("stage", *COLUMNS, "offset"), rows)
    if arguments.json:
        stages = [
            {"stage": a.stage, **_packing_json(a.packing), "promised": a.promised_bytes}
            for a in arenas
        ]
        seconds = time.perf_counter() - start
        print_json({"stages": stages, "capacity": capacity, "time_s": seconds})
    else:
        print(*arenas, sep="\n")
    return _exit_code(packings, capacity)
