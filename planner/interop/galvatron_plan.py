"""Converts plans to Galvatron's form and back to pins; raises for what the other cannot express.

    zero3=2,tp=4,sp  recompute      2 replicas with ZeRO-3, 4 tensor ranks, checkpoint
    dp=8 or zero2=8                 8 replicas of the file's default type
    zero3=2,sp=4                    4 ranks of Ulysses

Galvatron's layers are the calls of the most frequent function; calls before and after them are
its embedding and head, which have one strategy and never recompute.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, groupby
from typing import NamedTuple

from ...ir.errors import UsageError
from ...ir.model.model import Model
from ...ir.plan.flat_shard import FULL
from ...ir.plan.memory_action import BASIC_ACTIONS, KEEP, RECOMPUTE, MemoryAction
from ...ir.plan.plan import Plan
from ...ir.plan.strategy import ROLES, SEQUENCE_FLAG, Strategy
from ..question.pins import Pin
from .galvatron_file import GalvatronPlan
from .galvatron_strategy import GalvatronBatch, GalvatronStrategy
from .layer_span import layer_span, layer_span_of_model

WHOSE = "Galvatron's"
DEFAULTS = {"ddp": "dp", "zero2": "zero2", "zero3": "zero3"}  # Galvatron's names of roles


class _Call(NamedTuple):
    name: str
    function: str
    strategy: Strategy
    memory: MemoryAction


def to_galvatron(plan: Plan) -> GalvatronPlan:
    """Galvatron's form of a plan; raises UsageError naming what it cannot express."""
    if plan.schedule != "1f1b":
        raise UsageError(f"Galvatron's file has no schedule {plan.schedule}")
    if plan.compression:
        raise UsageError("Galvatron's file has no compressed communication")
    calls = dict(_calls(plan))
    span = [(i, call.function) for i, call in calls.items()]
    first, last, _ = layer_span(span, WHOSE)
    layers = [call for i, call in calls.items() if first <= i < last]
    ends = [call for i, call in calls.items() if not first <= i < last] or layers[:1]
    if len({call.strategy for call in ends}) > 1:
        raise UsageError(
            f"Galvatron's file has one strategy for embedding and head, not {ends[0].strategy} for "
            f"{ends[0].name} and {ends[-1].strategy} for {ends[-1].name}"
        )
    default_roles = {r for call in (*ends, *layers) for r in _batch_roles(call)[:1]} - {"zero3"}
    if len(default_roles) > 1:
        both = " and ".join(sorted(default_roles))
        raise UsageError(f"Galvatron's file has one role beside zero3, not {both}")
    default = next(name for name, role in DEFAULTS.items() if role in (*default_roles, "zero2"))
    return GalvatronPlan(
        GalvatronBatch(plan.global_batch, plan.micro_batches),
        tuple(_galvatron(call, call.memory == RECOMPUTE) for call in layers),
        tuple(sum(s.contains(i) for i in range(first, last)) for s in plan.stages),
        _galvatron(ends[0], recompute=False),
        default,
    )


def _calls(plan: Plan) -> Iterator[tuple[int, _Call]]:
    """Name, function, strategy and memory action of calls that run for every micro-batch."""
    for layers in (layers for layers in plan.layers if not layers.batch_only):
        sharding = plan.shardings[layers.sharding]
        for i in range(layers.first, layers.last):
            name = plan.calls[i] if i < len(plan.calls) and plan.calls[i] else sharding.function
            call = _Call(name, sharding.function, sharding.strategy, layers.memory)
            if call.memory not in BASIC_ACTIONS:
                raise UsageError(
                    f"{name}: Galvatron's file has no memory action {str(layers.memory)!r}"
                )
            yield i, call


def _batch_roles(call: _Call) -> list[str]:
    """The roles that split the batch; at most one."""
    roles = [name for name, size in call.strategy.axes if ROLES[name].batch and size > 1]
    if len(roles) > 1 or not set(roles) <= set(DEFAULTS.values()):
        raise UsageError(
            f"{call.name}: of what splits the batch Galvatron's file has one of dp, zero2 and "
            f"zero3, not {call.strategy}"
        )
    return roles


def _galvatron(call: _Call, recompute: bool) -> GalvatronStrategy:
    strategy, roles = call.strategy, _batch_roles(call)
    role = roles[0] if roles else "dp"
    tensor, ulysses = strategy.size("tp"), strategy.size(SEQUENCE_FLAG)
    galvatron = GalvatronStrategy(
        strategy.stages,
        max(tensor, ulysses),
        strategy.size(role),
        role == "zero3",
        recompute,
        ulysses > 1,
    )
    axes = [axis for axis in strategy.axes if axis[1] > 1 or axis == (SEQUENCE_FLAG, 1)]
    if axes != list(strategy_of(galvatron, role).axes) or strategy.fraction != FULL:
        raise UsageError(
            f"{call.name}: Galvatron's file has stages, replicas, then tp=N,sp or sp=N, "
            f"not {strategy}"
        )
    return galvatron


def strategy_of(strategy: GalvatronStrategy, default: str) -> Strategy:
    """Plait's strategy; `default`: role of replicas that do not use ZeRO-3."""
    role = "zero3" if strategy.zero3 else default
    axes = [("pp", strategy.stages), (role, strategy.replicas)]
    if strategy.ranks > 1:
        axes += [(SEQUENCE_FLAG, strategy.ranks)] if strategy.ulysses else [("tp", strategy.ranks)]
    sizes = tuple(axis for axis in axes if axis[1] > 1)
    return Strategy((*sizes, (SEQUENCE_FLAG, 1)) if strategy.tensor_ranks > 1 else sizes)


def pins_of(plan: GalvatronPlan, model: Model) -> tuple[Pin, ...]:
    """Pins for every call of a model; raises UsageError where the numbers of layers differ."""
    first, last, function = layer_span_of_model(model, WHOSE)
    if last - first != len(plan.layers):
        raise UsageError(
            f"Galvatron's plan has {len(plan.layers)} layers, {model.name} has {last - first} of "
            f"{function}"
        )
    default, start = DEFAULTS[plan.default], 0
    pins = [Pin("*", strategy_of(plan.ends, default), KEEP)]
    for layer, run in groupby(plan.layers):
        end = start + len(list(run))
        memory = RECOMPUTE if layer.recompute else KEEP
        pins.append(Pin(f"{function}[{start}-{end - 1}]", strategy_of(layer, default), memory))
        start = end
    return tuple(pins)


def bounds_of(plan: GalvatronPlan, model: Model) -> tuple[int, ...]:
    """First calls of the plan's stages in a model, and its number of calls."""
    first = layer_span_of_model(model, WHOSE).first
    starts = accumulate(plan.division[:-1], initial=first)
    return 0, *list(starts)[1:], len(model.calls)
