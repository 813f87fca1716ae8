"""Galvatron's first search (Miao et al., PVLDB 16, 2022) on the numbers that its artifact ships.

The artifact measured eight RTX TITAN (24 GB, PCIe): milliseconds of a layer's forward pass for one
sample, MB of its activations under every tensor degree, milliseconds of a MB on the wire. A strategy
is pipeline × tensor × data ranks, the last sharded or not; layers of a stage mix strategies by a
dynamic program over (layer, MB, strategy). Here it is written anew from these facts;
`tests/benchmarks/rivals/test_galvatron_2022.py` holds it to what the artifact's own code predicts.
MB, milliseconds and samples are the artifact's units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DEVICES = 8
CONTEXT_MB = 1024
SLOWDOWN = 1.3  # of computing and of sending, while both run
FIT = 1.1  # of the sum of a step's parts: measured steps take longer
SHARD_MARGIN = 0.025  # of states, that a shard takes beyond its share
# Milliseconds of a MB on the wire, by ranks of the pipeline, ranks of the group and whether they are
# neighbours (None: the group fills the stage).
LINK_MS: dict[tuple[int, int, bool | None], float] = {
    (1, 8, None): 0.21530878,
    (1, 4, False): 0.220138889,
    (1, 4, True): 0.226519097,
    (1, 2, False): 0.271614583,
    (1, 2, True): 0.277994792,
    (2, 4, None): 0.230750868,
    (2, 2, False): 0.224153646,
    (2, 2, True): 0.275195313,
    (4, 2, None): 0.264908854,
}


class Strategy2022(NamedTuple):
    """Ranks of pipeline, tensor and data; `near`: tensor ranks are neighbours, None where one of
    tensor and data is 1; `sharded`: ZeRO-3 over the data ranks."""

    stages: int
    tensor: int
    data: int
    near: bool | None
    sharded: bool

    def link_ms(self, ranks: int, near: bool | None) -> float:
        """Milliseconds of a MB in a group of this many ranks."""
        return 0.0 if ranks == 1 else LINK_MS[self.stages, ranks, near]

    @property
    def data_link_ms(self) -> float:
        return self.link_ms(self.data, None if self.near is None else not self.near)

    @property
    def tensor_link_ms(self) -> float:
        return self.link_ms(self.tensor, self.near)


class LayerKind(NamedTuple):
    """Equal layers: MB of their weights, milliseconds forward for a sample, MB of activations for a
    sample by tensor degree, tokens and width; `reductions`: all-reduces of activations in a step."""

    layers: int
    weights_mb: float
    forward_ms: float
    activation_mb: dict[int, float]
    tokens: int
    width: int
    reductions: int = 4


class Model2022(NamedTuple):
    """A model: kinds of layers in order, MB of states and activations (for a sample) outside of
    layers, milliseconds that a step takes more, micro-batches by samples of a replica."""

    kinds: tuple[LayerKind, ...]
    other_states_mb: float
    other_activation_mb: float
    extra_ms: float
    micro_batches: Callable[[float, Strategy2022], float]
    most_samples: int


class Plan2022(NamedTuple):
    """The best plan of a batch: samples/s as predicted, and the strategies of every stage's layers."""

    samples: int
    throughput: float
    micro_batches: float
    stages: tuple[tuple[Strategy2022, ...], ...]


def strategies() -> tuple[Strategy2022, ...]:
    """All strategies of eight devices, in the artifact's order: ties go to the first."""

    def of(stages: int, tensor: int) -> list[Strategy2022]:
        data = DEVICES // stages // tensor
        near = (False, True) if tensor > 1 and data > 1 else (None,)
        shards = (False, True) if data > 1 else (False,)
        return [Strategy2022(stages, tensor, data, n, s) for s, n in product(shards, near)]

    degrees = (1, 2, 4, 8)
    return tuple(s for p, t in product(degrees, degrees) if p * t <= DEVICES for s in of(p, t))


def layer_mb(kind: LayerKind, strategy: Strategy2022, samples: int) -> float:
    """States and activations of one layer on one device."""
    states = 4 * kind.weights_mb / strategy.tensor
    if strategy.sharded:
        states *= 1 / strategy.data + SHARD_MARGIN
    return states + kind.activation_mb[strategy.tensor] * samples / strategy.data


def layer_seconds(model: Model2022, kind: LayerKind, strategy: Strategy2022, samples: int) -> float:
    """A layer's share of a step."""
    stages, tensor, data = strategy[:3]
    forward = kind.forward_ms * samples / data / tensor
    backward = 2 * forward
    gradient_mb = 2 * (data - 1) / data * kind.weights_mb / tensor
    activation_mb = samples / data * kind.tokens * kind.width * 4 / 2**20
    reduced = 2 * (tensor - 1) / tensor * activation_mb * kind.reductions * strategy.tensor_link_ms
    share = _overlapped_share(tensor, kind.reductions > 4, stages)
    hidden_stages = 1 if strategy.sharded or tensor > 1 else stages  # only the last one's shows
    both = _overlapped(gradient_mb, strategy.data_link_ms, backward * share, hidden_stages)
    extra = model.extra_ms / 24 if data > 1 else 0.0
    total = forward + backward * (1 - share) + both + reduced + extra
    if stages > 1:
        piped = forward + backward + (0 if stages == 2 and tensor == 1 else reduced)
        rounds = model.micro_batches(samples / data, strategy)
        total += piped * ((stages + rounds - 1) / (stages * rounds) - 1)
    if strategy.sharded:
        total += gradient_mb * 0.5 * strategy.data_link_ms
    return total * FIT / 1000


def _overlapped_share(tensor: int, decoder: bool, stages: int) -> float:
    """The part of backward beside which gradients travel."""
    if stages == 2 and tensor == 2:
        return 1 / 2
    if tensor > 1 and decoder:
        return 2 / 3
    return 1 / 2 if tensor == 4 else 1.0


def _overlapped(mb: float, link_ms: float, backward: float, stages: int) -> float:
    """Milliseconds of backward and of gradients that travel beside it, each slowing the other."""
    sending, computing = mb * link_ms * SLOWDOWN, backward * SLOWDOWN
    if sending <= computing:
        return sending + backward - sending / SLOWDOWN
    rest = (sending - computing) / SLOWDOWN
    return computing + rest / stages


def other_mb(model: Model2022, samples: int, first: Strategy2022) -> float:
    """MB of the first stage outside of layers."""
    replicas = first.tensor * first.data
    return model.other_states_mb + model.other_activation_mb * samples / replicas + CONTEXT_MB


def divide(model: Model2022, stages: int, samples: int) -> tuple[int, ...]:
    """Layers per stage: equal where all are equal, else of about the same least memory, filled from
    the last stage on."""
    layers = [k for k in model.kinds for _ in range(k.layers)]
    if stages == 1 or len(model.kinds) == 1:
        return (len(layers) // stages,) * stages
    choices = [s for s in strategies() if s.stages == stages]
    least = [min(layer_mb(k, s, samples) for s in choices) for k in layers]
    first_mb = other_mb(model, samples, strategies()[0])
    mean = (sum(least) + first_mb) / stages
    filled, counts, at = [first_mb] + [0.0] * (stages - 1), [0] * stages, len(least) - 1
    for stage in reversed(range(stages)):
        while at >= 0 and not (stage and mean - filled[stage] < least[at] / 2):
            filled[stage] += least[at]
            counts[stage] += 1
            at -= 1
    if not counts[0]:
        counts[0], counts[1] = 1, counts[1] - 1
    return tuple(counts)


def change_ms(before: Strategy2022, after: Strategy2022, samples: int) -> float:
    """Milliseconds between two layers of different strategies (by the artifact's rule)."""
    grows = after.tensor > before.tensor
    both = before.near is not None and after.near is not None and before.near != after.near
    turns = both and (
        after.tensor == before.tensor
        or (before.stages == 1 and (before.tensor, after.tensor) == (4, 2))
    )
    moved = (after.tensor - 1) * 2 * samples / after.data / after.tensor if grows or turns else 0.0
    unshards = before[:4] == after[:4] and before.sharded and not after.sharded
    return 0.1 if unshards else moved * after.tensor_link_ms


class _Layers(NamedTuple):
    """Seconds and whole MB of every layer under every strategy, and seconds between strategies."""

    seconds: NDArray[np.float64]
    megabytes: NDArray[np.int64]
    changes: NDArray[np.float64]


def best_stage(layers: _Layers, first: int, budget_mb: int) -> tuple[float, list[int]] | None:
    """Seconds and strategies of a stage's layers, or None where they do not fit. `first`: number of
    the stage's first layer in the model, whose own change is free."""
    if budget_mb <= 0:
        return None
    count, choices = layers.seconds.shape
    best = np.zeros((budget_mb + 1, choices))
    origins = np.full((count, budget_mb + 1, choices), -1)
    for layer in range(count):
        then = np.full_like(best, math.inf)
        change = layers.changes if first + layer else np.zeros_like(layers.changes)
        for choice in range(choices):
            size = layers.megabytes[layer, choice]
            if size > budget_mb:
                continue
            before = best[: budget_mb + 1 - size] + change[:, choice]
            origins[layer, size:, choice] = before.argmin(1)
            then[size:, choice] = before.min(1) + layers.seconds[layer, choice]
        best = then
    choice, room = int(best[-1].argmin()), budget_mb
    if best[-1, choice] == math.inf:
        return None
    path = [choice]
    for layer in range(count - 1, 0, -1):
        room -= layers.megabytes[layer, path[0]]
        path.insert(0, int(origins[layer, room + layers.megabytes[layer, path[0]], path[0]]))
    return float(best[-1, choice]), path


def plan_of_batch(model: Model2022, samples: int, budget_mb: int) -> Plan2022 | None:
    """The fastest plan of a batch, or None where none fits."""
    plans = [_plan(model, samples, budget_mb, stages) for stages in (1, 2, 4, 8)]
    return max((p for p in plans if p), key=lambda p: p.throughput, default=None)


def _plan(model: Model2022, samples: int, budget_mb: int, stages: int) -> Plan2022 | None:
    choices = [s for s in strategies() if s.stages == stages]
    kinds = [k for k in model.kinds for _ in range(k.layers)]
    seconds = {k.weights_mb: [layer_seconds(model, k, s, samples) for s in choices] for k in kinds}
    sizes = {k.weights_mb: [math.ceil(layer_mb(k, s, samples)) for s in choices] for k in kinds}
    changes = np.array([[change_ms(a, b, samples) / 1000 for b in choices] for a in choices])
    other = math.ceil(other_mb(model, samples, choices[0]))
    total, first, stage_choices = 0.0, 0, list[tuple[Strategy2022, ...]]()
    equal = len(model.kinds) == 1
    for number, count in enumerate(divide(model, stages, samples)):
        if equal and number:  # equal stages: the first stands for all
            stage_choices.append(stage_choices[0])
            continue
        stage_kinds = kinds[first : first + count]
        layers = _Layers(
            np.array([seconds[k.weights_mb] for k in stage_kinds]),
            np.array([sizes[k.weights_mb] for k in stage_kinds]),
            changes,
        )
        best = best_stage(layers, first, budget_mb - (0 if number else other))
        if best is None:
            return None
        total += best[0] * (stages if equal else 1)
        first += count
        stage_choices.append(tuple(choices[c] for c in best[1]))
    used = {s for stage in stage_choices for s in stage}
    rounds = max(model.micro_batches(samples / s.data, s) for s in used) if stages > 1 else 1
    return Plan2022(samples, samples / total, rounds, tuple(stage_choices))


@cache
def search(name: str, gib: int) -> Plan2022 | None:
    """The plan of most samples/s over all batches, multiples of eight, until none fits."""
    best: Plan2022 | None = None
    for samples in range(8, MODELS[name].most_samples, 8):
        plan = plan_of_batch(MODELS[name], samples, gib * 1024)
        if plan is None:
            break
        best = plan if best is None or plan.throughput > best.throughput else best
    return best


def _bert(samples: float, strategy: Strategy2022) -> float:
    if strategy.stages > 1 and strategy.data == 1 and strategy.tensor > 1:
        return samples / 4
    return samples / 2 if samples < 6 else samples / 8 + 2


def _vit(samples: float, strategy: Strategy2022) -> float:
    return 1 if samples == 8 else 2


def _t5(samples: float, strategy: Strategy2022) -> float:
    return 1 if samples == 2 else 3 if strategy.stages == 8 else 2


def _swin(samples: float, strategy: Strategy2022) -> float:
    return 1 if samples <= 8 else 2 if samples < 32 else 3 if samples <= 96 else 4


def _activations(*megabytes: float) -> dict[int, float]:
    return dict(zip((1, 2, 4, 8), megabytes, strict=True))


_BERT_ACTIVATIONS = _activations(94.07, 52.475, 31.754375, 21.61171875)
_ENCODER = _activations(91.003, 54.004, 32.785, 22.8175)
_DECODER = _activations(157.755, 90.756, 56.384, 39.117)
# fmt: off
MODELS: dict[str, Model2022] = {
    "bert-huge": Model2022(
        (LayerKind(32, 76.98, 55 / 24, _BERT_ACTIVATIONS, 512, 1280),), 793, 313, 100, _bert, 256),
    "vit-huge": Model2022(
        (LayerKind(32, 76.98, 18 / 24, _activations(20.27, 12.12, 7.97, 5.93), 196, 1280),),
        45.56, 13, 0, _vit, 1024),
    "t5-large": Model2022(
        (LayerKind(24, 48.01, 35 / 24, _ENCODER, 512, 1024),
         LayerKind(24, 64.012, 65 / 24, _DECODER, 512, 1024, reductions=6)), 900, 350, 60, _t5, 64),
    "swin-huge": Model2022(
        (LayerKind(2, 4.80, 1.25, _activations(72.584, 43.318, 29.716, 22.360), 49 * 64, 320),
         LayerKind(2, 18.82, 0.8875, _activations(36.423, 21.330, 14.708, 11.237), 49 * 16, 640),
         LayerKind(26, 77.05, 0.8, _activations(18.317, 11.252, 7.561, 5.611), 49 * 4, 1280),
         LayerKind(2, 302.22, 1.225, _activations(9.183, 5.076, 3.835, 2.802), 49, 2560)),
        312, 70, 0, _swin, 256),
}
# fmt: on
