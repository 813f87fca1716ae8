"""Recomputed seconds of a layer at equal saved bytes: values chosen one by one, whole modules, all.

    python benchmarks/recompute.py

A choice of modules recomputes all operators of some submodules of the layer; the best of all such
choices is found by trying every one.
"""

import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, combinations
from pathlib import Path

from plait.cost_model.hardware import load_cluster
from plait.cost_model.operators.function_cost import FunctionCostTable
from plait.ir.analysis.liveness import produced_values
from plait.ir.capture import load_source, trace
from plait.ir.lowering.forward_backward import partition
from plait.ir.plan.memory_action import Variant
from plait.planner.activations.recompute_ilp import select_saved
from plait.planner.pricing.function_prices import FunctionPrices
from plait.planner.question.candidate import CallPoint

CONFIGS = Path(__file__).resolve().parent.parent / "examples" / "configs"
MODELS = (("gpt2", 8, 1024), ("llama3-8b", 2, 4096))
PARTS = (0.25, 0.5, 0.75)
MOST_MODULES = 14


def layer(name: str, batch: int, seq: int) -> FunctionCostTable:
    """The most repeated function of a model, on one device."""
    source = load_source(f"hf:{CONFIGS / name}.json", batch=batch, seq=seq)
    model = trace(source.model, source.batch)
    prices = FunctionPrices(model, load_cluster("1xh100"))
    (function, _), *_ = Counter(call.function for call in model.calls).most_common()
    prices.call_price(function, CallPoint((), model.batch))
    table = prices.table(function, CallPoint((), model.batch))
    assert table is not None
    return table.costs


def cost(table: FunctionCostTable, variant: Variant) -> tuple[float, int]:
    """Seconds of what runs again, and bytes that wait."""
    local = table.local_functions[1]
    graphs, forward = partition(local, variant), produced_values(local.forward_ops)
    again = sum(
        table.pricer.op(local, op).seconds
        for op in graphs.backward
        if produced_values((op,)) & forward
    )
    return again, sum(local.types[v].bytes for v in {table.roots[v] for v in graphs.saved})


def modules(table: FunctionCostTable) -> Iterator[tuple[float, int]]:
    """What every choice of submodules to recompute costs."""
    ops = table.local_functions[1].forward_ops
    scopes = sorted({op.scope for op in ops})[:MOST_MODULES]
    for chosen in chain.from_iterable(combinations(scopes, n) for n in range(len(scopes) + 1)):
        saved = tuple(op for op in ops if op.scope not in chosen)
        yield cost(table, tuple(produced_values(saved)))


def main() -> None:
    print("model      saved of range   by value ms   by module ms   whole layer ms   solve CPU s")
    for name, batch, seq in MODELS:
        table = layer(name, batch, seq)
        (whole, least), (_, most) = cost(table, "recompute"), cost(table, "keep")
        functions = list(modules(table))
        for part in PARTS:
            start = time.process_time()
            seconds, _ = cost(table, select_saved(table, part))
            spent = time.process_time() - start
            budget = least + part * (most - least)
            best = min((s for s, size in functions if size <= budget), default=whole)
            print(
                f"{name:<10} {part:>14.0%} {seconds * 1e3:>13.3f} {best * 1e3:>14.3f} "
                f"{whole * 1e3:>16.3f} {spent:>13.2f}"
            )


if __name__ == "__main__":
    main()
