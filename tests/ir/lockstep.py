"""All ranks in one process: a local function run in lockstep, collectives done on lists of tensors."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

from plait.ir.capture.execute import run_op
from plait.ir.capture.literals import decode
from plait.ir.layout import Factors, Layout, fits
from plait.ir.mesh import Mesh
from plait.ir.model import Function, Ref
from plait.runtime.placed import Placed

Ranks = list[torch.Tensor]


def shard(tensor: torch.Tensor, factors: Factors, layout: Layout, mesh: Mesh) -> Ranks:
    """One piece per rank of a whole tensor; partial states get an equal share each."""
    pieces = []
    for rank in range(mesh.size):
        piece, at = tensor, mesh.coordinate(rank)
        sizes = [list(dim) for dim in factors]
        for axis, state in enumerate(layout):
            size = mesh.axes[axis].size
            if state == "P":
                piece = piece / size
            elif state != "R":
                piece = cut(piece, sizes, state, size, at[axis])
        pieces.append(piece.contiguous())
    return pieces


def cut(piece, sizes, state, ways, place):
    dim, part = state
    whole = [f for d in sizes for f in d]
    at = sum(len(d) for d in sizes[:dim]) + part
    step = whole[at] // ways
    piece = piece.reshape(whole).narrow(at, place * step, step)
    sizes[dim][part] = step
    shape = []
    for d in sizes:
        n = 1
        for f in d:
            n *= f
        shape.append(n)
    return piece.reshape(shape)


def unshard(pieces: Ranks, factors: Factors, layout: Layout, mesh: Mesh) -> torch.Tensor:
    """The whole tensor from every rank's piece; checks that copies agree."""
    pieces = list(pieces)
    for axis in reversed(range(len(mesh.axes))):
        state = layout[axis]
        for group in mesh.groups((axis,)):
            if state == "P":
                joined = sum(pieces[r] for r in group)
            elif state == "R":
                joined = pieces[group[0]]
                for r in group[1:]:
                    torch.testing.assert_close(pieces[r], joined, rtol=1e-9, atol=1e-12)
            else:
                sizes = [list(d) for d in factors]
                for other in range(axis):
                    if layout[other] not in ("R", "P"):
                        d, p = layout[other]
                        sizes[d][p] //= mesh.axes[other].size
                dim, part = state
                outer = 1
                for f in sizes[dim][:part]:
                    outer *= f
                joined = gather([pieces[r] for r in group], dim, outer)
            for r in group:
                pieces[r] = joined
    return pieces[0]


def gather(parts: Ranks, dim: int, outer: int) -> torch.Tensor:
    split = [p.unflatten(dim, (outer, p.shape[dim] // outer)) for p in parts]
    whole = torch.cat(split, dim + 1)
    return whole.flatten(dim, dim + 1)


def take(piece: torch.Tensor, dim: int, outer: int, ways: int, place: int) -> torch.Tensor:
    view = piece.reshape(*piece.shape[:dim], outer, -1, *piece.shape[dim + 1 :])
    step = view.shape[dim + 1] // ways
    part = view.narrow(dim + 1, place * step, step)
    return part.reshape(*piece.shape[:dim], -1, *piece.shape[dim + 1 :]).contiguous()


def run(local: Function, inputs: dict[int, Ranks], mesh: Mesh) -> dict[int, Ranks]:
    """Interpret a local function on all ranks at once."""
    values = dict(inputs)
    for op in local.ops:
        if op.target.startswith("comm."):
            made = collective(op, values, mesh)
        else:
            made = plain(op, values, mesh)
        for position, value in enumerate(op.results):
            if value >= 0:
                values[value] = made[position]
                for piece in made[position]:
                    assert tuple(piece.shape) == local.types[value].shape, (op, piece.shape)
    return values


def plain(op, values, mesh):
    outs = [run_op(op, lambda v, r=rank: values[v][r]) for rank in range(mesh.size)]
    return [list(column) for column in zip(*outs, strict=True)]


def collective(op, values, mesh):
    kind = op.target[5:]
    if kind not in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "cut", "share"):
        return placed(op, values, mesh)
    pieces = values[op.args[0].value]
    assert isinstance(op.args[0], Ref)
    axis = mesh.index(op.args[1])
    rest, made = op.args[2:], [None] * mesh.size
    for group in mesh.groups((axis,)):
        for place, r in enumerate(group):
            if kind == "all_reduce":
                made[r] = sum(pieces[q] for q in group)
            elif kind == "all_gather":
                made[r] = gather([pieces[q] for q in group], *rest)
            elif kind == "reduce_scatter":
                made[r] = take(sum(pieces[q] for q in group), *rest, len(group), place)
            elif kind == "cut":
                made[r] = take(pieces[r], *rest, len(group), place)
            elif kind == "share":
                made[r] = pieces[r] / len(group)
            else:
                whole = gather([pieces[q] for q in group], *rest[:2])
                made[r] = take(whole, *rest[2:], len(group), place)
    return [made]


def placed(op, values, mesh):
    """An operator that is told where its shard lies, as the runtime runs it: a thread per rank."""
    meeting = Meeting(mesh)

    def one(rank):
        args = [decode(a, lambda v: values[v][rank]) for a in op.args]
        made = getattr(Rank(meeting, rank), op.target[5:])(*args, **op.kwargs)
        return made if isinstance(made, tuple) else (made,)

    if "over" not in op.kwargs:
        outs = [one(rank) for rank in range(mesh.size)]
    else:
        with ThreadPoolExecutor(mesh.size) as threads:
            outs = list(threads.map(one, range(mesh.size)))
    return [list(column) for column in zip(*outs, strict=True)]


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


class Rank(Placed):
    """One rank of a lockstep run, as operators of shards see it."""

    def __init__(self, meeting: Meeting, rank: int):
        mesh = meeting.mesh
        self.meeting, self.rank = meeting, rank
        self.sizes = {axis.name: axis.size for axis in mesh.axes}
        names = [axis.name for axis in mesh.axes]
        self.places = dict(zip(names, mesh.coordinate(rank), strict=True))

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

    def exchange(self, x, axis, sent, received):
        seen = self.meeting.bring(self.rank, x.split(sent))
        group = self.group(axis)
        rows = [seen[r][group.index(self.rank)] for r in group]
        assert [len(r) for r in rows] == received
        return torch.cat(rows)


def divides(known, option, ways, size) -> bool:
    """Whether a further axis can split what the option splits."""
    return all(known.parts[c[0]][c[1]] % (ways.get(c, 1) * size) == 0 for c in option.cuts)


def random_choices(axes, mesh: Mesh, rng):
    """A random usable option per operator and mesh axis."""
    choices = []
    for known in axes.ops:
        ways: dict[tuple[str, int], int] = {}
        picked = []
        for axis in mesh.axes:
            usable = [i for i, o in enumerate(known.options) if divides(known, o, ways, axis.size)]
            number = rng.choice(usable)
            for cut in known.options[number].cuts:
                ways[cut] = ways.get(cut, 1) * axis.size
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
