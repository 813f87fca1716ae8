"""One distinct function as a Python module: `forward` and `backward` of local shards.

Plain aten calls and explicit collectives, one per line; values are deleted after their last use, so
live memory equals the plan's count.
"""

from __future__ import annotations

from ..ir.analysis.liveness import last_uses
from ..ir.model.model import BackwardParts, Function, Op
from ..ir.ops.contiguous import contiguous_operands
from ..ir.plan.plan import Plan
from .chunked_function import chunked_source
from .lower import LoweredFunction
from .python_source import (
    VariableNames,
    comm_method,
    comment_text,
    literal,
    milliseconds,
    return_statement,
    tuple_source,
    unpack_saved,
    wrapped,
)

# fmt: off
COLLECTIVE_KEYWORDS = {
    "all_gather": ("dim", "outer"), "reduce_scatter": ("dim", "outer"), "cut": ("dim", "outer"),
    "all_to_all": ("from_dim", "from_outer", "to_dim", "to_outer"),
    "all_reduce": (), "share": (),
    "part": ("of", "dim", "outer"), "place": ("index", "of", "dim", "outer"),
}
# fmt: on
LIST_OPERATORS = frozenset(
    {"aten.split.Tensor", "aten.split_with_sizes.default", "aten.unbind.int", "aten.chunk.default"}
)


def function_module(
    lowered: LoweredFunction, plan: Plan, paths: tuple[str, str], calls: int
) -> str:
    """Source of the module; `paths` are the module paths of its first and last call."""
    local = lowered.local
    names = VariableNames()
    values = {i.value: names.of(i.value, _variable_name(i.name)) for i in local.inputs}
    for output in local.outputs:
        if output.tangent is not None:
            values[output.tangent] = names.of(output.tangent, f"d_out_{output.tangent}")
    for value in range(len(local.types)):
        values.setdefault(value, names.of(value, f"v{value}"))
    after = "_chunk" if lowered.chunked else ""
    body = _forward(local, lowered, values, f"forward{after}")
    if lowered.parts is not None:
        body += ["", "", *_backward_inputs(local, lowered, lowered.parts, values)]
        body += ["", "", *_backward_weights(local, lowered.parts, values)]
    elif local.differentiable:
        body += ["", "", *_backward(local, lowered, values, f"backward{after}")]
    if lowered.chunked:
        body += ["", "", *chunked_source(lowered, values)]
    text = "\n".join(body)
    head = _docstring(lowered, plan, paths, calls)
    imports = _imports(text)
    constants = [f"RANDOM = {local.random}"]
    constants += ["HOST = True  # saved activations are offloaded to host memory"] * (
        lowered.memory.on_host
    )
    if lowered.parts is not None and lowered.parts.reads_states(local):
        constants.append("WEIGHTS_READ_STATES = True  # so they are arguments of backward_weights")
    return "\n".join([*head, *imports, *constants, "", "", text, ""])


def _variable_name(name: str) -> str:
    parts = [p for p in name.split(".") if p]
    return "_".join(parts[-2:]) if parts else "x"


def _docstring(
    lowered: LoweredFunction, plan: Plan, paths: tuple[str, str], calls: int
) -> list[str]:
    where = (
        comment_text(paths[0])
        if calls == 1
        else f"{comment_text(paths[0])} to {comment_text(paths[1])}"
    )
    first = lowered.layers[0]
    return [
        f'"""{lowered.name}: {calls} {"call" if calls == 1 else "calls"}, {where}.',
        "",
        f"Strategy {lowered.sharding.strategy}, {lowered.memory}. Predicted per call and "
        f"micro-batch on {comment_text(plan.cluster.name)}:",
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


def _forward(
    local: Function, lowered: LoweredFunction, values: dict[int, str], name: str
) -> list[str]:
    halves = lowered.halves
    inputs = [values[i.value] for i in local.inputs]
    results = [values[o.value] for o in local.outputs]
    saved = [values[v] for v in halves.saved]
    live_out = (
        {o.value for o in local.outputs} | set(halves.saved) | {i.value for i in local.inputs}
    )
    lines = wrapped(f"def {name}(", ["comm", *inputs], "):", 0)
    lines += _body(local, halves.forward, values, live_out)
    if not local.differentiable:
        return lines + return_statement(results)
    return lines + wrapped("return (", [tuple_source(results), tuple_source(saved)], ")", 4)


def _backward(
    local: Function, lowered: LoweredFunction, values: dict[int, str], name: str
) -> list[str]:
    live_out = {i.value for i in local.state_inputs()}
    live_out |= {i.gradient for i in local.inputs if i.gradient is not None}
    lines = _backward_head(local, lowered, values, name)
    lines += _body(local, lowered.halves.backward, values, live_out)
    first, second = (tuple_source(g) for g in _gradients(local, values))
    return lines + wrapped("return (", [first, second], ")", 4)


def _backward_head(
    local: Function, lowered: LoweredFunction, values: dict[int, str], name: str
) -> list[str]:
    """The signature of a backward, and its saved values as variables."""
    states = [values[i.value] for i in local.state_inputs()]
    saved = [values[v] for v in lowered.halves.saved]
    tangents = [values[o.tangent] for o in local.outputs if o.tangent is not None]
    _check_distinct([*states, *saved, *tangents])
    lines = wrapped(f"def {name}(", ["comm", *states, "saved", *tangents], "):", 0)
    return lines + ([*unpack_saved(saved), "    saved.clear()"] if saved else [])


def _gradients(local: Function, values: dict[int, str]) -> tuple[list[str], list[str]]:
    """Variables of the gradients of state tensors and of activations; `None` where there is none."""
    states, activations = list[str](), list[str]()
    for item in local.inputs:
        gradient = "None" if item.gradient is None else values[item.gradient]
        if item.kind in ("parameter", "buffer"):
            states.append(gradient)
        elif item.kind == "activation":
            activations.append(gradient)
    return states, activations


def _backward_inputs(
    local: Function, lowered: LoweredFunction, parts: BackwardParts, values: dict[int, str]
) -> list[str]:
    """The part of backward that the call before waits for; it gives what the other part reads too."""
    _, gradients = _gradients(local, values)
    live_out = {i.gradient for i in local.activations() if i.gradient is not None}
    live_out |= {i.value for i in local.state_inputs()} | set(parts.saved)
    lines = _backward_head(local, lowered, values, "backward_inputs")
    lines += _body(local, parts.inputs, values, live_out)
    saved = tuple_source([values[v] for v in parts.saved])
    return lines + wrapped("return (", [tuple_source(gradients), saved], ")", 4)


def _backward_weights(local: Function, parts: BackwardParts, values: dict[int, str]) -> list[str]:
    """The part of backward that nothing waits for."""
    states, (gradients, _) = local.state_inputs(), _gradients(local, values)
    saved = [values[v] for v in parts.saved]
    live_out = {i.value for i in states}
    live_out |= {i.gradient for i in states if i.gradient is not None}
    read = [values[i.value] for i in states] if parts.reads_states(local) else []
    lines = wrapped("def backward_weights(", ["comm", *read, "saved"], "):", 0)
    lines += [*unpack_saved(saved), "    saved.clear()"] if saved else []
    lines += _body(local, parts.weights, values, live_out)
    return lines + return_statement(gradients)


def _check_distinct(names: list[str]) -> None:
    assert len(set(names)) == len(names), f"two values share a name: {names}"


def _body(
    local: Function, ops: tuple[Op, ...], values: dict[int, str], live_out: set[int]
) -> list[str]:
    lines: list[str] = []
    scope = ""
    for op, ending in zip(ops, last_uses(ops, live_out), strict=True):
        if op.scope and op.scope != scope:
            scope = op.scope
            lines.append(f"    # {comment_text(scope)}")
        lines += statement(op, values)
        ended = [values[v] for v in dict.fromkeys(ending)]
        if ended:
            lines += wrapped("del ", ended, "", 4) if len(ended) < 12 else _deletes(ended)
    return lines


def _deletes(ended: list[str]) -> list[str]:
    return [f"    del {', '.join(ended[i : i + 12])}" for i in range(0, len(ended), 12)]


def statement(op: Op, values: dict[int, str], device: str = "comm.device") -> list[str]:
    """One operator as source; `values` gives the variables of its operands and results, `device` is
    where an operator without tensors makes its own."""
    results = ", ".join(values[r] if r >= 0 else "_" for r in op.results)
    if op.target in LIST_OPERATORS and len(op.results) == 1:
        results += ","
    dense = {v: f"{values[v]}.contiguous()" for v in contiguous_operands(op)}
    values = {**values, **dense} if dense else values
    items = [literal(a, values) for a in op.args]
    items += [f"{k}={literal(a, values)}" for k, a in op.kwargs.items()]
    if op.target.startswith("aten.") and not op.operands():
        items.append(f"device={device}")
    target = op.target
    if target.startswith("comm."):
        kind, fixed = target[5:], 2
        target = f"comm.{comm_method(kind)}"
        if kind == "start":
            kind, fixed = str(op.args[0]), 3
        keywords = COLLECTIVE_KEYWORDS.get(kind)
        if keywords is not None:
            items = items[:fixed] + [
                f"{keyword}={number}"
                for keyword, number in zip(keywords, op.args[fixed:], strict=True)
                if not (keyword.endswith("outer") and number == 1)
            ]
    return wrapped(f"{results} = {target}(", items, ")", 4)
