"""Compiles segments of generated functions: inductor's kernels in the place of aten's."""

from __future__ import annotations

import ast
import inspect
import time
from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from ..torch_private import Boxed, inductor_graph, inductor_kernels
from .segments import LocalFunction, Segment, with_segments

FUNCTIONS = ("forward", "backward", "forward_chunk", "backward_chunk")
FEWEST = 2  # operators of a graph that are worth a kernel of their own
OperandKind = tuple[tuple[object, ...], ...]


class Compiler:
    """Compiles segments when they are first called, for the shapes and strides of that call.

    Graphs that read alike share their kernels, in this process and, by inductor's cache on disk, with
    later ones.
    """

    def __init__(self) -> None:
        self.kernels: dict[tuple[str, OperandKind], Boxed] = {}
        self.seconds = 0.0

    def total_seconds(self) -> float:
        """Seconds that compiling has taken so far."""
        return self.seconds

    def compile_stage(self, stage: ModuleType) -> None:
        """Compile the functions that a generated stage calls."""
        for module in vars(stage.functions).values():
            if isinstance(module, ModuleType):
                self.compile_module(module)

    def compile_module(self, module: ModuleType) -> None:
        """Replace the functions of a generated module by compiled ones."""
        tree = ast.parse(inspect.getsource(module))
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        space = vars(module)
        changed = {
            f.name: with_segments(f, space, self.segment) for f in functions if f.name in FUNCTIONS
        }
        space.update(changed)

    def segment(self, name: str, function: LocalFunction) -> Segment:
        """A segment that is compiled for every kind of operands that it meets."""
        versions: dict[OperandKind, Boxed] = {}

        def run(operands: list[Tensor]) -> Sequence[Tensor]:
            kind = tuple((x.shape, x.stride(), x.dtype) for x in operands)
            if kind not in versions:
                versions[kind] = self.compiled(name, function, operands, kind)
            return versions[kind](operands)

        return run

    def compiled(
        self, name: str, function: LocalFunction, operands: list[Tensor], kind: OperandKind
    ) -> Boxed:
        """The kernels of a segment for one kind of operands; the function itself where there are next
        to no operators to fuse. Raises what inductor raises."""
        start = time.perf_counter()
        graph = inductor_graph(function, operands)
        if graph.operators < FEWEST:
            return lambda values: function(*values)
        key = graph.text, kind
        if key not in self.kernels:
            self.kernels[key] = inductor_kernels(graph)
            self.seconds += time.perf_counter() - start
        return self.kernels[key]
