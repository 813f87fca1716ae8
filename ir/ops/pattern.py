"""Patterns for operators of any rank: words for the dims of a shape, and literals at a site."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from ..model.loops import Dim, Loop, Loops, Site, Work
from ..model.model import Argument, Ref

DimNames = list[str]


def dim_names(shape: Sequence[int], letter: str = "i", whole: Collection[int] = ()) -> DimNames:
    """One loop per dim, `i0 i1! 1`: dims in `whole` are marked, size 1 carries no loop."""
    return [
        "1" if size == 1 else f"{letter}{dim}{'!' * (dim in whole)}"
        for dim, size in enumerate(shape)
    ]


def aligned(shape: Sequence[int], full: DimNames) -> DimNames:
    """Dim names of a shape that broadcasts against dims `full`, aligned on the right."""
    tail = full[len(full) - len(shape) :]
    return ["1" if size == 1 else dim_name for size, dim_name in zip(shape, tail, strict=True)]


def joint(shapes: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The shape that shapes broadcast to."""
    listed = list(shapes)
    rank = max(map(len, listed), default=0)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in listed]
    return tuple(max(sizes) for sizes in zip(*padded, strict=True))


def pattern(inputs: Iterable[DimNames], outputs: Iterable[DimNames]) -> str:
    sides = (", ".join(f"[{' '.join(dims)}]" for dims in side) for side in (inputs, outputs))
    return " -> ".join(sides)


def present(site: Site, arguments: Iterable[DimNames | None]) -> list[DimNames]:
    """Dim names of the positional arguments that are tensors; optional ones may be left out."""
    return [
        dims
        for argument, dims in zip(site.op.args, arguments, strict=False)
        if isinstance(argument, Ref) and dims is not None
    ]


def dims(text: DimNames) -> tuple[Dim, ...]:
    """The dims that words stand for: `["(a b!)", "1"]` is `(("a", "b"), ())`."""
    split = (dim_name.strip("()").replace("!", "").split() for dim_name in text)
    return tuple(tuple(name for name in names if name != "1") for names in split)


def literal(site: Site, position: int, default: Argument = None) -> Argument:
    args = site.op.args
    return args[position] if position < len(args) else default


def integer(site: Site, position: int, default: int = 0) -> int:
    value = literal(site, position, default)
    return value if isinstance(value, int) else default


def integers(site: Site, position: int) -> tuple[int, ...]:
    """A list argument, or a single integer as a list; missing and None give ()."""
    value = literal(site, position)
    if isinstance(value, int):
        return (value,)
    return tuple(v for v in value if isinstance(v, int)) if isinstance(value, tuple) else ()


def is_tensor(site: Site, position: int) -> bool:
    return isinstance(literal(site, position), Ref)


def is_float(site: Site) -> bool:
    """Whether every operand and result is real or complex, so that sums may pass through."""
    types = (*site.operands, *site.results)
    return all(type_ is None or type_.differentiable for type_ in types)


def built(
    site: Site,
    inputs: Sequence[DimNames],
    outputs: Sequence[DimNames],
    sizes: Mapping[str, int],
    *,
    linear: tuple[tuple[int, ...], ...] = (),
    shapes: tuple[tuple[int, tuple[Dim, ...]], ...] = (),
    work: Work = "move",
) -> Loops:
    """A declaration without arithmetic whose loop sizes the tensors alone do not determine.

    Loops of `sizes` that no tensor walks are whole: literals are multiples of them.
    """
    text = pattern(inputs, outputs)
    named = set(re.findall(r"[a-z]\w*", text))
    whole = {name.rstrip("!") for name in re.findall(r"\w+!", text)}
    declared = tuple(
        Loop(name, size, "whole" if name in whole or name not in named else "split")
        for name, size in sizes.items()
    )
    tensors = [tuple(dims(tensor) for tensor in side) for side in (inputs, outputs)]
    return Loops(declared, tensors[0], tensors[1], linear, shapes, work, 0.0)
