"""Text of shardings, which `parse_sharding` reads back: who splits what, one operator a line.

    sharding gpt2_block "dp=2,tp=2" on micro=1 dp=2 tp=2
      input w : S(1.0) over tp gradient P over micro dp, S(1.0) over tp
      input x : S(0.0) over micro dp gradient S(0.0) over micro dp, P over tp
      mlp.c_fc mm  : m over micro dp, n over tp    # [m k], [k n] -> [m n]   S(0.0) R, R S(1.0)…
      mlp.act gelu : d0 over micro dp, d1 over tp  # [d0 d1] -> [d0 d1]   S(0.0) S(1.0) -> S(0.0) S(1.0)
      loss sum     : replicate
      output %9 : S(0.0) over micro dp tangent S(0.0) over micro dp

Axes that are not named replicate. `S(1.0)` shards dimension 1 along its factor 0, `P` is a partial sum.
      mlp.c_fc mm  : m over micro dp, n over tp    # [m k], [k n] -> [m n]   S(0.0) R, R S(1.0) -> …
the placements of its operands and results along the axes of more than one device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..analysis.axes import Axes, OpAxes
from ..analysis.bound_sharding import BoundSharding
from ..errors import UsageError
from ..model.layout import REPLICATE, AxisPlacement, Layout
from ..model.loops import Dims, Loops
from ..model.mesh import Axis, Mesh
from ..model.model import Function, Op
from ..plan.sharding import REPLICATED, Boundary, OpSplit, Sharding
from ..plan.strategy import Strategy, parse_strategy
from .lexer import RESERVED, TextReader, located, name_text
from .structure import print_value, read_value

ALL = "replicate"
R, P, S = "R", "P", "S"  # letters of placements
COLUMN = 44  # widest column that others are aligned with
LABEL_RESERVED = frozenset({*RESERVED, "input", "output", "sharding", "amounts"})
AXIS_RESERVED = frozenset({*RESERVED, "gradient", "tangent"})
SPLIT_RESERVED = frozenset({*RESERVED, ALL, "split", "partial", "position"})


def print_sharding(
    sharding: Sharding, function: Function | None = None, axes: Axes | None = None
) -> str:
    """A sharding in full. With its function, lines begin with names; with its axes, comments say the
    loops of every operator and the placements of its operands and results."""
    mesh = sharding.mesh
    head = f"sharding {name_text(sharding.function)} {strategy_text(sharding.strategy)}"
    lines = [f"{head} on {mesh_text(mesh)}".rstrip()]
    lines += (f"  {line}" for line in _boundary(sharding, function, "input"))
    rows = [
        [
            _label(function.ops[number]) if function else "op",
            _over(list(map(_split, splits)), mesh, ALL),
            _comment(axes.ops[number], splits, mesh) if axes else "",
        ]
        for number, splits in enumerate(sharding.op_splits)
    ]
    labels, splits = (min(max((len(r[i]) for r in rows), default=0), COLUMN) for i in (0, 1))
    for label, split, comment in rows:
        lines.append(f"  {label:<{labels}} : {split:<{splits}}  {comment}".rstrip())
    lines += (f"  {line}" for line in _boundary(sharding, function, "output"))
    return "\n".join(lines)


def print_bound_sharding(bound: BoundSharding) -> str:
    """A bound sharding as the sharding that it stands for, of no strategy of its own."""
    splits = tuple(tuple(option.name for option in options) for options in bound.strategies)
    sharding = Sharding(bound.function.name, Strategy(()), bound.mesh, splits, bound.boundary)
    return print_sharding(sharding, bound.function, bound.axes)


def strategy_text(strategy: Strategy) -> str:
    """A strategy as `read_strategy` takes it back: `"dp=2,tp=2"`, or its fields where that says less."""
    text = str(strategy) if strategy.axes else ""
    try:
        readable = parse_strategy(text) == strategy
    except UsageError:
        readable = False
    return name_text(text) if readable else print_value(strategy)


def mesh_text(mesh: Mesh) -> str:
    """`dp=2 tp=2`."""
    return " ".join(f"{name_text(axis.name)}={axis.size}" for axis in mesh.axes)


def layout_text(layout: Layout, mesh: Mesh) -> str:
    """`S(0.0) over micro dp, P over tp`; `R` where all axes replicate."""
    texts = [None if p == REPLICATE else placement_text(p) for p in layout]
    return _over(texts, mesh, R)


def _over(texts: Sequence[str | None], mesh: Mesh, nothing: str) -> str:
    """`TEXT over AXIS …` for all texts of axes; `nothing` where there are none."""
    axes: dict[str, list[str]] = {}
    for text, axis in zip(texts, mesh.axes, strict=True):
        if text is not None:
            axes.setdefault(text, []).append(name_text(axis.name, AXIS_RESERVED))
    return ", ".join(f"{text} over {' '.join(names)}" for text, names in axes.items()) or nothing


def placement_text(placement: AxisPlacement) -> str:
    """`R`, `P`, `S(1.0)`."""
    return placement if isinstance(placement, str) else "S({}.{})".format(*placement)


def _label(op: Op) -> str:
    target = op.target.removeprefix("aten.").removeprefix("plait.").removesuffix(".default")
    return " ".join(name_text(part, LABEL_RESERVED) for part in (op.scope, target) if part)


def _boundary(sharding: Sharding, function: Function | None, kind: str) -> Iterator[str]:
    """Lines of the inputs, or of the outputs, with the layouts of their gradients."""
    boundary, mesh = sharding.boundary, sharding.mesh
    if kind == "input":
        names = [i.name for i in function.inputs] if function else []
        layouts, others, mark = boundary.inputs, boundary.gradients, "gradient"
    else:
        names = [f"%{o.value}" for o in function.outputs] if function else []
        layouts, others, mark = boundary.outputs, boundary.tangents, "tangent"
    for number, (layout, other) in enumerate(zip(layouts, others, strict=True)):
        label = f" {_name(names[number])}" if names else ""
        suffix = "" if other is None else f" {mark} {layout_text(other, mesh)}"
        yield f"{kind}{label} : {layout_text(layout, mesh)}{suffix}"


def _name(text: str) -> str:
    return text if text.startswith("%") else name_text(text)


def _split(split: OpSplit) -> str | None:
    """`n`, `tokens+experts`, `partial 0 1`, `position 3`; None for a replicated operator."""
    if split == REPLICATED:
        return None
    if split.position is not None:
        return f"position {split.position}"
    if split.partial is not None:
        return " ".join(["partial", *map(str, split.partial)])
    factors = "+".join(map(str, split.factors))
    return f"split {factors}" if split.factors[0].loop in SPLIT_RESERVED else factors


def _comment(known: OpAxes, splits: Sequence[OpSplit], mesh: Mesh) -> str:
    """The loops of an operator, and how its operands and results lie along axes of several devices."""
    if known.declared is None:
        return "# opaque"
    axes = zip(splits, mesh.axes, strict=True)
    chosen = [known.option(split) for split, axis in axes if axis.size > 1]
    options = [option for option in chosen if option is not None]
    loops = f"# {loops_text(known.declared)}"
    if len(options) < len(chosen) or not options:
        return loops
    inputs, outputs = (
        ", ".join(" ".join(map(placement_text, column)) for column in zip(*rows, strict=True))
        for rows in ([o.inputs for o in options], [o.outputs for o in options])
    )
    return f"{loops}   {inputs} -> {outputs}".replace("  ->", " ->")


def loops_text(declared: Loops) -> str:
    """`[m k], [k n] -> [m n]`."""
    return f"{_dims(declared.inputs)} -> {_dims(declared.outputs)}".strip()


def _dims(tensors: tuple[Dims, ...]) -> str:
    def dim(loops: tuple[str, ...]) -> str:
        return f"({' '.join(loops)})" if len(loops) > 1 else "".join(loops) or "1"

    return ", ".join(f"[{' '.join(map(dim, dims))}]" for dims in tensors)


def parse_sharding(text: str) -> Sharding:
    """Read what `print_sharding` wrote; raises FileError with line and column."""
    reader = TextReader(text)
    sharding = read_sharding(reader)
    reader.end()
    return sharding


def read_sharding(reader: TextReader) -> Sharding:
    """Read a sharding up to the next thing that is none of its lines."""
    reader.expect("sharding")
    function = reader.name("a function")
    strategy = read_strategy(reader)
    reader.expect("on")
    mesh = read_mesh(reader)
    reader.end_line()
    op_splits = list[tuple[OpSplit, ...]]()
    layouts: dict[str, list[Layout]] = {"input": [], "output": []}
    others: dict[str, list[Layout | None]] = {"input": [], "output": []}
    while reader.next.kind != "end" and not reader.sees("sharding", "amounts"):
        kind = "op"
        if reader.sees("input", "output"):
            kind = reader.take().text
        while not reader.accept(":"):
            if reader.next.kind in ("newline", "end"):
                reader.fail("':'")
            reader.take()
        if kind == "op":
            op_splits.append(_read_splits(reader, mesh))
        else:
            layouts[kind].append(read_layout(reader, mesh))
            second = reader.accept("gradient" if kind == "input" else "tangent")
            others[kind].append(read_layout(reader, mesh) if second else None)
        reader.end_line()
    boundary = Boundary(
        tuple(layouts["input"]),
        tuple(others["input"]),
        tuple(layouts["output"]),
        tuple(others["output"]),
    )
    return Sharding(function, strategy, mesh, tuple(op_splits), boundary)


def read_strategy(reader: TextReader) -> Strategy:
    """A strategy as `strategy_text` writes it."""
    if reader.sees("{"):
        strategy: Strategy = read_value(reader, Strategy)
        return strategy
    token = reader.next
    try:
        return parse_strategy(reader.name("a strategy"))
    except UsageError as error:
        raise located(token.line, token.column, str(error)) from None


def read_mesh(reader: TextReader) -> Mesh:
    """`dp=2 tp=2` up to the end of the line."""
    axes = list[Axis]()
    while reader.next.kind != "newline":
        name = reader.name("an axis")
        reader.expect("=")
        axes.append(Axis(name, reader.integer("a size")))
    return Mesh(tuple(axes))


def read_layout(reader: TextReader, mesh: Mesh) -> Layout:
    """A layout as `layout_text` writes it."""
    placements: list[AxisPlacement] = [REPLICATE] * len(mesh.axes)
    if reader.accept(R):
        return tuple(placements)
    while True:
        placement = _read_placement(reader)
        for axis in _read_axes(reader, mesh):
            placements[axis] = placement
        if not reader.accept(","):
            return tuple(placements)


def _read_placement(reader: TextReader) -> AxisPlacement:
    if reader.accept(P):
        return "P"
    if not reader.accept(S):
        reader.fail("R, P or S(dim.factor)")
    reader.expect("(")
    dim, point, factor = reader.next.text.partition(".")
    if reader.next.kind != "number" or not (point and dim.isdecimal() and factor.isdecimal()):
        reader.fail("dim.factor")
    reader.take()
    reader.expect(")")
    return int(dim), int(factor)


def _read_axes(reader: TextReader, mesh: Mesh) -> list[int]:
    """The numbers of the axes in `over micro dp`."""
    reader.expect("over")
    names = [axis.name for axis in mesh.axes]
    axes = list[int]()
    while not axes or (
        reader.next.kind in ("word", "string") and not reader.sees("gradient", "tangent")
    ):
        at = reader.at
        name = reader.name("an axis")
        if name not in names:
            reader.at = at
            reader.fail(f"an axis of the mesh ({', '.join(names)})")
        axes.append(names.index(name))
    return axes


def _read_splits(reader: TextReader, mesh: Mesh) -> tuple[OpSplit, ...]:
    splits = [REPLICATED] * len(mesh.axes)
    if reader.accept(ALL):
        return tuple(splits)
    while True:
        split = _read_split(reader)
        for axis in _read_axes(reader, mesh):
            splits[axis] = split
        if not reader.accept(","):
            return tuple(splits)


def _read_split(reader: TextReader) -> OpSplit:
    token = reader.next
    if reader.accept("position"):
        text = f"#{reader.integer('the number of a strategy')}"
    elif reader.accept("partial"):
        numbers = list[int]()
        while reader.next.kind == "number":
            numbers.append(reader.integer("the number of an operand"))
        text = f"partial {','.join(map(str, numbers))}".rstrip()
    else:
        reader.accept("split")
        factors = [reader.name("a loop")]
        while reader.accept("+"):
            factors.append(reader.name("a loop"))
        text = f"split {'+'.join(factors)}"
    try:
        return OpSplit.parse(text)
    except ValueError as error:
        raise located(token.line, token.column, str(error)) from None
