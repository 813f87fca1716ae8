"""What each role lets its mesh axis do inside a function: the question that the search is asked.

role           may split                    activations between calls   weights
tp             loops of weights that no     whole                       cut in repeated layers
               value between calls walks
tp, bare sp    and the tokens of a sample   cut by tokens               cut in repeated layers
cp             the tokens of a sample       cut by tokens               whole
sp             all but the batch            cut by tokens               whole
"""

from __future__ import annotations

from ...ir.analysis.axes import Axes
from ...ir.analysis.dataflow import Flow
from ...ir.errors import PlaitError
from ...ir.layout import PARTIAL, REPLICATE, State
from ...ir.model import Function
from ...ir.plan.strategy import ROLES
from . import AxisRule
from .data_parallel import dual


class UnevenTokens(PlaitError):
    """A value's tokens cannot be split into this many equal pieces."""


def axis_rule(
    role: str,
    ways: int,
    function: Function,
    flow: Flow,
    *,
    tokens_between: bool,
    given: frozenset[int],
    summed: frozenset[int],
    must_cut: frozenset[int],
    fixed: dict[int, State],
) -> AxisRule:
    """The rule of one axis.

    `given` values follow from the batch alone and lie whole, for whoever wants a part may take it;
    `summed` outputs (the loss) are partial sums where the axis sees different tokens. Held inputs in
    `must_cut` must not lie whole if they can be cut at all, those in `fixed` lie as another function
    decided. Raises UnevenTokens.
    """
    axes, kind = flow.axes[function.name], ROLES[role]
    by_tokens = kind.sequence or tokens_between

    def between(value: int) -> State:
        shard = flow.token_shard(function, value) if by_tokens and value not in given else None
        if shard is None:
            return REPLICATE
        if axes.factors[value][shard[0]][shard[1]] % ways:
            raise UnevenTokens(f"{function.name}: tokens do not split {ways} ways")
        return shard

    states: dict[int, tuple[State, ...]] = {}
    for item in function.inputs:
        if item.kind == "parameter" and kind.operators:
            cuts = weight_cuts(axes, item.value, ways)
            states[item.value] = cuts if cuts and item.value in must_cut else (REPLICATE, *cuts)
        if item.kind == "activation":
            states[item.value] = (between(item.value),)
            if item.gradient is not None:
                states[item.gradient] = (_gradient(between(item.value), kind.sequence),)
        if item.value in fixed:
            states[item.value] = (fixed[item.value],)
    for output in function.outputs:
        state = between(output.value)
        if output.value in summed and kind.sequence:
            state = PARTIAL
        states[output.value] = (state,)
        if output.tangent is not None:
            states[output.tangent] = (_gradient(state, kind.sequence),)
    gradients = {REPLICATE: PARTIAL} if by_tokens else {}
    return AxisRule(_loops(role, function, flow, tokens_between), states, gradients)


def _gradient(state: State, sequence: bool) -> State:
    return dual(state) if sequence else state


def _loops(role: str, function: Function, flow: Flow, tokens_between: bool) -> frozenset[int]:
    axes, kind = flow.axes[function.name], ROLES[role]
    tokens = flow.tokens[function.name] if kind.sequence or tokens_between else frozenset()
    found = weight_loops(function, axes) if kind.operators else frozenset()
    if kind.heads:
        found = frozenset(axes.sizes)
    return (found | tokens) - flow.batch[function.name]


def weight_loops(function: Function, axes: Axes) -> frozenset[int]:
    """Axes that weight matrices walk and that end inside the function: heads, hidden units of an
    MLP, a vocabulary. The features that calls pass on are whole before and after, and splitting them
    in between only trades one collective for two."""
    weights = (i.value for i in function.held() if len(function.types[i.value].shape) > 1)
    between = [i.value for i in function.activations()] + [o.value for o in function.outputs]
    passed = {atom for v in between for dim in axes.atoms[v] for atom in dim}
    return frozenset(a for v in weights for dim in axes.atoms[v] for a in dim if a not in passed)


def weight_cuts(axes: Axes, value: int, ways: int) -> tuple[State, ...]:
    """Factors of a value that `ways` divides."""
    return tuple(
        (dim, part)
        for dim, parts in enumerate(axes.factors[value])
        for part, size in enumerate(parts)
        if size % ways == 0
    )
