"""Functions in pieces, one after the other: the same work at a fraction of its temporaries.

A piece sees a part of the tokens, or of the samples where tokens meet each other, and all weights; what
it adds to a sum is added up. That is a split in time, which may not gather or reduce on the way, so a
function can be divided where no operator needs the others' tokens or samples. Of large operators a piece
at a time needs memory (TSPLIT, Nie et al. 2022, along loops that the operators declare).
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ...ir.analysis.axes import Axes
from ...ir.analysis.dataflow import Flow
from ...ir.layout import UnreachableLayout, fits
from ...ir.lowering.chunk import Division, Form, Places, finer_axes, piece_form
from ...ir.lowering.localize import MICRO, Boundary
from ...ir.mesh import Mesh
from ...ir.model import Function
from ..sharding.data_parallel import follow

LEAST = 2  # pieces


class Divided(NamedTuple):
    """A function in equal pieces, and what one of them computes."""

    division: Division
    local: Function


class Divider:
    """How the functions of one model run in pieces; `summed` are the values of each that are sums."""

    def __init__(self, flow: Flow, summed: dict[str, frozenset[int]]) -> None:
        self.flow, self.summed = flow, summed
        self.loops: dict[str, bool | None] = {}
        self.finer: dict[tuple[str, bool, int], Axes] = {}

    def by_tokens(self, function: Function) -> bool | None:
        """Whether pieces cut the tokens of samples, or samples; None where neither can be."""
        name = function.name
        if name not in self.loops:
            self.loops[name] = None
            if function.differentiable:
                form = _alone(function, self.flow.axes[name])
                found = (
                    tokens for tokens in (True, False) if self.made(function, form, LEAST, tokens)
                )
                self.loops[name] = next(found, None)
        return self.loops[name]

    def samples(self, function: Function, pieces: int) -> int:
        """What the samples of a micro-batch must be a multiple of."""
        return 1 if pieces == 1 or self.by_tokens(function) else pieces

    def pieces(self, function: Function, form: Form, ways: int) -> Divided | None:
        """So many equal pieces of what devices compute, or None."""
        tokens = self.by_tokens(function)
        return None if tokens is None else self.made(function, form, ways, tokens)

    def made(self, function: Function, form: Form, ways: int, tokens: bool) -> Divided | None:
        """The pieces along tokens or samples, where no piece needs another and all are equal."""
        where = self.flow.token_shard if tokens else self.flow.batch_shard
        values = (
            *(i.value for i in function.inputs if i.kind == "activation"),
            *(o.value for o in function.outputs),
        )
        places = {v: shard for v in values if (shard := where(function, v)) is not None}
        if not any(i.value in places for i in function.inputs):
            return None
        axes = self.flow.axes[function.name]
        outer = self.ways(function, form) if tokens else 1
        if any(axes.factors[v][dim][part] % (outer * ways) for v, (dim, part) in places.items()):
            return None
        key = function.name, tokens, outer
        if key not in self.finer:
            self.finer[key] = finer_axes(function, axes, places, outer)
        finer = self.finer[key]
        division = self.along(function, finer, places, outer, ways)
        piece = piece_form(function, axes, finer, form, division)
        local = local_form(function, piece)
        return None if local is None else Divided(division, local)

    def along(
        self, function: Function, axes: Axes, places: Places, outer: int, ways: int
    ) -> Division:
        """The division that cuts the loop at these places inside `outer` parts, told apart in `axes`."""
        inner = {v: (dim, part + (outer > 1)) for v, (dim, part) in places.items()}
        loops = frozenset(axes.atoms[v][dim][part] for v, (dim, part) in inner.items())
        split = follow(function, axes, inner, loops, self.summed[function.name])
        return Division(function.name, ways, outer, tuple(places.items()), split)

    def ways(self, function: Function, form: Form) -> int:
        """Into how many parts devices cut the tokens somewhere in a function."""
        tokens, axes = self.flow.tokens[function.name], self.flow.axes[function.name]
        return prod(
            axis.size
            for i, axis in enumerate(form.mesh.axes)
            if axis.name != MICRO
            and any(
                known.options[chosen[i]].atom in tokens
                for known, chosen in zip(axes.ops, form.choices, strict=True)
            )
        )


def local_form(function: Function, form: Form) -> Function | None:
    """What a piece computes; None where cuts are not even, or a piece needs another."""
    ends = [*(i.value for i in function.inputs), *(o.value for o in function.outputs)]
    layouts = (*form.boundary.inputs, *form.boundary.outputs)
    if not all(
        fits(form.axes.factors[v], at, form.mesh) for v, at in zip(ends, layouts, strict=True)
    ):
        return None
    try:
        return form.local(function)
    except UnreachableLayout:
        return None


def _alone(function: Function, axes: Axes) -> Form:
    """The function on one device, one micro-batch."""
    boundary = Boundary(
        tuple(() for _ in function.inputs),
        tuple(None if i.gradient is None else () for i in function.inputs),
        tuple(() for _ in function.outputs),
        tuple(None if o.tangent is None else () for o in function.outputs),
    )
    return Form(axes, Mesh(()), tuple(() for _ in function.ops), boundary)
