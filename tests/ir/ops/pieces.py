"""Split an operator along one loop as its declaration says, run the pieces, put them together."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from plait.ir.capture.literals import decode, encode, tensor_type
from plait.ir.capture.resolve import resolve
from plait.ir.model import Argument, Op, Ref
from plait.ir.op import Dims, Loops, Site, declaration


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
        return list(made) if isinstance(made, (tuple, list)) else [made]


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
    made = bare.run(tensors, args)
    for unused in sample.unused:
        made[unused] = None
    values = tuple(-1 if m is None else len(tensors) + i for i, m in enumerate(made))
    op = Op(sample.target, args, kwargs, values)
    types = tuple(None if m is None else tensor_type(m) for m in made)
    site = Site(op, tuple(tensor_type(tensors[v]) for v in op.operands()), types)
    return Case(op, tensors, made, declaration(site))


@dataclass(frozen=True)
class Cut:
    """Piece number `place` of `ways`: blocks of the loop, or every `ways`-th element."""

    loop: str
    size: int
    ways: int
    inner: bool
    place: int

    def narrow(self, tensor: Tensor, dims: Dims, declared: Loops) -> Tensor:
        found = self._opened(tensor, dims, declared)
        if found is None:
            return tensor
        view, at, shape = found
        return view.select(at, self.place).reshape(shape).contiguous()

    def place_in(self, whole: Tensor, piece: Tensor, dims: Dims, declared: Loops) -> bool:
        """Write a piece into the whole; False when the tensor does not carry the loop."""
        found = self._opened(whole, dims, declared)
        if found is None:
            return False
        view, at, shape = found
        assert list(piece.shape) == shape, f"piece {list(piece.shape)}, expected {shape}"
        part = view.select(at, self.place)
        part.copy_(piece.reshape(part.shape))
        return True

    def _opened(
        self, tensor: Tensor, dims: Dims, declared: Loops
    ) -> tuple[Tensor, int, list[int]] | None:
        """The tensor with its loops as dims of their own, the cut one's place, a piece's shape."""
        sizes, at, shape = [], -1, []
        for dim in dims:
            extent = 1
            for name in dim:
                size = declared.size(name)
                if name == self.loop:
                    at = len(sizes) + (1 if self.inner else 0)
                    sizes += (
                        [size // self.ways, self.ways]
                        if self.inner
                        else [self.ways, size // self.ways]
                    )
                    size //= self.ways
                else:
                    sizes.append(size)
                extent *= size
            shape.append(extent)
        return (tensor.reshape(sizes), at, shape) if at >= 0 else None

    def extent(self, dim: tuple[str, ...], declared: Loops) -> int:
        return prod(declared.size(name) // (self.ways if name == self.loop else 1) for name in dim)

    def literals(self, op: Op, declared: Loops) -> tuple[Argument, ...]:
        """The arguments with sizes, and the places of random masks, rebuilt for this piece."""
        args = list(op.args)
        for position, dims in declared.shapes:
            local = tuple(self.extent(dim, declared) for dim in dims)
            args[position] = local if isinstance(args[position], tuple) else local[0]
        if declared.places is not None:
            position, dims = declared.places
            args[position] = self.triples(dims, declared)
        return tuple(args)

    def triples(self, mask: Dims, declared: Loops) -> tuple[int, ...]:
        """(size, stride, start) per factor of the mask, outermost first."""
        found: list[int] = []
        stride = 1
        for name in reversed([name for dim in mask for name in dim]):
            size = declared.size(name)
            if name != self.loop:
                found = [size, stride, 0, *found]
            elif self.inner:
                found = [size // self.ways, stride * self.ways, 0, 1, stride, self.place, *found]
            else:
                part = size // self.ways
                found = [part, stride, self.place * part, *found]
            stride *= size
        return tuple(found)


def combined(case: Case, loop: str, ways: int, inner: bool) -> list[Tensor | None]:
    """The results put together from the pieces of one loop, as declared."""
    declared = case.declared
    assert declared is not None
    kind = next(entry.kind for entry in declared.loops if entry.name == loop)
    joined = [None if r is None else torch.zeros_like(r) for r in case.results]
    for place in range(ways):
        cut = Cut(loop, declared.size(loop), ways, inner, place)
        pairs = zip(case.tensors, declared.inputs, strict=True)
        tensors = [cut.narrow(t, dims, declared) for t, dims in pairs]
        made = case.run(tensors, cut.literals(case.op, declared))
        for whole, piece, dims in zip(joined, made, declared.outputs, strict=True):
            if whole is None or cut.place_in(whole, piece, dims, declared):
                continue
            assert whole.shape == piece.shape, f"sum of {piece.shape} for {whole.shape}"
            assert whole.dtype != torch.bool, "truth values do not add up"
            whole += piece / ways if kind == "mean" else piece
    return joined


def summed(case: Case, group: tuple[int, ...], seed: int) -> list[Tensor | None]:
    """The results as sums over two halves of the operands in `group`."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for i in group:
        tensor = case.tensors[i]
        # whole numbers, which even bfloat16 takes apart exactly
        first = (2 * torch.randn(tensor.shape, generator=generator)).round().to(tensor.dtype)
        parts[i] = (first, tensor - first)
    made = []
    for half in (0, 1):
        tensors = [parts[i][half] if i in parts else t for i, t in enumerate(case.tensors)]
        made.append(case.run(tensors, case.op.args))
    return [None if r is None else x + y for r, x, y in zip(case.results, *made, strict=True)]
