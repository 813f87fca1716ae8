"""A plan for many devices scaled down to a few ranks, with its decisions kept, for verification."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

from ..ir.errors import MismatchError, UsageError
from ..ir.lowering.cast import in_precision
from ..ir.model.model import Model
from ..ir.plan.plan import Plan
from ..planner.interop.shrink import ShrunkPlan, shrink, uncovered
from .compilation import VerificationCase, target_of_plan
from .formats import files
from .formats.model_source import ModelSource
from .plans.plan_object import load_uniform_plan

RANKS = 4
AMPLE_BYTES = 1 << 50  # a memory limit that no small model meets: its program is what is tested


class SmallSource(NamedTuple):
    """The source of the smaller model, and the fields of its configuration before and after."""

    source: ModelSource
    fields: dict[str, tuple[int, int]]


class ScaledDown(NamedTuple):
    """A plan and its smaller one, and how the smaller came about."""

    plan: Plan
    small_plan: Plan
    shrink: ShrunkPlan
    source: SmallSource

    @property
    def not_covered(self) -> list[str]:
        """Axes and features of the plan that the smaller one is without."""
        compression = ["compression"] if self.plan.compression else []
        return [*uncovered(self.plan, self.small_plan), *compression]


def scaled_down_case(
    plan_file: Path, source: ModelSource, ranks: int | None, scratch: Path
) -> VerificationCase:
    """A plan's case on at most `ranks` ranks: small axes, and a small model of an `hf:` source, whose
    configuration is written to `scratch`.

    Raises UsageError for placements and sources that cannot run, MismatchError where plan and source
    do not belong together."""
    plan = _plan(plan_file, source, ranks)
    model = source.load_for(plan.global_batch, plan.precision, plan.model_digest)
    if model.fingerprint() != plan.model_digest:
        raise MismatchError(f"{source.source} is not the model of {plan_file} ({plan.model})")
    shrunk = shrink(plan, ranks or RANKS)
    small_source = _small_source(source, shrunk, scratch)
    batch = small_source.source.batch
    small = small_source.source
    model = in_precision(small.load(batch, plan.precision), plan.precision)
    scaled = ScaledDown(plan, _small_plan(plan, model, shrunk), shrunk, small_source)
    return VerificationCase(
        target_of_plan(scaled.small_plan),
        model,
        small_source.source,
        scale_json(scaled),
        tuple(scale_notes(scaled)),
    )


def _plan(path: Path, source: ModelSource, ranks: int | None) -> Plan:
    """The plan to scale down, if it and the source can be."""
    if source.is_file:
        raise UsageError(
            f"{source.source} has no weights to run: name the hf: source or factory it was traced from"
        )
    if ranks is not None and ranks < 1:
        raise UsageError(f"--ranks {ranks} is not a number of ranks")
    if files.format_of(path) != "plait/plan":
        raise UsageError(f"{path} is no plan: --scale tiny is for plans")
    return load_uniform_plan(path, "--scale tiny")


def _small_source(source: ModelSource, shrunk: ShrunkPlan, scratch: Path) -> SmallSource:
    """A smaller configuration as a file; a factory as it is."""
    if not source.source.startswith("hf:"):
        return SmallSource(ModelSource(source.source), {})
    from ..ir.capture.sources.shrink_config import changes
    from ..ir.capture.sources.shrink_config import shrink_source as smaller_config
    from ..ir.capture.sources.source import read_configuration

    config, seq = smaller_config(source.source, shrunk.layers, shrunk.model_degree, source.seq)
    file = Path(scratch, "config.json")
    file.write_text(json.dumps(config), encoding="utf-8")
    before = read_configuration(Path(source.source.removeprefix("hf:")))
    fields = {name: (old, new) for name, old, new in changes(before, config)}
    return SmallSource(ModelSource(f"hf:{file}", shrunk.global_batch, seq), fields)


def _small_plan(plan: Plan, model: Model, shrunk: ShrunkPlan) -> Plan:
    """The plan of the smaller model that decides for every call as `plan` does."""
    from ..cost_model.hardware import load_cluster
    from ..planner import PlanOptions
    from ..planner import plan as search
    from ..planner.question.training import training_of_plan

    return search(
        model,
        load_cluster(f"local:{shrunk.devices}"),
        PlanOptions(
            memory_bytes=AMPLE_BYTES,
            **training_of_plan(plan),
            memory_actions=("keep",),
            pins=shrunk.pins([(c.path, c.function) for c in model.calls]),
            micro_batches=gcd(shrunk.micro_batches, model.batch // shrunk.batch_degree),
            seed=plan.seed,
            schedule=plan.schedule,
        ),
    )


def scale_notes(scaled: ScaledDown) -> Iterator[str]:
    """What was made smaller, and what the smaller plan leaves out, in words."""
    plan, small, shrunk = scaled.plan, scaled.small_plan, scaled.shrink
    fields = ", ".join(f"{name} {a} -> {b}" for name, (a, b) in scaled.source.fields.items())
    yield (
        f"{plan.cluster.name} {plan.strategy_text} -> {small.cluster.name} {small.strategy_text}; "
        f"batch {plan.global_batch} -> {small.global_batch}, micro-batches "
        f"{plan.micro_batches} -> {small.micro_batches}" + (f"; {fields}" if fields else "")
    )
    source = scaled.source.source.source
    if not source.startswith("hf:"):
        yield f"the model of {source} stays as it is: only hf: sources can be made smaller"
    if scaled.not_covered:
        hint = ""
        if shrunk.all_axes_devices > shrunk.devices:
            hint = f" (--ranks {shrunk.all_axes_devices} has more of its axes)"
        yield f"not covered with {shrunk.devices} ranks: {', '.join(scaled.not_covered)}{hint}"


def scale_json(scaled: ScaledDown) -> dict[str, Any]:
    """The same as data; every pair is before, after."""
    plan, small = scaled.plan, scaled.small_plan
    return {
        "cluster": [plan.cluster.name, small.cluster.name],
        "ranks": [plan.mesh.size, small.mesh.size],
        "strategies": [[str(a), str(b)] for a, b in scaled.shrink.strategies.items()],
        "memory": [
            sorted({str(x.memory) for x in p.layers if not x.batch_only}) for p in (plan, small)
        ],
        "global_batch": [plan.global_batch, small.global_batch],
        "micro_batches": [plan.micro_batches, small.micro_batches],
        "fields": {name: list(pair) for name, pair in scaled.source.fields.items()},
        "not_covered": scaled.not_covered,
    }
