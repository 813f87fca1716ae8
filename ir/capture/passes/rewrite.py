"""Rewrite a flat graph into plait's own operators, and remove operators without effect.

One rule per operator; it may replace the operator's results by existing or newly emitted values.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod, sqrt

from ...errors import TraceError
from ...model.model import Argument, Op, Ref
from ...model.tensor import TensorType
from ...passes import Pass
from ..graph import FlatGraph, arguments, substitute
from ..operators.shard_offsets import full_index
from ..recorded.row_parts import rejoined
from ..resolve import overload
from .masks import PositionAnalysis

ResultValues = tuple[int, ...]
RewriteRule = Callable[["Rewriter", Op], ResultValues | None]
Rules = dict[str, RewriteRule]
REWRITES: Rules = {}


def rule(*targets: str, into: Rules = REWRITES) -> Callable[[RewriteRule], RewriteRule]:
    """Register a rule for these operators."""

    def register(function: RewriteRule) -> RewriteRule:
        into.update(dict.fromkeys(targets, function))
        return function

    return register


class Rewrite(Pass[FlatGraph, FlatGraph], frozen=True):
    """Put plait's own operators in and remove operators without effect. Changes the graph."""

    name = "rewrite"

    def apply(self, value: FlatGraph) -> FlatGraph:
        graph = apply_rules(value, REWRITES)
        rejoined(graph)
        return graph


def apply_rules(graph: FlatGraph, rules: Rules) -> FlatGraph:
    """Apply every rule once, in order, and remove dead operators. Changes `graph`."""
    Rewriter(graph, rules).run()
    graph.drop_dead()
    return graph


class Rewriter:
    def __init__(self, graph: FlatGraph, rules: Rules) -> None:
        self.graph, self.rules = graph, rules
        self.types = graph.types
        self.made_by: dict[int, Op] = {}
        self.renamed: dict[int, int] = {}
        self.carrying = graph.differentiable()
        self.scope = ""

    def run(self) -> None:
        ops, self.graph.ops = self.graph.ops, []
        self.positions = PositionAnalysis(self.graph, self.made_by)
        for old in ops:
            op = substitute(old, self.renamed)
            self.scope = op.scope
            apply = self.rules.get(op.target)
            values = apply(self, op) if apply else None
            if values is None:
                self.graph.ops.append(op)
                self.made_by.update(dict.fromkeys(op.results, op))
                continue
            for result, value in zip(op.results, values, strict=False):
                if result >= 0 and result != value:
                    self.renamed[result] = value
        graph = self.graph
        graph.loss = self.renamed.get(graph.loss, graph.loss)
        graph.returned = tuple(self.renamed.get(v, v) for v in graph.returned)
        graph.updates = {n: self.renamed.get(v, v) for n, v in graph.updates.items()}

    def emit(
        self,
        target: str,
        args: tuple[Argument, ...],
        *types: TensorType,
        kwargs: dict[str, Argument] | None = None,
    ) -> ResultValues:
        results = self.graph.emit(target, args, types, kwargs, self.scope)
        self.made_by.update(dict.fromkeys(results, self.graph.ops[-1]))
        if any(v in self.carrying for v in self.graph.ops[-1].operands()):
            self.carrying.update(r for r in results if self.types[r].differentiable)
        return results

    def make(self, name: str, type_: TensorType, *args: Argument, **kwargs: Argument) -> Ref:
        """Emit `aten.<name>` with one result."""
        return Ref(self.emit(f"aten.{name}", args, type_, kwargs=kwargs)[0])

    def operand(self, op: Op, position: int) -> int | None:
        argument = op.args[position] if position < len(op.args) else None
        return argument.value if isinstance(argument, Ref) else None

    def reshaped(self, value: int, shape: tuple[int, ...]) -> int:
        type_ = self.types[value]
        if type_.shape == shape:
            return value
        return self.emit("aten.view.default", (Ref(value), shape), TensorType(shape, type_.dtype))[
            0
        ]


# fmt: off
COPIES = (
    "aten.view.default", "aten.reshape.default", "aten.expand.default", "aten._to_copy.default",
    "aten.contiguous.default", "aten.clone.default", "aten.alias.default", "aten.lift_fresh.default",
    "aten.lift_fresh_copy.default", "aten.slice.Tensor", "aten.flatten.using_ints",
)
# fmt: on


@rule(*COPIES)
def identity(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Remove copies and views that keep the tensor type."""
    source = rewriter.operand(op, 0)
    if source is not None and rewriter.types[source] == rewriter.types[op.results[0]]:
        return (source,)
    return None


@rule("aten.detach.default")
def detach(rewriter: Rewriter, op: Op) -> ResultValues | None:
    source = rewriter.operand(op, 0)
    return (source,) if source is not None and source not in rewriter.carrying else None


@rule("plait.user_backward.default")
def user_backward(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """A backward that no trainable parameter asks for."""
    results, inputs = op.args[:2]
    assert isinstance(results, tuple)
    assert isinstance(inputs, tuple)
    if any(isinstance(i, Ref) and i.value in rewriter.carrying for i in inputs):
        return None
    return tuple(r.value for r in results if isinstance(r, Ref))


@rule("aten.cat.default")
def cat(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Drop empty operands (a fresh key/value cache); a single operand is the result."""
    tensors = op.args[0]
    assert isinstance(tensors, tuple)
    nonempty = tuple(p for p in tensors if isinstance(p, Ref) and rewriter.types[p.value].elements)
    if len(nonempty) == 1:
        return (nonempty[0].value,)
    if len(nonempty) == len(tensors):
        return None
    return rewriter.emit(
        "aten.cat.default", (nonempty, *op.args[1:]), rewriter.types[op.results[0]]
    )


@rule("aten.dropout.default")
def dropout(rewriter: Rewriter, op: Op) -> ResultValues | None:
    source, p, training = op.args
    assert isinstance(source, Ref)
    assert isinstance(p, int | float)
    if not training or p == 0:
        return (source.value,)
    type_ = rewriter.types[source.value]
    index = full_index(type_.shape)
    return rewriter.emit(
        "plait.dropout.default", (source, Ref(rewriter.graph.key), float(p), 0, index), type_
    )


@rule("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Where the condition is constant true, the first operand is the result."""
    condition, chosen = rewriter.operand(op, 0), rewriter.operand(op, 1)
    if condition is None or chosen is None or rewriter.positions.constant(condition) is not True:
        return None
    type_, result = rewriter.types[chosen], rewriter.types[op.results[0]]
    if type_.dtype != result.dtype:
        return None
    if type_.shape == result.shape:
        return (chosen,)
    return rewriter.emit("aten.expand.default", (Ref(chosen), result.shape), result)


@rule("aten._grouped_mm.default")
def grouped_mm(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Grouped matrix product by the library's operator, which also computes in float32."""
    x, weight, offsets, bias, dtype = arguments(op, *(None,) * 5)
    offsets = op.kwargs.get("offs", offsets)
    plain = bias is None and dtype is None and not set(op.kwargs) - {"offs"}
    shapes = [rewriter.types[v].shape for v in op.operands()]
    fallback = "transformers.grouped_mm_fallback.default"
    if not plain or [len(s) for s in shapes] != [2, 3, 1] or overload(fallback) is None:
        return None
    return rewriter.emit(fallback, (x, weight, offsets), rewriter.types[op.results[0]])


@rule("aten.embedding.default")
def embedding(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Refuse positions that the table does not have: eager training ends with an IndexError there."""
    table, rows = rewriter.operand(op, 0), rewriter.operand(op, 1)
    known = rewriter.graph.parameters.get(table) if table is not None else None
    last = rewriter.positions.greatest(rows) if known and rows is not None else None
    if known is not None and last is not None and last >= known.type.shape[0]:
        raise TraceError(
            f"the model looks up row {last} of {known.name}, which has "
            f"{known.type.shape[0]} rows: sequences are longer than the model has positions. Give "
            "shorter ones (--seq), or a model with more positions"
        )
    return None


@rule("aten.scaled_dot_product_attention.default")
def attention(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """`plait::attention`, with its mask simplified and key heads not repeated."""
    q, k, v, bias, p, causal = arguments(op, None, None, None, None, 0.0, False)
    bias = op.kwargs.get("attn_mask", bias)
    p = op.kwargs.get("dropout_p", p)
    causal = op.kwargs.get("is_causal", causal)
    assert isinstance(q, Ref)
    assert isinstance(k, Ref)
    assert isinstance(v, Ref)
    types = rewriter.types
    shape = types[q.value].shape
    if len(shape) < 3:
        return None
    queries, keys, values = (_ranked(rewriter, x.value) for x in (q, k, v))
    keys, values = _unrepeated(rewriter, keys, values)
    type_ = types[queries]
    b, n, s, d = type_.shape
    mask = bias.value if isinstance(bias, Ref) else None
    if mask is not None:
        kind = rewriter.positions.kind(mask)
        mask, causal = (mask, causal) if kind == "other" else (None, kind == "causal")
    if mask is not None:
        mask_shape = types[mask].shape
        mask = rewriter.reshaped(mask, (*(1,) * (4 - len(mask_shape)), *mask_shape))
    t, e = types[keys].shape[2], types[values].shape[3]
    random = bool(p)
    args: tuple[Argument, ...] = (
        Ref(queries),
        Ref(keys),
        Ref(values),
        None if mask is None else Ref(mask),
        Ref(rewriter.graph.key) if random else None,
        bool(causal),
        float(op.kwargs.get("scale") or 1 / sqrt(d)),  # type: ignore[arg-type]
        float(p),  # type: ignore[arg-type]
        0,
        full_index((b, n, s, t)) if random else (),
        (),
        (),
    )
    wide = "float32" if type_.dtype in ("float16", "bfloat16") else type_.dtype
    out, _ = rewriter.emit(
        "plait.attention.default",
        args,
        TensorType((b, n, s, e), type_.dtype),
        TensorType((b, n, s), wide),
    )
    return (rewriter.reshaped(out, types[op.results[0]].shape),)


def _ranked(rewriter: Rewriter, value: int) -> int:
    """[... n s d] as [b n s d]."""
    shape = rewriter.types[value].shape
    return rewriter.reshaped(value, (prod(shape[:-3]), *shape[-3:]))


def _unrepeated(rewriter: Rewriter, keys: int, values: int) -> tuple[int, int]:
    """Key and value heads before repetition for their query heads, where both are repeated."""
    before = _before_repeat(rewriter, keys), _before_repeat(rewriter, values)
    if before[0] is None or before[1] is None:
        return keys, values
    if rewriter.types[before[0]].shape[:3] != rewriter.types[before[1]].shape[:3]:
        return keys, values
    return before[0], before[1]


def _before_repeat(rewriter: Rewriter, value: int) -> int | None:
    """[b g t d] of view(expand(unsqueeze(x, 2), [b g r t d]), [b (g r) t d]), or None."""
    types = rewriter.types
    view = rewriter.made_by.get(value)
    if view is None or view.target not in ("aten.view.default", "aten.reshape.default"):
        return None
    expanded = view.operands()[0]
    expand = rewriter.made_by.get(expanded)
    if expand is None or expand.target != "aten.expand.default":
        return None
    unsqueeze = rewriter.made_by.get(expand.operands()[0])
    if unsqueeze is None or unsqueeze.target not in ("aten.unsqueeze.default", "aten.view.default"):
        return None
    source = unsqueeze.operands()[0]
    b, g, t, d = types[source].shape if len(types[source].shape) == 4 else (0, 0, 0, 0)
    repeats = types[value].shape[1] // g if g else 0
    steps = (types[unsqueeze.results[0]].shape, types[expanded].shape, types[value].shape)
    wanted = ((b, g, 1, t, d), (b, g, repeats, t, d), (b, g * repeats, t, d))
    return source if repeats and steps == wanted else None
