"""All ranks in one process: a local function run in lockstep, collectives done on lists of tensors."""

import torch

from plait.ir.capture.execute import run_op
from plait.ir.layout import Factors, Layout, fits
from plait.ir.mesh import Mesh
from plait.ir.model import Function, Op, Ref

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
    split = [p.reshape(*p.shape[:dim], outer, -1, *p.shape[dim + 1 :]) for p in parts]
    whole = torch.cat(split, dim + 1)
    return whole.reshape(*parts[0].shape[:dim], -1, *parts[0].shape[dim + 1 :])


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
    """An operator that depends on where its shard lies: places become (size, stride, start)."""
    outs = []
    for rank in range(mesh.size):
        args = tuple(triples(a, mesh, rank) if is_places(a) else a for a in op.args)
        whole = Op(f"plait.{op.target[5:]}.default", args, op.kwargs, op.results)
        outs.append(run_op(whole, lambda v, r=rank: values[v][r]))
    return [list(column) for column in zip(*outs, strict=True)]


def is_places(argument) -> bool:
    return isinstance(argument, tuple) and argument and isinstance(argument[0], tuple)


def triples(places, mesh, rank):
    made = []
    for size, stride, axes in places:
        position = 0
        for name in axes:
            axis = mesh.index(name)
            position = position * mesh.axes[axis].size + mesh.coordinate(rank)[axis]
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
