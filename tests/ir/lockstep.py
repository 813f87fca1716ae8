"""All ranks in one process: a local function run in lockstep, collectives done on whole tensors."""

from functools import cached_property
from itertools import product
from math import prod

import torch

from plait.ir.capture.execute import run_op
from plait.ir.layout import Factors, Layout, fits, local_factors
from plait.ir.mesh import Mesh
from plait.ir.model import Function, Op, Ref


class Ranks:
    """One value on every rank: pieces stacked along the mesh, [2 4 .. shape] on a 2 x 4 mesh.

    A mesh dimension of 1 stands for equal pieces, which are then computed only once.
    """

    def __init__(self, mesh, stacked=None, pieces=None):
        self.mesh = tuple(mesh)
        if stacked is not None:
            self.stacked = stacked
        if pieces is not None:
            self.pieces = pieces

    @cached_property
    def stacked(self):
        shape = (*self.mesh, *self.pieces[0].shape)
        whole = self.pieces[0] if len(self.pieces) == 1 else torch.stack(self.pieces)
        return whole.reshape(shape)

    @cached_property
    def pieces(self):
        """One contiguous tensor per place, as collectives deliver them."""
        shape = self.stacked.shape[len(self.mesh) :]
        return self.stacked.contiguous().reshape(-1, *shape).unbind(0)

    def at(self, place):
        number = 0
        for size, position in zip(self.mesh, place, strict=True):
            number = number * size + (position if size > 1 else 0)
        return self.pieces[number]

    def changed(self, stacked):
        return Ranks(stacked.shape[: len(self.mesh)], stacked)

    # collectives over mesh axis `axis` of `ways` ranks, on dimension `dim` of the pieces, of
    # which `outer` elements lie outside the factor that is cut

    def spread(self, axis, ways):
        return self.stacked.expand(*self.mesh[:axis], ways, *self.stacked.shape[axis + 1 :])

    def summed(self, axis, ways):
        return self.changed(self.spread(axis, ways).sum(axis, keepdim=True))

    def gathered(self, axis, ways, dim, outer):
        x, at = self.spread(axis, ways), len(self.mesh) + dim
        opened = x.unflatten(at, (outer, x.shape[at] // outer)).unsqueeze(axis)
        return self.changed(opened.movedim(axis + 1, at + 1).flatten(at, at + 2))

    def cut(self, axis, ways, dim, outer):
        x, at = self.spread(axis, ways), len(self.mesh) + dim
        opened = x.unflatten(at, (outer, ways, x.shape[at] // outer // ways))
        own = opened.diagonal(0, axis, at + 1).movedim(-1, axis)
        return self.changed(own.flatten(at, at + 1))

    def divided(self, by):
        return self.changed(self.stacked / by)


def shard(tensor: torch.Tensor, factors: Factors, layout: Layout, mesh: Mesh) -> Ranks:
    """A whole tensor as it lies on the mesh; a partial sum has unequal shares of both signs."""
    value = Ranks((1,) * len(layout), tensor.reshape(*(1,) * len(layout), *tensor.shape))
    before = ["R"] * len(layout)
    for number, state in enumerate(layout):
        ways = mesh.axes[number].size
        if state == "P":
            shares = torch.tensor([3.0, *[-2.0 / (ways - 1)] * (ways - 1)], dtype=torch.float64)
            rest = (1,) * (value.stacked.dim() - number - 1)
            value = value.changed(value.stacked * shares.to(tensor.dtype).reshape(ways, *rest))
        elif state != "R":
            value = value.cut(number, ways, *along(factors, before, state, mesh))
        before[number] = state
    return value


def unshard(value: Ranks, factors: Factors, layout: Layout, mesh: Mesh) -> torch.Tensor:
    """The whole tensor from every rank's piece; checks that copies agree."""
    before = list(layout)
    for number in reversed(range(len(layout))):
        state, ways = layout[number], mesh.axes[number].size
        if state == "P":
            value = value.summed(number, ways)
        elif state != "R":
            value = value.gathered(number, ways, *along(factors, before, state, mesh))
        else:
            first = value.stacked.narrow(number, 0, 1)
            if value.mesh[number] > 1:
                torch.testing.assert_close(
                    value.stacked, first.expand_as(value.stacked), rtol=1e-9, atol=1e-12
                )
            value = value.changed(first)
        before[number] = "R"
    return value.pieces[0]


def along(factors: Factors, layout, state, mesh: Mesh) -> tuple[int, int]:
    """(dimension, number of local elements of it outside the cut factor)"""
    dim, part = state
    return dim, prod(local_factors(factors, tuple(layout), mesh)[dim][:part])


def run(local: Function, inputs: dict[int, Ranks], mesh: Mesh) -> dict[int, Ranks]:
    """Interpret a local function on all ranks at once."""
    values = dict(inputs)
    for op in local.ops:
        made = collective(op, values, mesh) if op.target in COLLECTIVES else plain(op, values, mesh)
        for value, result in zip(op.results, made, strict=True):
            if value >= 0:
                values[value] = result
                assert tuple(result.pieces[0].shape) == local.types[value].shape, op
    return values


def plain(op: Op, values, mesh: Mesh) -> list[Ranks]:
    """One operator, once for every set of ranks whose operands are equal."""
    operands = {value: values[value] for value in op.operands()}
    sizes = [max((v.mesh[axis] for v in operands.values()), default=1)
             for axis in range(len(mesh.axes))]  # fmt: skip
    if op.target.startswith("comm."):
        sizes = [axis.size for axis in mesh.axes]
    outs = []
    for place in product(*map(range, sizes)):
        here = placed(op, place, mesh) if op.target.startswith("comm.") else op
        outs.append(run_op(here, lambda v, at=place: operands[v].at(at)))
    return [Ranks(sizes, pieces=list(column)) for column in zip(*outs, strict=True)]


def collective(op: Op, values, mesh: Mesh) -> list[Ranks]:
    source, name, *rest = op.args
    assert isinstance(source, Ref)
    axis = mesh.index(name)
    return [COLLECTIVES[op.target](values[source.value], axis, mesh.axes[axis].size, *rest)]


COLLECTIVES = {
    "comm.all_reduce": Ranks.summed,
    "comm.all_gather": Ranks.gathered,
    "comm.cut": Ranks.cut,
    "comm.share": lambda value, axis, ways: value.divided(ways),
    "comm.reduce_scatter": lambda value, axis, ways, *to: value.summed(axis, ways).cut(
        axis, ways, *to
    ),
    "comm.all_to_all": lambda value, axis, ways, d, o, *to: value.gathered(axis, ways, d, o).cut(
        axis, ways, *to
    ),
}


def placed(op: Op, place, mesh: Mesh) -> Op:
    """An operator that depends on where its shard lies: places become (size, stride, start)."""
    args = tuple(triples(a, mesh, place) if is_places(a) else a for a in op.args)
    return Op(f"plait.{op.target[5:]}.default", args, op.kwargs, op.results)


def is_places(argument) -> bool:
    return isinstance(argument, tuple) and argument and isinstance(argument[0], tuple)


def triples(places, mesh: Mesh, place):
    made = []
    for size, stride, axes in places:
        position = 0
        for name in axes:
            axis = mesh.index(name)
            position = position * mesh.axes[axis].size + place[axis]
        made += [size, stride, position * size]
    return tuple(made)


def random_choices(axes, mesh: Mesh, rng):
    """A random usable option per operator and mesh axis."""
    choices = []
    for known in axes.ops:
        ways: dict[tuple[str, int], int] = {}
        picked = []
        for axis in mesh.axes:
            usable = [
                i
                for i, o in enumerate(known.options)
                if not o.loop or o.size % (ways.get((o.loop, o.part), 1) * axis.size) == 0
            ]
            number = rng.choice(usable)
            option = known.options[number]
            if option.loop:
                key = (option.loop, option.part)
                ways[key] = ways.get(key, 1) * axis.size
            picked.append(number)
        choices.append(tuple(picked))
    return tuple(choices)


def random_layout(axes, value: int, floating: bool, mesh: Mesh, rng):
    """A random layout of one value; only floats may be partial sums."""
    while True:
        states = ["R", *(["P"] if floating else [])]
        states += [(d, p) for d, parts in enumerate(axes.factors[value]) for p in range(len(parts))]
        layout = tuple(rng.choice(states) for _ in mesh.axes)
        if fits(axes.factors[value], layout, mesh):
            return layout
