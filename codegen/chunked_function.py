"""Chunked execution: `forward` and `backward` that run `forward_chunk`, `backward_chunk` in a loop.

Inputs are sliced as over devices, but along an axis in time; results are concatenated or added up.
Forward saves its inputs alone: backward of a chunk recomputes its forward.
"""

from __future__ import annotations

from typing import NamedTuple

from ..ir.model.layout import PARTIAL, Layout, shard_position
from ..ir.model.mesh import CHUNK
from .lower import LoweredFunction
from .python_source import tuple_source, unpack_saved, wrapped


class BoundaryValue(NamedTuple):
    """A value at the boundary: its variable, and how chunks slice it (`where`) or add it up."""

    name: str
    where: str
    sum: bool

    @property
    def chunk(self) -> str:
        """Expression of the current chunk's slice of the full value."""
        return f'comm.slice({self.name}, "{CHUNK}", {self.where})' if self.where else self.name

    def gather(self, part: str) -> str:
        """Statement that inserts or adds the result of a chunk."""
        if self.where:
            return f'{self.name} = comm.insert_slice({self.name}, {part}, "{CHUNK}", {self.where})'
        return f"{self.name} = " + (f"comm.add({self.name}, {part})" if self.sum else part)


def chunked_source(lowered: LoweredFunction, values: dict[int, str]) -> list[str]:
    """Source of both functions; `values` are the variables of one chunk."""
    writer = _ChunkedWriter(lowered, values)
    return [*writer.forward(), "", "", *writer.backward()]


class _ChunkedWriter:
    """Writes both functions; knows how chunks slice every boundary value of the function."""

    def __init__(self, lowered: LoweredFunction, values: dict[int, str]) -> None:
        self.lowered, self.local, self.bound = lowered, lowered.local, lowered.bound
        self.chunks, boundary = self.bound.mesh.axes[-1].size, self.bound.boundary
        source, local = lowered.function, self.local
        self.inputs = {
            local_value.value: self.boundary_value(values[local_value.value], full.value, layout)
            for local_value, full, layout in zip(
                local.inputs, source.inputs, boundary.inputs, strict=True
            )
        }
        self.outputs = [
            self.boundary_value(values[local_value.value], full.value, layout)
            for local_value, full, layout in zip(
                local.outputs, source.outputs, boundary.outputs, strict=True
            )
        ]
        self.tangents = [
            self.boundary_value(values[local_value.tangent], full.tangent, layout)
            for local_value, full, layout in zip(
                local.outputs, source.outputs, boundary.tangents, strict=True
            )
            if local_value.tangent is not None and full.tangent is not None and layout is not None
        ]
        self.gradients = [
            None
            if full.gradient is None or layout is None
            else self.boundary_value(f"d_{values[local_value.value]}", full.gradient, layout)
            for local_value, full, layout in zip(
                local.inputs, source.inputs, boundary.gradients, strict=True
            )
        ]

    def boundary_value(self, name: str, value: int, layout: Layout) -> BoundaryValue:
        """The boundary value of a variable, sliced along its last layout axis."""
        state = layout[-1]
        if not isinstance(state, tuple):
            return BoundaryValue(name, "", state == PARTIAL)
        dim, outer = shard_position(self.bound.axes.factors[value], layout, self.bound.mesh, state)
        return BoundaryValue(name, f"dim={dim}" + (f", outer={outer}" if outer > 1 else ""), False)

    def forward(self) -> list[str]:
        values = self.inputs.values()
        lines = wrapped("def forward(", ["comm", *(value.name for value in values)], "):", 0)
        lines += self.loop(self.outputs)
        lines += wrapped(
            "results, _ = forward_chunk(", ["comm", *(value.chunk for value in values)], ")", 8
        )
        lines += [
            f"        {value.gather(f'results[{i}]')}" for i, value in enumerate(self.outputs)
        ]
        lines.append("        del results, _")  # before the next chunk runs
        saved = tuple_source([self.inputs[v].name for v in self.lowered.halves.saved])
        return lines + wrapped(
            "return (", [tuple_source([e.name for e in self.outputs]), saved], ")", 4
        )

    def backward(self) -> list[str]:
        states = [self.inputs[item.value] for item in self.local.state_inputs()]
        saved = [self.inputs[v] for v in self.lowered.halves.saved]
        tangents = [value.name for value in self.tangents]
        lines = wrapped(
            "def backward(", ["comm", *(e.name for e in states), "saved", *tangents], "):", 0
        )
        lines += unpack_saved([value.name for value in saved]) if saved else []
        lines += self.loop([value for value in self.gradients if value is not None])
        arguments = [
            *(e.chunk for e in states),
            f"[{', '.join(e.chunk for e in saved)}]",
            *(e.chunk for e in self.tangents),
        ]
        lines += wrapped(
            "state_gradients, input_gradients = backward_chunk(", ["comm", *arguments], ")", 8
        )
        returned = []
        for source, kinds in (
            ("state_gradients", ("parameter", "buffer")),
            ("input_gradients", ("activation",)),
        ):
            pairs = zip(self.local.inputs, self.gradients, strict=True)
            selected = [value for item, value in pairs if item.kind in kinds]
            lines += [
                f"        {value.gather(f'{source}[{i}]')}"
                for i, value in enumerate(selected)
                if value is not None
            ]
            returned.append(
                tuple_source(["None" if value is None else value.name for value in selected])
            )
        lines.append("        del state_gradients, input_gradients")
        return lines + wrapped("return (", returned, ")", 4)

    def loop(self, results: list[BoundaryValue]) -> list[str]:
        """Head of the loop over chunks that computes `results`."""
        return [
            f"    {' = '.join(value.name for value in results)} = None",
            f"    for _ in comm.chunks({self.chunks}):",
        ]
