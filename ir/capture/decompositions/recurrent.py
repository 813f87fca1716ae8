"""Recurrent networks as layers, each one operator over all steps (`operators/recurrence`)."""

from __future__ import annotations

from typing import NamedTuple

from ...model.model import Argument, Op, Ref
from ...model.tensor import TensorType
from ..operators.shard_offsets import full_index
from ..passes.rewrite import ResultValues, Rewriter
from .decompose import decomposition


class _Network(NamedTuple):
    """The arguments of a network: states and weights as values."""

    kind: str
    x: Ref
    states: list[Ref]
    weights: list[Ref]
    biased: bool
    layers: int
    dropout: float
    bidirectional: bool
    batch_first: bool


def _network(op: Op) -> _Network | None:
    kind = op.target.split(".")[1]
    x, states, weights, *options = op.args
    biased, layers, dropout, train, bidirectional, batch_first = options
    listed = states if isinstance(states, tuple) else (states,)
    assert isinstance(weights, tuple)
    assert isinstance(layers, int)
    assert isinstance(dropout, int | float)
    if not isinstance(x, Ref):
        return None
    rate = float(dropout) if train else 0.0
    return _Network(
        kind,
        x,
        [s for s in listed if isinstance(s, Ref)],
        [w for w in weights if isinstance(w, Ref)],
        bool(biased),
        layers,
        rate,
        bool(bidirectional),
        bool(batch_first),
    )


@decomposition(*(f"aten.{kind}.input" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")))
def recurrent(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Layer after layer, with dropout between them; None for outputs that are projected."""
    network = _network(op)
    if network is None or not _is_plain(rewriter, network):
        return None
    x = _time_first(rewriter, network.x) if network.batch_first else network.x
    last: list[list[Ref]] = []
    for layer in range(network.layers):
        if layer and network.dropout:
            x = _dropped(rewriter, x, network.dropout)
        x, finals = _layer(rewriter, network, layer, x)
        last += finals
    results = [_time_first(rewriter, x) if network.batch_first else x]
    for number in range(len(network.states)):
        type_ = rewriter.types[op.results[1 + number]] if op.results[1 + number] >= 0 else None
        kind = type_ or rewriter.types[network.states[number].value]
        results.append(rewriter.make("stack.default", kind, tuple(f[number] for f in last), 0))
    return tuple(result.value for result in results)


def _is_plain(rewriter: Rewriter, network: _Network) -> bool:
    """Samples have a dimension, and every weight is one of x or h: no projection."""
    count = network.layers * (2 if network.bidirectional else 1) * (4 if network.biased else 2)
    states = {rewriter.types[s.value].shape for s in network.states}
    return (
        len(rewriter.types[network.x.value].shape) == 3
        and len(states) == 1
        and len(network.weights) == count
    )


def _time_first(rewriter: Rewriter, x: Ref) -> Ref:
    type_ = rewriter.types[x.value]
    first, second, width = type_.shape
    swapped = TensorType((second, first, width), type_.dtype)
    return rewriter.make("transpose.int", swapped, x, 0, 1)


def _dropped(rewriter: Rewriter, x: Ref, rate: float) -> Ref:
    type_ = rewriter.types[x.value]
    args = (x, Ref(rewriter.graph.key), rate, 0, full_index(type_.shape))
    return Ref(rewriter.emit("plait.dropout.default", args, type_)[0])


def _layer(
    rewriter: Rewriter, network: _Network, layer: int, x: Ref
) -> tuple[Ref, list[list[Ref]]]:
    """The outputs of a layer, and the last states of each of its directions."""
    directions = 2 if network.bidirectional else 1
    outputs, finals = list[Ref](), list[list[Ref]]()
    for direction in range(directions):
        number = layer * directions + direction
        output, states = _direction(rewriter, network, number, x, direction == 1)
        outputs.append(output)
        finals.append(states)
    if directions == 1:
        return outputs[0], finals
    steps, samples, width = rewriter.types[outputs[0].value].shape
    both = TensorType((steps, samples, 2 * width), rewriter.types[outputs[0].value].dtype)
    return rewriter.make("cat.default", both, tuple(outputs), 2), finals


def _direction(
    rewriter: Rewriter, network: _Network, number: int, x: Ref, reverse: bool
) -> tuple[Ref, list[Ref]]:
    per = 4 if network.biased else 2
    weights: list[Argument] = list(network.weights[number * per : (number + 1) * per])
    weights += [None] * (4 - per)
    states = [_state(rewriter, state, number) for state in network.states]
    steps, samples = rewriter.types[x.value].shape[:2]
    state = rewriter.types[states[0].value]
    out = TensorType((steps, samples, state.shape[1]), state.dtype)
    args = (x, states[0], states[-1], *weights, None, network.kind, reverse)
    made = rewriter.emit("plait.recurrence.default", args, out, state, state)
    return Ref(made[0]), [Ref(v) for v in made[1 : 1 + len(states)]]


def _state(rewriter: Rewriter, state: Ref, number: int) -> Ref:
    type_ = rewriter.types[state.value]
    return rewriter.make("select.int", TensorType(type_.shape[1:], type_.dtype), state, 0, number)
