"""All ranks in one process: a local function run in lockstep, collectives done on whole tensors."""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import product
from math import prod
from threading import Barrier

import torch

from plait.ir.capture.execute import run_op
from plait.ir.capture.literals import decode
from plait.ir.model.layout import Factors, Layout, divides_evenly, local_factors
from plait.ir.model.loops import SHARD_AWARE
from plait.ir.model.mesh import Mesh
from plait.ir.model.model import Function, Op, Ref
from plait.runtime.comm.mesh_collectives import Comm
from plait.runtime.comm.sharded_operators import ShardedOperators


class Ranks:
    """One value on every rank: pieces stacked along the mesh, [2 4 .. shape] on a 2 x 4 mesh.

    A mesh dimension of 1 stands for equal pieces, which are then computed only once.
    """

    def __init__(self, mesh, stacked=None, shards=None):
        self.mesh = tuple(mesh)
        if stacked is not None:
            self.stacked = stacked
        if shards is not None:
            self.shards = shards

    @cached_property
    def stacked(self):
        shape = (*self.mesh, *self.shards[0].shape)
        whole = self.shards[0] if len(self.shards) == 1 else torch.stack(self.shards)
        return whole.reshape(shape)

    @cached_property
    def shards(self):
        """One contiguous tensor per place, as collectives deliver them."""
        return self.stacked.contiguous().flatten(0, len(self.mesh) - 1).unbind(0)

    def at(self, place):
        number = 0
        for size, position in zip(self.mesh, place, strict=True):
            number = number * size + (position if size > 1 else 0)
        return self.shards[number]

    def changed(self, stacked):
        return Ranks(stacked.shape[: len(self.mesh)], stacked)

    # collectives over mesh axis `axis` of `ways` ranks, on dimension `dim` of the pieces, of
    # which `outer` elements lie outside the factor that is cut

    def spread(self, axis, degree):
        return self.stacked.expand(*self.mesh[:axis], degree, *self.stacked.shape[axis + 1 :])

    def summed(self, axis, degree):
        return self.changed(self.spread(axis, degree).sum(axis, keepdim=True))

    def gathered(self, axis, degree, dim, outer):
        x, at = self.spread(axis, degree), len(self.mesh) + dim
        opened = x.unflatten(at, (outer, x.shape[at] // outer)).unsqueeze(axis)
        return self.changed(opened.movedim(axis + 1, at + 1).flatten(at, at + 2))

    def slice(self, axis, degree, dim, outer):
        x, at = self.spread(axis, degree), len(self.mesh) + dim
        opened = x.unflatten(at, (outer, degree, x.shape[at] // outer // degree))
        own = opened.diagonal(0, axis, at + 1).movedim(-1, axis)
        return self.changed(own.flatten(at, at + 1))

    def divided(self, by):
        return self.changed(self.stacked / by)


def shard(tensor: torch.Tensor, factors: Factors, layout: Layout, mesh: Mesh) -> Ranks:
    """A whole tensor as it lies on the mesh; a partial sum has unequal shares of both signs."""
    value = Ranks((1,) * len(layout), tensor.reshape(*(1,) * len(layout), *tensor.shape))
    before = ["R"] * len(layout)
    for number, state in enumerate(layout):
        degree = mesh.axes[number].size
        if state == "P":
            shares = torch.tensor([3.0, *[-2.0 / (degree - 1)] * (degree - 1)], dtype=torch.float64)
            rest = (1,) * (value.stacked.dim() - number - 1)
            value = value.changed(value.stacked * shares.to(tensor.dtype).reshape(degree, *rest))
        elif state != "R":
            value = value.slice(number, degree, *along(factors, before, state, mesh))
        before[number] = state
    return value


def unshard(value: Ranks, factors: Factors, layout: Layout, mesh: Mesh) -> torch.Tensor:
    """The whole tensor from every rank's piece; checks that copies agree."""
    before = list(layout)
    for number in reversed(range(len(layout))):
        state, degree = layout[number], mesh.axes[number].size
        if state == "P":
            value = value.summed(number, degree)
        elif state != "R":
            value = value.gathered(number, degree, *along(factors, before, state, mesh))
        else:
            first = value.stacked.narrow(number, 0, 1)
            if value.mesh[number] > 1:
                torch.testing.assert_close(
                    value.stacked, first.expand_as(value.stacked), rtol=1e-9, atol=1e-12
                )
            value = value.changed(first)
        before[number] = "R"
    return value.shards[0]


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
                assert tuple(result.shards[0].shape) == local.types[value].shape, op
    return values


def evaluated(op: Op, value) -> list:
    """What an operator gives on one rank; those of products in slices as the runtime has them."""
    if op.target not in ON_PARTS:
        return run_op(op, value)
    args = [decode(a, value) for a in op.args]
    return [ON_PARTS[op.target](*args)]


ON_PARTS = {
    "comm.part": lambda *args: Comm.part(None, *args),
    "comm.place": lambda full, *args: Comm.place(None, full, *args).clone(),
    "comm.add": lambda total, term: total + term,
}


def plain(op: Op, values, mesh: Mesh) -> list[Ranks]:
    """One operator, once for every set of ranks whose operands are equal."""
    operands = {value: values[value] for value in op.operands()}
    if op.target in SHARD_AWARE:
        return placed(op, operands, mesh)
    sizes = [
        max((v.mesh[axis] for v in operands.values()), default=1) for axis in range(len(mesh.axes))
    ]
    outs = []
    for place in product(*map(range, sizes)):
        results = evaluated(op, lambda v, at=place: operands[v].at(at))
        outs.append([r if r is None else r.to_dense() for r in results])
    return [Ranks(sizes, shards=list(column)) for column in zip(*outs, strict=True)]


def collective(op: Op, values, mesh: Mesh) -> list[Ranks]:
    source, name, *rest = op.args
    assert isinstance(source, Ref)
    axis = mesh.index(name)
    return [COLLECTIVES[op.target](values[source.value], axis, mesh.axes[axis].size, *rest)]


COLLECTIVES = {
    "comm.all_reduce": Ranks.summed,
    "comm.all_gather": Ranks.gathered,
    "comm.cut": Ranks.slice,
    "comm.share": lambda value, axis, degree: value.divided(degree),
    "comm.reduce_scatter": lambda value, axis, degree, *to: value.summed(axis, degree).slice(
        axis, degree, *to
    ),
    "comm.all_to_all": lambda value, axis, degree, d, o, *to: value.gathered(
        axis, degree, d, o
    ).slice(axis, degree, *to),
}


def placed(op: Op, operands: dict[int, Ranks], mesh: Mesh) -> list[Ranks]:
    """An operator that is told where its shard lies, as the runtime runs it: a thread per rank."""
    meeting = Meeting(mesh)

    def one(rank):
        place = mesh.coordinate(rank)
        args = [decode(a, lambda v: operands[v].at(place)) for a in op.args]
        made = getattr(Rank(meeting, rank), op.target[5:])(*args, **op.kwargs)
        return [r.to_dense() for r in (made if isinstance(made, tuple) else (made,))]

    if "over" not in op.kwargs:
        outs = [one(rank) for rank in range(mesh.size)]
    else:
        with ThreadPoolExecutor(mesh.size) as threads:
            outs = list(threads.map(one, range(mesh.size)))
    sizes = [axis.size for axis in mesh.axes]
    return [Ranks(sizes, shards=list(column)) for column in zip(*outs, strict=True)]


class Meeting:
    """Where the ranks of one operator meet: each brings something and sees what all brought."""

    def __init__(self, mesh: Mesh):
        self.mesh, self.barrier = mesh, Barrier(mesh.size)
        self.brought = [None] * mesh.size

    def bring(self, rank: int, thing):
        self.brought[rank] = thing
        self.barrier.wait(60)
        seen = list(self.brought)
        self.barrier.wait(60)
        return seen


class Rank(ShardedOperators):
    """One rank of a lockstep run, as operators of shards see it."""

    def __init__(self, meeting: Meeting, rank: int):
        mesh = meeting.mesh
        self.meeting, self.rank = meeting, rank
        self.sizes = {axis.name: axis.size for axis in mesh.axes}
        names = [axis.name for axis in mesh.axes]
        self.coordinates = dict(zip(names, mesh.coordinate(rank), strict=True))

    def group(self, axis):
        groups = self.meeting.mesh.groups((self.meeting.mesh.index(axis),))
        return next(group for group in groups if self.rank in group)

    def sum_over(self, x, axes):
        for axis in axes:
            seen = self.meeting.bring(self.rank, x)
            x = sum(seen[r] for r in self.group(axis))
        return x

    def max_over(self, x, axes):
        for axis in axes:
            seen = self.meeting.bring(self.rank, x)
            x = torch.stack([seen[r] for r in self.group(axis)]).amax(0)
        return x

    def exchange_rows(self, x, axis, sent, received):
        seen = self.meeting.bring(self.rank, x.split(sent))
        group = self.group(axis)
        rows = [seen[r][group.index(self.rank)] for r in group]
        assert [len(r) for r in rows] == received
        return torch.cat(rows)


def divides(known, option, degree, size) -> bool:
    """Whether a further axis can split what the option splits."""
    return all(
        known.loop_factors[c[0]][c[1]] % (degree.get(c, 1) * size) == 0 for c in option.splits
    )


def random_choices(axes, mesh: Mesh, rng):
    """A random usable option per operator and mesh axis."""
    choices = []
    for known in axes.ops:
        degree: dict[tuple[str, int], int] = {}
        picked = []
        for axis in mesh.axes:
            usable = [o for o in known.options if divides(known, o, degree, axis.size)]
            option = rng.choice(usable)
            for slice in option.splits:
                degree[slice] = degree.get(slice, 1) * axis.size
            picked.append(option)
        choices.append(tuple(picked))
    return tuple(choices)


def random_layout(axes, value: int, floating: bool, mesh: Mesh, rng):
    """A random layout of one value; only floats may be partial sums."""
    while True:
        states = ["R", *(["P"] if floating else [])]
        states += [(d, p) for d, parts in enumerate(axes.factors[value]) for p in range(len(parts))]
        layout = tuple(rng.choice(states) for _ in mesh.axes)
        if divides_evenly(axes.factors[value], layout, mesh):
            return layout
