"""How an engine's file spreads training: degrees, batch, stages and recomputation, and back to pins.

    torchtitan    dp_shard 8, tp 4, 1F1B        pp=2,zero3=8,tp=4,sp
    megatron      --tensor-model-parallel-size  pp=8,zero1=4,tp=2,sp
    deepspeed     zero stage 2, autoep 4        zero2=4,ep=4

Files count expert ranks among data ranks, strategies beside them.
"""

from __future__ import annotations

from itertools import accumulate, groupby
from math import gcd
from typing import Literal

import msgspec
from msgspec.structs import replace

from ...ir.errors import UsageError
from ...ir.model.model import Model
from ...ir.plan.engines import engine_named
from ...ir.plan.memory_action import KEEP, RECOMPUTE, MemoryAction
from ...ir.plan.plan import Plan
from ...ir.plan.strategy import ROLES, SEQUENCE_FLAG, Strategy
from ..question.pins import Pin, matches
from .layer_span import LayerStack, layer_stack

Recompute = Literal["none", "selective", "full"]
SELECTIVE = MemoryAction(50)  # what engines save selectively: products, not what follows cheaply


class EngineLayout(msgspec.Struct, frozen=True, kw_only=True):
    """What one file of an engine says. `shards` ranks share states under a zero stage, `replicas` such
    groups repeat them; `experts` of both together are expert ranks. `split`: layers of every model
    chunk in the model's order, empty where the engine divides them evenly. `recompute_layers`: of
    every model chunk, the first so many; 0 for all. `expert_tensor`: tensor ranks that split one
    expert, all of them where it is None; the others hold experts as well. `schedule`: where it is not
    1f1b, or interleaved with several model chunks. `unpriced`: what else the file says of memory and
    time, which no plan does. None: the file leaves it open.
    """

    engine: str
    pipeline: int = 1
    model_chunks: int = 1
    schedule: str | None = None
    split: tuple[int, ...] = ()
    replicas: int = 1
    shards: int = 1
    zero_stage: int = 0
    experts: int = 1
    context: int = 1
    ulysses: int = 1
    tensor: int = 1
    expert_tensor: int | None = None
    sequence_parallel: bool = False
    recompute: Recompute = "none"
    recompute_layers: int = 0
    global_batch: int | None = None
    micro_batch: int | None = None
    precision: str | None = None
    optimizer_on_host: bool = False
    unpriced: tuple[str, ...] = ()

    @property
    def pipeline_schedule(self) -> str:
        """The schedule of the stages."""
        return self.schedule or default_schedule(self.model_chunks)

    @property
    def data(self) -> int:
        """Ranks that see different samples."""
        return self.replicas * self.shards

    @property
    def devices(self) -> int:
        return self.pipeline * self.data * self.context * self.ulysses * self.tensor

    @property
    def micro_batches(self) -> int | None:
        """Micro-batches of a step; raises UsageError where the batch is no multiple of them."""
        if self.global_batch is None or self.micro_batch is None:
            return None
        count, rest = divmod(self.global_batch, self.data * self.micro_batch)
        if rest or count < 1:
            raise UsageError(
                f"{self.engine}: a global batch of {self.global_batch} is no multiple of {self.data} "
                f"data ranks times micro-batches of {self.micro_batch}"
            )
        return count

    @property
    def strategy(self) -> Strategy:
        """The strategy of all layers; expert ranks are taken from tensor ranks that split no expert,
        from the shards, from replicas, in this order."""
        experts, uneven = divmod(self.experts * (self.expert_tensor or self.tensor), self.tensor)
        from_shards = gcd(experts, self.shards)
        from_replicas, rest = divmod(experts, from_shards)
        if uneven or rest or self.replicas % from_replicas:
            raise UsageError(
                f"{self.engine}: {self.experts} expert ranks over {self.data} data ranks also lie over "
                "ranks of other axes, which no strategy says"
            )
        axes = (
            ("pp", self.pipeline),
            ("dp", self.replicas // from_replicas),
            (f"zero{self.zero_stage}" if self.zero_stage else "dp", self.shards // from_shards),
            ("ep", experts),
            ("cp", self.context),
            ("sp", self.ulysses),
            ("tp", self.tensor),
        )
        flag = ((SEQUENCE_FLAG, 1),) if self.sequence_parallel and self.tensor > 1 else ()
        return Strategy((*(axis for axis in axes if axis[1] > 1), *flag))

    @property
    def memory(self) -> MemoryAction:
        """The memory action of layers that recompute."""
        return {"none": KEEP, "selective": SELECTIVE, "full": RECOMPUTE}[self.recompute]


def default_schedule(model_chunks: int) -> str:
    """The schedule of stages with so many model chunks where nobody says one."""
    return "1f1b" if model_chunks == 1 else "interleaved"


def told_schedule(schedule: str, model_chunks: int) -> str | None:
    """A schedule where it has to be said: None for that of stages with so many model chunks anyway."""
    return None if schedule == default_schedule(model_chunks) else schedule


def check_layout(layout: EngineLayout) -> None:
    """Raise UsageError where a layout's expert ranks or its batch do not divide."""
    _ = layout.strategy, layout.micro_batches


def layout_of_plan(plan: Plan, engine: str) -> EngineLayout:
    """The engine's form of a plan: the strategy of most layers, and recomputation that needs no more
    memory where the engine cannot tell layers apart.

    Raises UsageError for a strategy that the engine cannot run; `differences` says what else is lost.
    """
    stack = stack_of_plan(plan, engine)
    runs = [plan.layers_of(call) for call in stack.firsts]
    strategies = [plan.strategy_of(layers) for layers in runs]
    strategy = max(dict.fromkeys(strategies), key=strategies.count)
    engine_named(engine).check(strategy)
    zero = next((r for r, n in strategy.axes if n > 1 and ROLES[r].shards), "")
    experts, shards = strategy.size("ep"), strategy.size(zero) if zero else 1
    replicas = strategy.size("dp")
    layout = EngineLayout(
        engine=engine,
        pipeline=strategy.stages,
        model_chunks=plan.chunks_per_stage,
        schedule=_schedule(plan, engine),
        split=_split(plan, stack) if strategy.stages > 1 else (),
        replicas=replicas if zero else replicas * experts,
        shards=shards * experts if zero else 1,
        zero_stage=int(zero.removeprefix("zero") or 0),
        experts=experts,
        context=strategy.size("cp"),
        ulysses=strategy.size("sp"),
        tensor=strategy.size("tp"),
        sequence_parallel=strategy.sequence_parallel,
        global_batch=plan.global_batch,
        micro_batch=plan.global_batch // (strategy.batch_degree() * plan.micro_batches),
        precision=plan.precision,
        optimizer_on_host=plan.optimizer.on_host and engine_named(engine).host_steps,
    )
    return _with_recompute(layout, [layers.memory for layers in runs])


def _schedule(plan: Plan, engine: str) -> str | None:
    """A plan's schedule where the engine has it and has to be told."""
    runs = len(plan.stages) > 1 and plan.schedule in engine_named(engine).schedules
    return told_schedule(plan.schedule, plan.chunks_per_stage) if runs else None


def stack_of_plan(plan: Plan, engine: str) -> LayerStack:
    """The numbered layers of a plan's model."""
    once = {
        i for layers in plan.layers if layers.batch_only for i in range(layers.first, layers.last)
    }
    return layer_stack(["" if i in once else p for i, p in enumerate(plan.calls)], f"{engine}'s")


def stack_of_model(model: Model, engine: str) -> LayerStack:
    """The numbered layers of a model."""
    once = model.batch_only_calls()
    paths = ["" if i in once else c.path for i, c in enumerate(model.calls)]
    return layer_stack(paths, f"{engine}'s")


def _split(plan: Plan, stack: LayerStack) -> tuple[int, ...]:
    """Layers of every model chunk."""
    return tuple(
        sum(first <= call < last for call in stack.firsts) for first, last in plan.model_chunks
    )


def _with_recompute(layout: EngineLayout, actions: list[MemoryAction]) -> EngineLayout:
    """The layout that recomputes at least as much as the layers do, and saves at least as little."""
    changed = [action for action in actions if action != KEEP]
    if not changed:
        return layout
    partial = all(a.partial and not a.on_host and not a.chunked for a in changed)
    if partial and engine_named(layout.engine).allows_action(SELECTIVE):
        return replace(layout, recompute="selective")
    counts = [len(changed)]
    if layout.split:
        ends = list(accumulate(layout.split))
        starts = [0, *ends[:-1]]
        spans = zip(starts, ends, strict=True)
        counts = [sum(a != KEEP for a in actions[first:last]) for first, last in spans]
    whole = max(counts) == max(layout.split, default=len(actions))
    return replace(layout, recompute="full", recompute_layers=0 if whole else max(counts))


def pins_of_layout(layout: EngineLayout, model: Model) -> tuple[Pin, ...]:
    """Pins for every call of a model: one strategy, memory actions layer by layer."""
    stack = stack_of_model(model, layout.engine)
    pins, paths = [Pin("*", layout.strategy, KEEP)], [call.path for call in model.calls]
    actions = layer_actions(layout, stack.layers)
    for action, run in groupby(range(stack.layers), key=actions.__getitem__):
        numbers = list(run)
        glob = f"{stack.prefix}.[{numbers[0]}-{numbers[-1]}]"
        globs = (
            pattern for pattern in (glob, f"{glob}.*") if any(matches(pattern, (p,)) for p in paths)
        )
        pins += [Pin(pattern, layout.strategy, action) for pattern in globs]
    return tuple(pins)


def layer_actions(layout: EngineLayout, layers: int) -> list[MemoryAction]:
    """The memory action of every one of `layers`; raises UsageError where the file has others."""
    split = layout.split or even_split(layers, layout.pipeline * layout.model_chunks)
    if sum(split) != layers:
        raise UsageError(
            f"{layout.engine}'s stages have {sum(split)} layers, the model has {layers}"
        )
    first = layout.recompute_layers or layers
    return [layout.memory if i < first else KEEP for count in split for i in range(count)]


def even_split(layers: int, chunks: int) -> tuple[int, ...]:
    """Layers of every model chunk where an engine divides them evenly."""
    ends = [layers * (i + 1) // chunks for i in range(chunks)]
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def bounds_of_layout(layout: EngineLayout, model: Model) -> tuple[int, ...] | None:
    """First calls of the model chunks and the number of calls; None where the file leaves them open."""
    if not layout.split:
        return None
    stack = stack_of_model(model, layout.engine)
    if sum(layout.split) != stack.layers:
        raise UsageError(
            f"{layout.engine}'s stages have {sum(layout.split)} layers, the model has {stack.layers}"
        )
    starts = list(accumulate(layout.split[:-1]))
    firsts = (*stack.firsts, stack.end)
    return 0, *(firsts[start] for start in starts), len(model.calls)
