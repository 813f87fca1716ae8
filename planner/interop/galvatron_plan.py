"""A plan as Galvatron's, and Galvatron's as pins: what both can say, and a clear no to the rest.

    zero3=2,tp=4,sp  recompute      2 replicas with ZeRO-3, 4 tensor ranks, checkpoint
    dp=8 or zero2=8                 8 replicas of the file's default type
    zero3=2,sp=4                    4 ranks of Ulysses

Galvatron's layers are the calls of the function that is called most; what comes before and after
them is its embedding and head, which have one strategy and never recompute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

from ...benchmarks.rivals.galvatron_costs import Batch
from ...ir.errors import UsageError
from ...ir.model import Model
from ...ir.plan.flat_shard import WHOLE
from ...ir.plan.plan import Memory, Plan
from ...ir.plan.strategy import FLAG, ROLES, Strategy
from ..pins import Pin
from .galvatron_file import GalvatronPlan
from .galvatron_strategy import GalvatronStrategy

DEFAULTS = {"ddp": "dp", "zero2": "zero2", "zero3": "zero3"}  # Galvatron's names of roles
MEMORY: tuple[Memory, ...] = ("keep", "recompute")


class _Call(NamedTuple):
    name: str
    function: str
    strategy: Strategy
    memory: Memory


def to_galvatron(plan: Plan) -> GalvatronPlan:
    """Galvatron's form of a plan; raises UsageError naming what it cannot say."""
    if plan.schedule != "1f1b":
        raise UsageError(f"Galvatron's file has no schedule {plan.schedule}")
    if plan.compression:
        raise UsageError("Galvatron's file has no compressed communication")
    calls = dict(_calls(plan))
    first, last = _block([(i, call.function) for i, call in calls.items()])
    layers = [call for i, call in calls.items() if first <= i < last]
    ends = [call for i, call in calls.items() if not first <= i < last] or layers[:1]
    if len({call.strategy for call in ends}) > 1:
        raise UsageError(
            f"Galvatron's file has one strategy for embedding and head, not {ends[0].strategy} for "
            f"{ends[0].name} and {ends[-1].strategy} for {ends[-1].name}"
        )
    whole = {r for call in (*ends, *layers) for r in _replicas(call)[:1]} - {"zero3"}
    if len(whole) > 1:
        both = " and ".join(sorted(whole))
        raise UsageError(f"Galvatron's file has one role beside zero3, not {both}")
    default = next(name for name, role in DEFAULTS.items() if role in (*whole, "zero2"))
    return GalvatronPlan(
        Batch(plan.global_batch, plan.micro_batches),
        tuple(_galvatron(call, call.memory == "recompute") for call in layers),
        tuple(sum(s.holds(i) for i in range(first, last)) for s in plan.stages),
        _galvatron(ends[0], recompute=False),
        default,
    )


def _calls(plan: Plan) -> Iterator[tuple[int, _Call]]:
    """What every call does that is run for every micro-batch."""
    for run in (run for run in plan.layers if not run.once):
        sharding = plan.shardings[run.sharding]
        for i in range(run.first, run.last):
            name = plan.calls[i] if i < len(plan.calls) and plan.calls[i] else sharding.function
            call = _Call(name, sharding.function, sharding.strategy, run.memory)
            if call.memory not in MEMORY:
                raise UsageError(f"{name}: Galvatron's file has no memory action {run.memory!r}")
            yield i, call


def _block(calls: Sequence[tuple[int, str]]) -> tuple[int, int]:
    """The first and past the last call of the function that is called most, with no other between."""
    functions = Counter(function for _, function in calls)
    usual = functions.most_common(1)[0][0]
    mine = [i for i, function in calls if function == usual]
    between = {function for i, function in calls if mine[0] < i < mine[-1]} - {usual}
    if between:
        raise UsageError(
            f"Galvatron's file has layers of one kind, not {sorted(between)[0]} between those of {usual}"
        )
    return mine[0], mine[-1] + 1


def _replicas(call: _Call) -> list[str]:
    """The roles that split the batch."""
    found = [name for name, size in call.strategy.axes if ROLES[name].batch and size > 1]
    if len(found) > 1 or not set(found) <= set(DEFAULTS.values()):
        raise UsageError(
            f"{call.name}: of what splits the batch Galvatron's file has one of dp, zero2 and zero3, "
            f"not {call.strategy}"
        )
    return found


def _galvatron(call: _Call, recompute: bool) -> GalvatronStrategy:
    strategy, replicas = call.strategy, _replicas(call)
    role = replicas[0] if replicas else "dp"
    tensor, ulysses = strategy.size("tp"), strategy.size(FLAG)
    made = GalvatronStrategy(
        strategy.stages,
        max(tensor, ulysses),
        strategy.size(role),
        role == "zero3",
        recompute,
        ulysses > 1,
    )
    kept = [axis for axis in strategy.axes if axis[1] > 1 or axis == (FLAG, 1)]
    if kept != list(word_of(made, role).axes) or strategy.fraction != WHOLE:
        raise UsageError(
            f"{call.name}: Galvatron's file has stages, replicas, then tp=N,sp or sp=N, not {strategy}"
        )
    return made


def word_of(strategy: GalvatronStrategy, default: str) -> Strategy:
    """The strategy in our words; `default` is the role of replicas that do not use ZeRO-3."""
    role = "zero3" if strategy.zero3 else default
    axes = [("pp", strategy.stages), (role, strategy.replicas)]
    if strategy.ranks > 1:
        axes += [(FLAG, strategy.ranks)] if strategy.ulysses else [("tp", strategy.ranks)]
    sizes = tuple(axis for axis in axes if axis[1] > 1)
    return Strategy((*sizes, (FLAG, 1)) if strategy.tensor_ranks > 1 else sizes)


def pins_of(found: GalvatronPlan, model: Model) -> tuple[Pin, ...]:
    """Pins for every call of a model; raises UsageError where the plan has other layers."""
    first, last = _layers(model)
    if last - first != len(found.layers):
        raise UsageError(
            f"Galvatron's plan has {len(found.layers)} layers, {model.name} has {last - first} of "
            f"{model.calls[first].function}"
        )
    default, function, start = DEFAULTS[found.default], model.calls[first].function, 0
    pins = [Pin("*", word_of(found.ends, default), "keep")]
    for layer, own in groupby(found.layers):
        end = start + len(list(own))
        memory: Memory = "recompute" if layer.recompute else "keep"
        pins.append(Pin(f"{function}[{start}-{end - 1}]", word_of(layer, default), memory))
        start = end
    return tuple(pins)


def bounds_of(found: GalvatronPlan, model: Model) -> tuple[int, ...]:
    """Where the stages begin that the plan divides the layers of a model into, and its last call."""
    first, _ = _layers(model)
    begins = accumulate(found.division[:-1], initial=first)
    return 0, *list(begins)[1:], len(model.calls)


def _layers(model: Model) -> tuple[int, int]:
    once = model.once()
    return _block([(i, c.function) for i, c in enumerate(model.calls) if i not in once])
