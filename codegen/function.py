"""One distinct function as a Python module: `forward` and `backward` of local shards.

Plain aten calls and explicit collectives, one per line; values are deleted after their last use, so
the memory that the plan counted is the memory that is held.
"""

from __future__ import annotations

from ..ir.lowering.forward_backward import last_uses
from ..ir.model import Function, Op
from ..ir.plan.plan import HOSTED, Plan
from .chunked_function import in_pieces
from .lower import Lowered
from .python_source import Names, literal, milliseconds, remark, taken, tupled, wrapped

# fmt: off
COMM_WORDS = {
    "all_gather": ("dim", "outer"), "reduce_scatter": ("dim", "outer"), "cut": ("dim", "outer"),
    "all_to_all": ("from_dim", "from_outer", "to_dim", "to_outer"),
    "all_reduce": (), "share": (),
}
# fmt: on
LISTS = frozenset(
    {"aten.split.Tensor", "aten.split_with_sizes.default", "aten.unbind.int", "aten.chunk.default"}
)


def function_module(lowered: Lowered, plan: Plan, paths: tuple[str, str], calls: int) -> str:
    """Source of the module; `paths` are the module paths of its first and last call."""
    local = lowered.local
    names = Names()
    values = {i.value: names.of(i.value, _wish(i.name)) for i in local.inputs}
    for output in local.outputs:
        if output.tangent is not None:
            values[output.tangent] = names.of(output.tangent, f"d_out_{output.tangent}")
    for value in range(len(local.types)):
        values.setdefault(value, names.of(value, f"v{value}"))
    after = "_piece" if lowered.divided else ""
    body = _forward(local, lowered, values, f"forward{after}")
    if local.differentiable:
        body += ["", "", *_backward(local, lowered, values, f"backward{after}")]
    if lowered.divided:
        body += ["", "", *in_pieces(lowered, values)]
    text = "\n".join(body)
    head = _docstring(lowered, plan, paths, calls)
    imports = _imports(text)
    constants = [f"RANDOM = {local.random}"]
    constants += ["HOST = True  # what forward saves waits in host memory"] * (
        lowered.variant in HOSTED
    )
    return "\n".join([*head, *imports, *constants, "", "", text, ""])


def _wish(name: str) -> str:
    parts = [p for p in name.split(".") if p]
    return "_".join(parts[-2:]) if parts else "x"


def _docstring(lowered: Lowered, plan: Plan, paths: tuple[str, str], calls: int) -> list[str]:
    where = remark(paths[0]) if calls == 1 else f"{remark(paths[0])} to {remark(paths[1])}"
    first = lowered.layers[0]
    return [
        f'"""{lowered.name}: {calls} {"call" if calls == 1 else "calls"}, {where}.',
        "",
        f"Strategy {lowered.sharding.strategy}, {lowered.variant}. Predicted per call and "
        f"micro-batch on {remark(plan.cluster.name)}:",
        f"forward {milliseconds(first.forward_seconds)}, "
        f"backward {milliseconds(first.backward_seconds)}.",
        '"""',
        "",
    ]


def _imports(text: str) -> list[str]:
    spaces = sorted(
        s for s in ("aten", "plait", "transformers") if f" {s}." in text or f"({s}." in text
    )
    lines = ["import torch", ""] if spaces or "torch." in text else []
    lines += [f"{space} = torch.ops.{space}" for space in spaces]
    return lines


def _forward(local: Function, lowered: Lowered, values: dict[int, str], name: str) -> list[str]:
    pieces = lowered.pieces
    inputs = [values[i.value] for i in local.inputs]
    results = [values[o.value] for o in local.outputs]
    saved = [values[v] for v in pieces.saved]
    kept = {o.value for o in local.outputs} | set(pieces.saved) | {i.value for i in local.inputs}
    lines = wrapped(f"def {name}(", ["comm", *inputs], "):", 0)
    lines += _body(local, pieces.forward, values, kept)
    if not local.differentiable:
        return lines + wrapped("return ", [tupled(results)], "", 4)
    return lines + wrapped("return (", [tupled(results), tupled(saved)], ")", 4)


def _backward(local: Function, lowered: Lowered, values: dict[int, str], name: str) -> list[str]:
    pieces = lowered.pieces
    held = [values[i.value] for i in local.held()]
    saved = [values[v] for v in pieces.saved]
    tangents = [values[o.tangent] for o in local.outputs if o.tangent is not None]
    kept = {i.value for i in local.held()}
    kept |= {i.gradient for i in local.inputs if i.gradient is not None}
    _once([*held, *saved, *tangents])
    lines = wrapped(f"def {name}(", ["comm", *held, "saved", *tangents], "):", 0)
    if saved:
        lines += [*taken(saved), "    saved.clear()"]
    lines += _body(local, pieces.backward, values, kept)
    gradients = [
        (i.kind, "None" if i.gradient is None else values[i.gradient]) for i in local.inputs
    ]
    first = tupled([g for kind, g in gradients if kind in ("parameter", "buffer")])
    second = tupled([g for kind, g in gradients if kind == "activation"])
    return lines + wrapped("return (", [first, second], ")", 4)


def _once(names: list[str]) -> None:
    assert len(set(names)) == len(names), f"two values share a name: {names}"


def _body(
    local: Function, ops: tuple[Op, ...], values: dict[int, str], kept: set[int]
) -> list[str]:
    lines: list[str] = []
    scope = ""
    for op, ending in zip(ops, last_uses(ops, kept), strict=True):
        if op.scope and op.scope != scope:
            scope = op.scope
            lines.append(f"    # {remark(scope)}")
        lines += statement(op, values)
        ended = [values[v] for v in dict.fromkeys(ending)]
        if ended:
            lines += wrapped("del ", ended, "", 4) if len(ended) < 12 else _deletes(ended)
    return lines


def _deletes(ended: list[str]) -> list[str]:
    return [f"    del {', '.join(ended[i : i + 12])}" for i in range(0, len(ended), 12)]


def statement(op: Op, values: dict[int, str]) -> list[str]:
    """One operator as source; `values` gives the variables of its operands and results."""
    results = ", ".join(values[r] if r >= 0 else "_" for r in op.results)
    if op.target in LISTS and len(op.results) == 1:
        results += ","
    items = [literal(a, values) for a in op.args]
    items += [f"{k}={literal(a, values)}" for k, a in op.kwargs.items()]
    target = op.target
    if target.startswith("comm."):
        words = COMM_WORDS.get(target[5:])
        if words is not None:
            items = items[:2] + [
                f"{word}={number}"
                for word, number in zip(words, op.args[2:], strict=True)
                if not (word.endswith("outer") and number == 1)
            ]
    return wrapped(f"{results} = {target}(", items, ")", 4)
