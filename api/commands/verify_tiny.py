"""`plait verify --scale tiny`: the decisions of a plan for many devices, on a few ranks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

from ...ir.errors import MismatchError, UsageError
from ...ir.lowering.cast import in_precision
from ...ir.model import Model
from ...ir.plan.plan import Plan
from ...planner.interop.shrink import Smaller, smaller, uncovered
from ..compilation import Subject, of_plan
from ..plan_object import load_plan
from .common import format_of, load_model

RANKS = 4
PLENTY = 1 << 50  # bytes: a small model fits anywhere, what is asked is whether it is right


class Small(NamedTuple):
    """Where the smaller model comes from, its batch (None: the source's own), and what changed."""

    source: str
    batch: int | None
    seq: int | None
    fields: dict[str, tuple[int, int]]


def tiny(options: argparse.Namespace, scratch: Path) -> Subject:
    """A plan made again in kind: model (of `hf:` sources) and axes small, decisions as they were.

    Raises UsageError for placements and sources that cannot run, MismatchError where plan and source
    do not belong together."""
    plan = plan_of(options)
    given = load_model(options, plan.global_batch)
    if given.fingerprint() != plan.model_digest:
        raise MismatchError(f"{options.source} is not the model of {options.plan} ({plan.model})")
    kind = smaller(plan, options.ranks or RANKS)
    small = small_source(options, kind, scratch)
    asked = argparse.Namespace(source=small.source, batch=small.batch, seq=small.seq)
    model = in_precision(load_model(asked, small.batch), plan.precision)
    made = again(plan, model, kind)
    left = (*uncovered(plan, made), *(["compression"] if plan.compression else []))
    return Subject(
        of_plan(made),
        model,
        small.source,
        small.seq,
        scale_json(plan, made, kind, small, left),
        tuple(notes(plan, made, kind, small, left)),
    )


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan to make smaller, if it and the source can be."""
    if options.source.endswith(".json") and not options.source.startswith("hf:"):
        raise UsageError(
            f"{options.source} has no weights to run: name the hf: source or factory it was traced from"
        )
    if options.ranks is not None and options.ranks < 1:
        raise UsageError(f"--ranks {options.ranks} is not a number of ranks")
    path = Path(options.plan)
    if format_of(path) != "plait/plan":
        raise UsageError(f"{path} is no plan: --scale tiny is for plans")
    return load_plan(path)


def small_source(options: argparse.Namespace, kind: Smaller, scratch: Path) -> Small:
    """A smaller configuration as a file; a factory as it is."""
    if not options.source.startswith("hf:"):
        return Small(options.source, None, None, {})
    from ...ir.capture.source import read_configuration
    from ...ir.capture.tiny_config import changes
    from ...ir.capture.tiny_config import smaller as config_of

    made, seq = config_of(options.source, kind.layers, kind.inner_ways, options.seq)
    file = Path(scratch, "config.json")
    file.write_text(json.dumps(made), encoding="utf-8")
    before = read_configuration(Path(options.source.removeprefix("hf:")))
    fields = {name: (old, new) for name, old, new in changes(before, made)}
    return Small(f"hf:{file}", kind.global_batch, seq, fields)


def again(plan: Plan, model: Model, kind: Smaller) -> Plan:
    """The plan of the smaller model that does in kind what `plan` does, call by call."""
    from ...cost_model.hardware import load_cluster
    from ...planner import PlanOptions
    from ...planner import plan as search

    return search(
        model,
        load_cluster(f"local:{kind.devices}"),
        PlanOptions(
            memory_bytes=PLENTY,
            precision=plan.precision,
            optimizer=plan.optimizer.name,
            memory_actions=("keep",),
            pins=kind.pins([(c.path, c.function) for c in model.calls]),
            micro_batches=gcd(kind.micro_batches, model.batch // kind.batch_ways),
            seed=plan.seed,
            schedule=plan.schedule,
        ),
    )


def notes(
    plan: Plan, made: Plan, kind: Smaller, small: Small, left: tuple[str, ...]
) -> Iterator[str]:
    """What was made smaller, and what the smaller plan leaves out, in words."""
    fields = ", ".join(f"{name} {a} -> {b}" for name, (a, b) in small.fields.items())
    yield (
        f"{plan.cluster.name} {plan.word} -> {made.cluster.name} {made.word}; "
        f"batch {plan.global_batch} -> {made.global_batch}, micro-batches "
        f"{plan.micro_batches} -> {made.micro_batches}" + (f"; {fields}" if fields else "")
    )
    if not small.source.startswith("hf:"):
        yield f"the model of {small.source} stays as it is: only hf: sources can be made smaller"
    if left:
        more = (
            f" (--ranks {kind.enough} has more of its axes)" if kind.enough > kind.devices else ""
        )
        yield f"not covered with {kind.devices} ranks: {', '.join(left)}{more}"


def scale_json(
    plan: Plan, made: Plan, kind: Smaller, small: Small, left: tuple[str, ...]
) -> dict[str, Any]:
    """The same as data: every pair is before, after."""
    return {
        "cluster": [plan.cluster.name, made.cluster.name],
        "ranks": [plan.mesh.size, made.mesh.size],
        "words": [[str(a), str(b)] for a, b in kind.words.items()],
        "memory": [sorted({x.memory for x in p.layers if not x.once}) for p in (plan, made)],
        "global_batch": [plan.global_batch, made.global_batch],
        "micro_batches": [plan.micro_batches, made.micro_batches],
        "fields": {name: list(pair) for name, pair in small.fields.items()},
        "not_covered": list(left),
    }
