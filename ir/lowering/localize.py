"""SPMD partitioning: from a function on global tensors to the per-device function under a sharding.

Walks the joint graph once. Where an operator needs an operand in another layout, the collectives
between the two layouts are inserted as operators `comm.*`; everything else stays a plain operator on
local shards, with its shape literals rebuilt from the local sizes of its loops. The result is a
`Function` again: it is what the cost model prices and what codegen prints.

The mesh may begin with an axis `micro` (micro-batches) and end with an axis `split` (chunks of one
micro-batch): both are splits in time. Data can be sharded along them and sums may stay partial, but
nothing can be gathered or reduced over them, which the planner must avoid.
"""

from __future__ import annotations

from math import prod

from msgspec.structs import replace

from ..analysis.axes import OpAxes, OpStrategy
from ..analysis.bound_sharding import AtOnce, BoundSharding
from ..model.layout import (
    REPLICATE,
    Factors,
    Layout,
    ReshardStep,
    Shard,
    UnreachableLayout,
    local_type,
    reshard_steps,
    shard_position,
)
from ..model.loops import Dims, Loops, shard_aware_name
from ..model.mesh import TIME_AXES
from ..model.model import Argument, Function, Input, Op, Output, Ref, map_refs
from ..model.tensor import TensorType
from ..passes import Pass
from ..plan.sharding import LoopFactor
from .products.slices import in_slices

VIEWS = frozenset({"aten.view.default", "aten._unsafe_view.default"})
LocalCopy = tuple[Layout, int, bool]  # layout, local value, produced in backward
FactorAxes = dict[LoopFactor, tuple[int, ...]]  # the mesh axes that split it


class Localize(Pass[BoundSharding, Function], frozen=True):
    """Make the per-device function of a sharding."""

    name = "localize"

    def apply(self, value: BoundSharding) -> Function:
        return localize(value)


def localize(bound: BoundSharding) -> Function:
    """The per-device function; raises UnreachableLayout where no collective yields a needed layout."""
    return in_slices(_Localizer(bound).run(), bound.mesh)


class _Localizer:
    def __init__(self, bound: BoundSharding) -> None:
        self.function, self.axes, self.mesh = bound.function, bound.axes, bound.mesh
        self.strategies, self.boundary = bound.strategies, bound.boundary
        self.at_once = bound.at_once or AtOnce(1, frozenset())
        self.types: list[TensorType] = []
        self.ops: list[Op] = []
        # global value -> its local copies, the original one first
        self.copies: dict[int, list[LocalCopy]] = {}
        self.backward = False
        self.consumer = "a result"  # what the value at hand is fetched for

    def run(self) -> Function:
        function, boundary = self.function, self.boundary
        sources = [
            (i.value, layout) for i, layout in zip(function.inputs, boundary.inputs, strict=True)
        ]
        sources += [
            (o.tangent, layout)
            for o, layout in zip(function.outputs, boundary.tangents, strict=True)
            if o.tangent is not None and layout is not None
        ]
        local = {value: self.add(value, layout) for value, layout in sources}
        self.walk(range(function.forward))
        results = list[int]()
        for o, layout in zip(function.outputs, boundary.outputs, strict=True):
            made_by = next((op for op in function.forward_ops if o.value in op.results), None)
            self.consumer = "a result" if made_by is None else f"the result of {made_by.place()}"
            results.append(self.fetch(o.value, layout))
        forward, self.backward = len(self.ops), True
        self.walk(range(function.forward, len(function.ops)))
        inputs: list[Input] = []
        self.consumer = "a gradient"
        for item, layout in zip(function.inputs, boundary.gradients, strict=True):
            gradient = None
            if item.gradient is not None and layout is not None:
                gradient = self.fetch(item.gradient, layout)
            inputs.append(Input(local[item.value], item.kind, item.name, gradient))
        outputs = tuple(
            Output(value, None if o.tangent is None else local[o.tangent])
            for o, value in zip(function.outputs, results, strict=True)
        )
        return Function(
            function.name, tuple(self.types), tuple(inputs), outputs, tuple(self.ops), forward
        )

    def walk(self, numbers: range) -> None:
        for number in numbers:
            self.step(self.function.ops[number], self.axes.ops[number], self.strategies[number])

    def step(self, op: Op, known: OpAxes, options: tuple[OpStrategy, ...]) -> None:
        """Emit one operator on local shards, after the reshardings of its operands."""
        self.consumer = op.place()
        locals_ = [
            self.fetch(value, tuple(option.inputs[i] for option in options))
            for i, value in enumerate(op.operands())
        ]
        queue = iter(locals_)
        args = tuple(map_refs(a, lambda _: Ref(next(queue))) for a in op.args)
        kwargs = {k: map_refs(a, lambda _: Ref(next(queue))) for k, a in op.kwargs.items()}
        # A shard need not be contiguous where the global tensor was: reshape copies only then.
        target = "aten.reshape.default" if op.target in VIEWS else op.target
        local = Op(target, args, kwargs, (), op.scope)
        if known.declared is not None:
            split_axes = self.split_axes(options)
            local = replace(local, args=self.rebuild(args, known, split_axes))
            local = self.shard_aware(local, known, known.declared, options, split_axes)
        shards = prod(axis.size for axis, o in zip(self.mesh.axes, options, strict=True) if o.mean)
        results: list[int] = []
        for i, value in enumerate(op.results):
            layout: Layout = tuple(option.outputs[i] for option in options)
            results.append(self.add(value, layout) if value >= 0 else -1)
        self.ops.append(replace(local, results=tuple(results)))
        if shards > 1:
            self.average(op, results, shards)

    def average(self, op: Op, results: list[int], shards: int) -> None:
        """Divide the mean over a shard by the number of shards: a partial sum of the global mean."""
        for value, local in zip(op.results, results, strict=True):
            if local < 0:
                continue
            scaled = self.new(self.types[local])
            self.ops.append(Op("aten.div.Scalar", (Ref(local), shards), {}, (scaled,), op.scope))
            layout, _, backward = self.copies[value][0]
            self.copies[value][0] = (layout, scaled, backward)

    def split_axes(self, options: tuple[OpStrategy, ...]) -> FactorAxes:
        """Mesh axes that split each (loop, factor index), outermost first."""
        split_axes: FactorAxes = {}
        for axis, option in enumerate(options):
            if self.mesh.axes[axis].size > 1:
                for factor in option.splits:
                    split_axes[factor] = (*split_axes.get(factor, ()), axis)
        return split_axes

    def rebuild(
        self, args: tuple[Argument, ...], known: OpAxes, split_axes: FactorAxes
    ) -> tuple[Argument, ...]:
        """Literal shapes of dims, with the loops' local sizes."""
        assert known.declared is not None
        changed = list(args)
        for position, dims in known.declared.shapes:
            sizes = tuple(self.extent(known, dim, split_axes) for dim in dims)
            changed[position] = sizes if isinstance(args[position], tuple) else prod(sizes)
        return tuple(changed)

    def extent(self, known: OpAxes, dim: tuple[str, ...], split_axes: FactorAxes) -> int:
        """Local size of a dim of these loops."""
        size = 1
        for name in dim:
            for index, factor in enumerate(known.loop_factors[name]):
                axes = split_axes.get(LoopFactor(name, index), ())
                size *= factor // prod(self.mesh.axes[a].size for a in axes)
        return size

    def shard_aware(
        self,
        op: Op,
        known: OpAxes,
        declared: Loops,
        options: tuple[OpStrategy, ...],
        split_axes: FactorAxes,
    ) -> Op:
        """The `comm.*` variant that knows its shard offsets and the axes it reduces over, if needed."""
        split = {loop for loop, _ in split_axes}
        over = tuple(
            axis.name
            for axis, option in zip(self.mesh.axes, options, strict=True)
            if axis.size > 1 and (option.joint or option.partner is not None)
        )
        for name in (n for n in over if n in TIME_AXES):
            raise UnreachableLayout(
                f"{self.function.name}: {op.target} would join {TIME_AXES[name]}"
            )
        offsets = [
            (p, dims) for p, dims in declared.shard_offsets if split & {n for d in dims for n in d}
        ]
        if not offsets and not over:
            return op
        args = list(op.args)
        for position, dims in offsets:
            args[position : position + 1] = [self.offsets(known, dims, split_axes)]
        kwargs = {**op.kwargs, "over": over} if over else op.kwargs
        return Op(shard_aware_name(op.target), tuple(args), kwargs, (), op.scope)

    def offsets(self, known: OpAxes, dims: Dims, split_axes: FactorAxes) -> tuple[Argument, ...]:
        """Factors of these dims, outermost first: (local size, stride in the global dim, axes)."""
        factors: list[Argument] = []
        stride, outermost = 1, self.batch_factor(known, dims)
        for name in reversed([name for dim in dims for name in dim]):
            for index in reversed(range(len(known.loop_factors[name]))):
                size, axes = (
                    known.loop_factors[name][index],
                    split_axes.get(LoopFactor(name, index), ()),
                )
                degree = prod(self.mesh.axes[a].size for a in axes)
                names = tuple(self.mesh.axes[a].name for a in axes)
                times = self.at_once.micro_batches if axes and (name, index) == outermost else 1
                factors.insert(0, (size // degree // times, stride, names))
                if times > 1:
                    factors.insert(0, (times, stride * (size // times), ()))
                stride *= size
        return tuple(factors)

    def batch_factor(self, known: OpAxes, dims: Dims) -> tuple[str, int] | None:
        """The first (loop, factor index) of some dims that walks the batch."""
        walking = {
            (o.loop, o.factor_index)
            for o in known.options
            if o.loop and o.factor_id in self.at_once.batch
        }
        factors = ((n, i) for dim in dims for n in dim for i in range(len(known.loop_factors[n])))
        return next((factor for factor in factors if factor in walking), None)

    def new(self, type_: TensorType) -> int:
        self.types.append(type_)
        return len(self.types) - 1

    def normalized(self, layout: Layout) -> Layout:
        """The layout with `Replicate` on axes of size 1, where all placements are the same."""
        pairs = zip(layout, self.mesh.axes, strict=True)
        return tuple(REPLICATE if axis.size == 1 else state for state, axis in pairs)

    def add(self, value: int, layout: Layout) -> int:
        """Add a local value for `value` in this layout."""
        layout = self.normalized(layout)
        local = self.new(self.local_type(value, layout))
        self.copies.setdefault(value, []).insert(0, (layout, local, self.backward))
        return local

    def local_type(self, value: int, layout: Layout) -> TensorType:
        return local_type(self.function.types[value], self.axes.factors[value], layout, self.mesh)

    def fetch(self, value: int, layout: Layout) -> int:
        """The local value of `value` in a layout, resharded from an existing copy if needed."""
        layout = self.normalized(layout)
        copies = self.usable(value)
        for existing, local, _ in copies:
            if existing == layout:
                return local
        routes = [(reshard_steps(source, layout), local) for source, local, _ in copies]
        route, local = min(routes, key=lambda r: sum(s.kind not in ("cut", "share") for s in r[0]))
        for step in route:
            local = self.collective(local, value, self.axes.factors[value], step)
        self.copies[value].append((layout, local, self.backward))
        return local

    def usable(self, value: int) -> list[LocalCopy]:
        """Copies that may be read. Backward reads no copy of forward that is larger than the original:
        gathering again costs a collective, keeping the gathered copy costs memory until then."""
        copies = self.copies[value]
        if not self.backward:
            return copies
        original = self.types[copies[0][1]].elements
        return [c for c in copies if c[2] or self.types[c[1]].elements <= original]

    def collective(self, local: int, value: int, factors: Factors, step: ReshardStep) -> int:
        axis = self.mesh.axes[step.axis]
        if axis.name in TIME_AXES and step.kind not in ("cut", "share"):
            raise UnreachableLayout(
                f"{self.function.name}: {self.consumer} would need {step.kind} over "
                f"{TIME_AXES[axis.name]}"
            )
        result = self.new(local_type(self.function.types[value], factors, step.after, self.mesh))
        args: tuple[Argument, ...] = (Ref(local), axis.name)
        kwargs: dict[str, Argument] = {}
        if isinstance(step.source, tuple):
            args += self.shard_position(value, factors, step.before, step.source)
        if isinstance(step.target, tuple):
            args += self.shard_position(value, factors, step.after, step.target)
        self.ops.append(Op(f"comm.{step.kind}", args, kwargs, (result,)))
        return result

    def shard_position(
        self, value: int, factors: Factors, layout: Layout, shard: Shard
    ) -> tuple[int, int]:
        """(dim, elements outside the sharded factor), with micro-batches outside where all are at
        once."""
        dim, outer = shard_position(factors, layout, self.mesh, shard)
        times = self.at_once.micro_batches
        if times > 1 and shard == self.at_once.outermost(self.axes.factor_ids[value]):
            outer *= times
        return dim, outer
