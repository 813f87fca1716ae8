"""What experts do between their two products, as text: an order of columns, then an expression.

    interleaved: mul_Tensor(add_Tensor(u, 1.0), silu_default(g))

`g` and `u` are gate and value; `halves`, `interleaved` and `single` (no gate) say which columns of the
first product they are. Functions are pointwise operators of aten. The name of an activation alone
is halves with `activation(g) * u`.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from ..torch_private import differentiating, is_operator, schema

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}
_ATEN = torch.ops.aten
# the gradient of the gate from that of the activation, and the gate
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": _ATEN.silu_backward,
    "gelu": _ATEN.gelu_backward,
    "gelu_tanh": partial(_ATEN.gelu_backward, approximate="tanh"),
    "relu": lambda upper, gate: _ATEN.threshold_backward(upper, gate, 0),
}
HALVES, INTERLEAVED, SINGLE = "halves", "interleaved", "single"
SAMPLE_ROWS = 3


def order_of(text: str) -> str:
    """The order of columns that a gate's text says."""
    return text.partition(":")[0] if ":" in text else HALVES


def gated(both: Tensor, text: str) -> Tensor:
    """Hidden units of experts from their first product: [r (c f)] -> [r f]."""
    gate, up = _columns(both, order_of(text))
    if text in ACTIVATIONS:
        return ACTIVATIONS[text](gate) * up
    return _evaluate(_parsed(text.partition(":")[2].strip()), {"g": gate, "u": up})


def gated_gradient(upper: Tensor, both: Tensor, text: str) -> Tensor:
    """The gradient of `both` from that of `gated`."""
    if text in _DERIVATIVES:
        gate, up = both.chunk(2, -1)
        to_gate = _DERIVATIVES[text](upper * up, gate)
        return torch.cat((to_gate, upper * ACTIVATIONS[text](gate)), -1)
    with differentiating():
        fresh = both.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(gated(fresh, text), fresh, upper)
    return gradient


def recorded_gate(function: Callable[[Tensor], Tensor], width: int, has_gate: bool) -> str | None:
    """The text of a user's gate over `width` columns; None where it is more than pointwise."""
    graph = make_fx(lambda both: function(both))(torch.zeros(SAMPLE_ROWS, width)).graph
    texts: dict[fx.Node, str] = {}
    orders = set() if has_gate else {SINGLE}
    for node in graph.nodes:
        if node.op == "placeholder":
            texts[node] = "g" if not has_gate else "both"
        elif node.op == "output":
            (result,) = node.all_input_nodes
            known = texts.get(result) not in (None, "both", "split") and len(orders) == 1
            return f"{orders.pop()}: {texts[result]}" if known else None
        else:
            part = _part(node, texts, width)
            if part:
                texts[node] = part.pop("text")
                orders |= set(part.values())
            elif _is_pointwise(node.target) and not _reads_both(node, texts):
                texts[node] = _call_text(node, texts)
            else:
                return None
    return None


def _part(node: fx.Node, texts: dict[fx.Node, str], width: int) -> dict[str, str]:
    """The text of a node that takes the gate's or the value's columns, and their order."""
    source = node.args[0] if node.args else None
    before = texts.get(source) if isinstance(source, fx.Node) else None
    if before == "split" and node.target is operator.getitem:
        return {"text": "gu"[int(str(node.args[1]))], "order": HALVES}
    if before != "both":
        return {}
    rest = node.args[1:]
    if node.target is torch.ops.aten.split.Tensor and rest[0] == width // 2:
        return {"text": "split"}
    if node.target is not torch.ops.aten.slice.Tensor or rest[0] not in (1, -1):
        return {}
    start, end, step = (int(str(n)) for n in (*rest[1:], *(0, width, 1)[len(rest) - 1 :]))
    end = min(end, width)
    if step == 2 and start in (0, 1) and end == width:
        return {"text": "gu"[start], "order": INTERLEAVED}
    if step == 1 and (start, end) in ((0, width // 2), (width // 2, width)):
        return {"text": "gu"[start > 0], "order": HALVES}
    return {}


def _columns(both: Tensor, order: str) -> tuple[Tensor, Tensor]:
    if order == SINGLE:
        return both, both
    if order == INTERLEAVED:
        return both[..., ::2], both[..., 1::2]
    gate, up = both.chunk(2, -1)
    return gate, up


def _is_pointwise(target: Any) -> bool:
    return (
        is_operator(target)
        and target.namespace == "aten"
        and torch.Tag.pointwise in target.tags
        and not schema(target).is_mutable
    )


def _reads_both(node: fx.Node, texts: dict[fx.Node, str]) -> bool:
    return any(texts.get(n) in ("both", "split") for n in node.all_input_nodes)


def _call_text(node: fx.Node, texts: dict[fx.Node, str]) -> str:
    packet, _, overload = str(node.target).removeprefix("aten.").rpartition(".")
    arguments = [texts[a] if isinstance(a, fx.Node) else repr(a) for a in node.args]
    arguments += [f"{name}={value!r}" for name, value in node.kwargs.items()]
    return f"{packet}_{overload}({', '.join(arguments)})"


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _evaluate(tree: ast.expr, columns: dict[str, Tensor]) -> Any:
    if isinstance(tree, ast.Name):
        return columns[tree.id]
    if not isinstance(tree, ast.Call):
        return ast.literal_eval(tree)
    assert isinstance(tree.func, ast.Name)
    function = _function(tree.func.id)
    keywords = {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
    return function(*(_evaluate(a, columns) for a in tree.args), **keywords)


@functools.lru_cache(maxsize=64)
def _function(name: str) -> Any:
    """The pointwise operator `packet_overload` of aten, whose names have underscores of their own."""
    parts = name.split("_")
    for split in range(1, len(parts)):
        packet = getattr(torch.ops.aten, "_".join(parts[:split]), None)
        overload = getattr(packet, "_".join(parts[split:]), None)
        if _is_pointwise(overload):
            return overload
    raise ValueError(f"{name} is no pointwise operator")
