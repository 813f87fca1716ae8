"""Split an operator along one loop as its declaration says, run the pieces, put them together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plait.ir.analysis.axes import Axes, OpStrategy, analyse
from plait.ir.analysis.bound_sharding import BoundSharding
from plait.ir.capture.literals import decode, encode, tensor_type
from plait.ir.capture.resolve import resolve
from plait.ir.lowering.localize import localize
from plait.ir.model.layout import Factors
from plait.ir.model.loops import Loops, Site, declaration
from plait.ir.model.mesh import Axis, Mesh
from plait.ir.model.model import Argument, Function, Input, Op, Output, Ref
from plait.ir.plan.sharding import Boundary
from plait.tests.ir.lowering.lockstep import run, shard, unshard


@dataclass
class Sample:
    """An operator with concrete arguments; `unused` results are dropped from the site."""

    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    unused: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.target}{tuple(_short(a) for a in self.args)}{self.kwargs or ''}"


def _short(value: Any) -> Any:
    if isinstance(value, Tensor):
        return list(value.shape)
    return [_short(v) for v in value] if isinstance(value, (list, tuple)) else value


@dataclass
class Case:
    """A sample in IR terms: its operator, its tensors by number, what it gives, its declaration."""

    op: Op
    tensors: list[Tensor]
    results: list[Tensor | None]
    declared: Loops | None

    def run(self, tensors: list[Tensor], args: tuple[Argument, ...]) -> list[Tensor | None]:
        queue = iter(tensors)
        given = [decode(a, lambda _: next(queue)) for a in args]
        kwargs = {n: decode(a, lambda _: next(queue)) for n, a in self.op.kwargs.items()}
        made = resolve(self.op.target)(*given, **kwargs)
        results = made if isinstance(made, (tuple, list)) else [made]
        return [r if r is None else r.to_dense() for r in results]


def case(sample: Sample) -> Case:
    tensors: list[Tensor] = []

    def number(value: Any) -> Ref | None:
        if not isinstance(value, Tensor):
            return None
        tensors.append(value)
        return Ref(len(tensors) - 1)

    args = tuple(encode(a, number) for a in sample.args)
    kwargs = {n: encode(a, number) for n, a in sample.kwargs.items()}
    bare = Case(Op(sample.target, args, kwargs, ()), tensors, [], None)
    whole = bare.run(tensors, args)
    for unused in sample.unused:
        whole[unused] = None
    values = tuple(-1 if m is None else len(tensors) + i for i, m in enumerate(whole))
    op = Op(sample.target, args, kwargs, values)
    types = tuple(None if m is None else tensor_type(m) for m in whole)
    site = Site(op, tuple(tensor_type(tensors[v]) for v in op.operands()), types)
    return Case(op, tensors, whole, declaration(site))


def alone(case: Case) -> Function:
    """A function of this operator only."""
    types = [*map(tensor_type, case.tensors)]
    types += [tensor_type(r) if r is not None else types[0] for r in case.results]
    inputs = tuple(Input(v, "activation", "", None) for v in range(len(case.tensors)))
    outputs = tuple(Output(v) for v in case.op.results if v >= 0)
    return Function("alone", tuple(types), inputs, outputs, (case.op,), 1)


def parted(case: Case, loop: str, degree: int) -> dict[int, Factors]:
    """Factors in which one loop is told apart into an outer and an inner part of `ways`."""
    declared, factors = case.declared, {}
    assert declared is not None
    values = (*case.op.operands(), *case.op.results)
    for value, dims in zip(values, (*declared.inputs, *declared.outputs), strict=True):
        sizes = []
        for dim in dims:
            parts: list[int] = []
            for name in dim:
                size = declared.size(name)
                parts += [size // degree, degree] if name == loop else [size]
            sizes.append(tuple(p for p in parts if p > 1))
        factors[value] = tuple(sizes)
    return factors


def split_over(case: Case, option: OpStrategy, axes: Axes, degree: int) -> list[Tensor | None]:
    """The results put together from the shards of an operator split so, as the local form runs."""
    function, mesh = alone(case), Mesh((Axis("a", degree),))
    outputs = [s for s, v in zip(option.outputs, case.op.results, strict=True) if v >= 0]
    boundary = Boundary(
        tuple((s,) for s in option.inputs),
        (None,) * len(option.inputs),
        tuple((s,) for s in outputs),
        (None,) * len(outputs),
    )
    local = localize(BoundSharding(function, axes, mesh, ((option,),), boundary))
    shards = {
        mine.value: shard(tensor, axes.factors[v], layout, mesh)
        for v, (mine, tensor, layout) in enumerate(
            zip(local.inputs, case.tensors, boundary.inputs, strict=True)
        )
    }
    results = run(local, shards, mesh)
    joined: dict[int, Tensor] = {}
    for mine, whole, layout in zip(local.outputs, function.outputs, boundary.outputs, strict=True):
        kind = function.types[whole.value].dtype
        assert layout != ("P",) or kind != "bool", "truth values do not add up"
        joined[whole.value] = unshard(results[mine.value], axes.factors[whole.value], layout, mesh)
    return [joined.get(v) for v in case.op.results]


def options(case: Case, loop: str, degree: int, inner: bool) -> list[tuple[OpStrategy, Axes]]:
    """The options that split this loop: in blocks, or its inner part."""
    size = case.declared.size(loop) if case.declared else 1
    known = parted(case, loop, degree) if inner and size > degree else {}
    axes = analyse(alone(case), known)
    part = 1 if known else 0
    return [(o, axes) for o in axes.ops[0].options if o.splits == ((loop, part),)]


def summed(case: Case, group: tuple[int, ...], seed: int) -> list[Tensor | None]:
    """The results as sums over two halves of the operands in `group`."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for i in group:
        tensor = case.tensors[i]
        # whole numbers, which even bfloat16 takes apart exactly
        first = (2 * torch.randn(tensor.shape, generator=generator)).round().to(tensor.dtype)
        parts[i] = (first, tensor - first)
    totals = []
    for half in (0, 1):
        tensors = [parts[i][half] if i in parts else t for i, t in enumerate(case.tensors)]
        totals.append(case.run(tensors, case.op.args))
    return [None if r is None else x + y for r, x, y in zip(case.results, *totals, strict=True)]
