"""Why no strategy was priced: which number does not divide, or which operator couples samples."""

from __future__ import annotations

from ...ir.analysis.bound_sharding import bind
from ...ir.lowering.localize import localize
from ...ir.model.layout import UnreachableLayout
from ...ir.plan.strategy import Strategy
from ..pricing.function_prices import FunctionPrices
from ..question.strategy_space import divisors
from .driver import SearchSpace


def reasons(space: SearchSpace) -> list[str]:
    """What stands in the way of every strategy asked for, with what would do instead."""
    options, batch = space.options, space.pricer.global_batch
    fixed = options.micro_batches
    strategies = list(dict.fromkeys(pin.strategy for pin in options.pins))
    texts = [
        f"{batch} samples are not divisible by the {_parts(s, fixed)}"
        for s in strategies
        if batch % (s.batch_degree() * (fixed or 1))
    ]
    if fixed is not None and batch % fixed and not strategies:
        near = sorted(divisors(batch), key=lambda n: abs(n - fixed))[:2]
        texts.append(
            f"{batch} samples do not divide into {fixed} micro-batches; {' or '.join(map(str, near))} do"
        )
    coupled = coupling(space)
    if fixed is not None and fixed > 1 and coupled:
        texts.append(
            f"{fixed} micro-batches would take apart samples that the model couples ({coupled}): such a "
            f"model runs with one micro-batch ({_with_one(strategies)})"
        )
    if fixed is None and coupled and any(s.stages > 1 for s in strategies):
        texts.append(
            f"the model runs with one micro-batch only, since it couples samples ({coupled})"
        )
    calls = len(space.pricer.calls) - len(space.pricer.batch_only)
    texts += [
        f"{s} has more stages than the model has calls ({calls})"
        for s in strategies
        if s.stages > calls
    ]
    for strategy in strategies if not texts else ():
        texts += filter(None, [obstacle(space, strategy, fixed or 1)])
    return texts or ["sizes of the model or of its batch do not divide by the axes of any strategy"]


def obstacle(space: SearchSpace, strategy: Strategy, micro_batches: int) -> str:
    """The first operator, or value of an operator, that a strategy cannot split; empty for none."""
    prices, batch_only = space.pricer.function_prices, space.pricer.batch_only
    calls = enumerate(space.pricer.calls)
    for name in dict.fromkeys(call.function for i, call in calls if i not in batch_only):
        sharding = prices.sharding(name, strategy, micro_batches)
        if sharding is None:
            return prices.shardings.uneven(name, strategy, micro_batches)
        try:
            prices.shardings.local_function(sharding)
        except UnreachableLayout as error:
            return f"{strategy}: {error}"
    return ""


def _parts(strategy: Strategy, fixed: int | None) -> str:
    parts = f"{strategy.batch_degree()} parts of {strategy}"
    return parts if fixed is None else f"{parts} times {fixed} micro-batches"


def _with_one(strategies: list[Strategy]) -> str:
    remedies = [f"{s} with micro_batches=1" for s in strategies] or ["micro_batches=1"]
    devices = strategies[0].devices if strategies else 1
    if all(s.stages > 1 for s in strategies) and strategies:
        remedies.append(f"dp={devices}")
    return " or ".join(remedies)


def coupling(space: SearchSpace) -> str:
    """The operators that need the samples of several micro-batches, one per function; empty for none."""
    prices, batch_only = space.pricer.function_prices, space.pricer.batch_only
    calls = enumerate(space.pricer.calls)
    names = dict.fromkeys(call.function for i, call in calls if i not in batch_only)
    return ", ".join(filter(None, (_coupling(prices, name) for name in names)))


def _coupling(prices: FunctionPrices, name: str) -> str:
    sharding = prices.sharding(name, Strategy(()), 2)
    if sharding is None:
        return f"{name}: an odd number of samples"
    function, axes = prices.functions[name], prices.flow.axes[name]
    try:
        localize(bind(sharding, function, axes))
    except UnreachableLayout as error:
        return str(error)
    return ""
