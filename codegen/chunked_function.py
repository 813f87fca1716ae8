"""A function in pieces: `forward` and `backward` that run those of a piece, one after the other.

What is cut is cut as over devices, along an axis in time; results are put together or added up. Inputs
are all that forward leaves: backward of a piece runs its forward again.
"""

from __future__ import annotations

from typing import NamedTuple

from ..ir.layout import PARTIAL, Layout, along
from ..ir.lowering.localize import SPLIT
from .lower import Lowered
from .python_source import taken, tupled, wrapped


class End(NamedTuple):
    """A value at the boundary: its variable, and how pieces cut it (`where`) or add it up."""

    name: str
    where: str
    sum: bool

    @property
    def piece(self) -> str:
        """The piece at hand of a whole value."""
        return f'comm.cut({self.name}, "{SPLIT}", {self.where})' if self.where else self.name

    def gather(self, part: str) -> str:
        """The statement that takes in a piece's part."""
        if self.where:
            return f'{self.name} = comm.put({self.name}, {part}, "{SPLIT}", {self.where})'
        return f"{self.name} = " + (f"comm.add({self.name}, {part})" if self.sum else part)


def in_pieces(lowered: Lowered, values: dict[int, str]) -> list[str]:
    """Source of both functions; `values` are the variables of one piece."""
    writer = _Writer(lowered, values)
    return [*writer.forward(), "", "", *writer.backward()]


class _Writer:
    """Knows how every value at the boundary of one function is cut."""

    def __init__(self, lowered: Lowered, values: dict[int, str]) -> None:
        self.lowered, self.local, self.form = lowered, lowered.local, lowered.form
        self.ways, boundary = self.form.mesh.axes[-1].size, self.form.boundary
        source, local = lowered.function, self.local
        self.inputs = {
            mine.value: self.end(values[mine.value], whole.value, layout)
            for mine, whole, layout in zip(
                local.inputs, source.inputs, boundary.inputs, strict=True
            )
        }
        self.outputs = [
            self.end(values[mine.value], whole.value, layout)
            for mine, whole, layout in zip(
                local.outputs, source.outputs, boundary.outputs, strict=True
            )
        ]
        self.tangents = [
            self.end(values[mine.tangent], whole.tangent, layout)
            for mine, whole, layout in zip(
                local.outputs, source.outputs, boundary.tangents, strict=True
            )
            if mine.tangent is not None and whole.tangent is not None and layout is not None
        ]
        self.gradients = [
            None
            if whole.gradient is None or layout is None
            else self.end(f"d_{values[mine.value]}", whole.gradient, layout)
            for mine, whole, layout in zip(
                local.inputs, source.inputs, boundary.gradients, strict=True
            )
        ]

    def end(self, name: str, value: int, layout: Layout) -> End:
        """How a value of the model's function lies in pieces."""
        state = layout[-1]
        if not isinstance(state, tuple):
            return End(name, "", state == PARTIAL)
        dim, outer = along(self.form.axes.factors[value], layout, self.form.mesh, state)
        return End(name, f"dim={dim}" + (f", outer={outer}" if outer > 1 else ""), False)

    def forward(self) -> list[str]:
        ends = self.inputs.values()
        lines = wrapped("def forward(", ["comm", *(end.name for end in ends)], "):", 0)
        lines += self.loop(self.outputs)
        lines += wrapped("made, _ = forward_piece(", ["comm", *(end.piece for end in ends)], ")", 8)
        lines += [f"        {end.gather(f'made[{i}]')}" for i, end in enumerate(self.outputs)]
        lines.append("        del made, _")  # before the next piece runs
        saved = tupled([self.inputs[v].name for v in self.lowered.pieces.saved])
        return lines + wrapped("return (", [tupled([e.name for e in self.outputs]), saved], ")", 4)

    def backward(self) -> list[str]:
        held = [self.inputs[item.value] for item in self.local.held()]
        saved = [self.inputs[v] for v in self.lowered.pieces.saved]
        tangents = [end.name for end in self.tangents]
        lines = wrapped(
            "def backward(", ["comm", *(e.name for e in held), "saved", *tangents], "):", 0
        )
        lines += taken([end.name for end in saved]) if saved else []
        lines += self.loop([end for end in self.gradients if end is not None])
        pieces = [
            *(e.piece for e in held),
            f"[{', '.join(e.piece for e in saved)}]",
            *(e.piece for e in self.tangents),
        ]
        lines += wrapped("held, given = backward_piece(", ["comm", *pieces], ")", 8)
        returned = []
        for source, kinds in (("held", ("parameter", "buffer")), ("given", ("activation",))):
            pairs = zip(self.local.inputs, self.gradients, strict=True)
            own = [end for item, end in pairs if item.kind in kinds]
            lines += [
                f"        {end.gather(f'{source}[{i}]')}"
                for i, end in enumerate(own)
                if end is not None
            ]
            returned.append(tupled(["None" if end is None else end.name for end in own]))
        lines.append("        del held, given")
        return lines + wrapped("return (", returned, ")", 4)

    def loop(self, made: list[End]) -> list[str]:
        """The head of the loop over pieces, which make these values."""
        return [
            f"    {' = '.join(end.name for end in made)} = None",
            f"    for _ in comm.split({self.ways}):",
        ]
