"""Lowering: every (function, sharding, memory action) of a plan once, as per-device halves."""

from __future__ import annotations

from itertools import chain, count

import msgspec

from ..ir.analysis.bound_sharding import AtOnce, BoundSharding
from ..ir.analysis.dataflow import Dataflow
from ..ir.analysis.row_gradients import has_row_gradient
from ..ir.compression.registry import COMPRESSED_OPTIMIZER_ROLE, COMPRESSED_OPTIMIZERS
from ..ir.errors import MismatchError
from ..ir.lowering.chunk import bind_layers
from ..ir.lowering.fit import verify_fit
from ..ir.lowering.forward_backward import ForwardBackward
from ..ir.lowering.fused_saves import saved_beside_fusion
from ..ir.lowering.localize import Localize
from ..ir.lowering.overlap import STARTED, Overlap
from ..ir.lowering.products.fuse_bias import fuse_bias
from ..ir.lowering.split_backward import SplitBackward
from ..ir.model.model import BackwardParts, Function, GraphHalves, LocalLists, Model
from ..ir.passes import Observer, run
from ..ir.plan.memory_action import MemoryAction
from ..ir.plan.plan import Layers, Plan
from ..ir.plan.program import Kernels
from ..ir.plan.schedules.registry import splits_backward
from ..ir.plan.sharding import Sharding
from ..ir.plan.strategy import ROLES
from .python_source import identifier


class LoweredFunction(msgspec.Struct, frozen=True):
    """One generated module: a per-device function, its forward and backward graphs, and the layers
    that use it. `bound`: how it was sharded; of a chunked function, the sharding of one chunk.
    `parts`: of its backward, where the schedule runs them apart and it is not chunked."""

    name: str
    local: Function
    halves: GraphHalves
    memory: MemoryAction
    number: int  # of the sharding in the plan
    sharding: Sharding
    layers: tuple[Layers, ...]
    function: Function
    bound: BoundSharding
    parts: BackwardParts | None = None

    @property
    def chunked(self) -> bool:
        return self.memory.chunked


def lower(
    plan: Plan,
    model: Model,
    dataflow: Dataflow,
    overlap: Overlap,
    observer: Observer | None = None,
    kernels: Kernels = "aten",
) -> tuple[LoweredFunction, ...]:
    """Lower all functions of a plan, for these kernels; raises MismatchError when the plan is for
    another model."""
    if plan.model_digest != model.fingerprint():
        raise MismatchError(
            f"the plan is for {plan.model} ({plan.model_digest}), this model is {model.name} "
            f"({model.fingerprint()}): plan again, or give the source that the plan was made from"
        )
    if plan.global_batch != model.batch:
        raise MismatchError(
            f"the plan is for a global batch of {plan.global_batch}, the model was traced with "
            f"{model.batch}"
        )
    axes = dataflow.axes
    verify_fit(plan, model, axes)
    uses: dict[tuple[int, MemoryAction], list[Layers]] = {}
    for layers in plan.layers:
        uses.setdefault((layers.sharding, layers.memory), []).append(layers)
    used_names: set[str] = set()
    lowered = []
    for (number, memory), runs in uses.items():
        sharding = plan.shardings[number]
        function = model.function(sharding.function)
        bound = bind_layers(plan, runs[0], function, axes[function.name], observer)
        if runs[0].batch_only:
            at_once = AtOnce(plan.micro_batches, dataflow.batch_factors[function.name])
            bound = msgspec.structs.replace(bound, at_once=at_once)
        saved = runs[0].variant
        saved_values = frozenset(saved) if isinstance(saved, tuple) else frozenset[int]()
        local = fuse_bias(run(Localize(), bound, observer), saved_values)
        _check_rows(function, local, sharding)
        _check_apart(plan, local)
        usual = plan.shardings[next(n for n, _ in uses if _same_function(plan, n, number))].strategy
        suffix = "" if sharding.strategy == usual else identifier(str(sharding.strategy))
        name = _name("_".join(filter(None, (function.name, suffix))), memory, used_names)
        used_names.add(name)
        if kernels == "inductor" and saved == "keep" and not splits_backward(plan.schedule):
            saved = saved_beside_fusion(local)
        halves = run(ForwardBackward(saved), local, observer)
        low = LoweredFunction(
            name, local, halves, memory, number, sharding, tuple(runs), function, bound
        )
        if splits_backward(plan.schedule) and local.differentiable and not low.chunked:
            parts = run(SplitBackward(local), halves, observer)
            low = msgspec.structs.replace(low, parts=parts)
        lowered.append(overlapped(low, plan, overlap, observer))
    return tuple(lowered)


def overlapped(
    low: LoweredFunction, plan: Plan, overlap: Overlap, observer: Observer | None
) -> LoweredFunction:
    """The function with its collectives beside its operators."""
    if not overlap.in_flight_bytes:
        return low
    compressed = {
        c.role
        for c in plan.compression
        if c.subject == "activations" and c.strategy == low.sharding.strategy
    }
    slices = tuple(role for role in ROLES if ROLES[role].slices)
    step = msgspec.structs.replace(overlap, synchronous=tuple(sorted(compressed)), sliced=slices)
    lists = run(step, LocalLists(low.local, low.halves, low.parts), observer)
    return msgspec.structs.replace(
        low, local=lists.function, halves=lists.halves, parts=lists.parts
    )


def _check_rows(function: Function, local: Function, sharding: Sharding) -> None:
    """Raise MismatchError where a collective of whole tensors would sum gradients of rows."""
    for item, mine in zip(function.inputs, local.inputs, strict=True):
        rows = mine.gradient is None or has_row_gradient(local, mine)
        if has_row_gradient(function, item) and not rows:
            raise MismatchError(
                f"{function.name}: the gradient of {item.name} is of the rows that a step reads "
                f"(sparse=True), and would be summed inside the function under {sharding.strategy}: "
                f"pin another strategy for it, or make its embedding without sparse=True"
            )


def _check_apart(plan: Plan, local: Function) -> None:
    """Raise MismatchError where ranks that run apart would need values of each other."""
    known = COMPRESSED_OPTIMIZERS.get(plan.optimizer.name)
    if known is None or not known.meets_some:
        return
    for op in local.ops:
        kind = op.target.removeprefix("comm.")
        if kind in STARTED - {"all_reduce"} and op.args[1] == COMPRESSED_OPTIMIZER_ROLE:
            raise MismatchError(
                f"{op.place()} needs values of other ranks in every step ({kind}), which under "
                f"{plan.optimizer.name} do not wait for each other: plan with another --optimizer"
            )


def _same_function(plan: Plan, one: int, other: int) -> bool:
    return plan.shardings[one].function == plan.shardings[other].function


def _name(function: str, memory: MemoryAction, used_names: set[str]) -> str:
    """A module's name: the function's (and its strategy's, where that is not the first one's), then
    with its memory action, then with a number."""
    names = chain(
        (function, identifier(f"{function}_{memory}")), (f"{function}_{n}" for n in count(2))
    )
    return next(name for name in names if name not in used_names)
