"""Recomputed seconds of stacks of layers: values chosen as here, and as torch's own tools choose them.

    python benchmarks/sac_ilp.py

`torch.distributed._tools.sac_ilp` first decides for every layer whether it is checkpointed and how much
of it is discarded, then which of its operators run again. It needs `pulp` and `pwlf`. Both sides see the
same operators, bytes and prices: those of the layer's local form on an H100. Torch's choice is counted
as it runs (all that is not saved runs again) and pruned to what backward needs.
"""

import sys
from itertools import combinations_with_replacement

from plait.benchmarks.recompute import MODELS, cost, layer
from plait.cost_model.operators.function_cost import FunctionCostTable
from plait.ir.analysis.liveness import produced_values
from plait.ir.model.loops import declaration, site_of
from plait.planner.activations.recompute_ilp import select_saved

LAYERS = 8
BUDGETS = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9)  # of what all layers save when they keep everything
PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # what the search offers: `recompute`, `save 25%` … `keep`


def stats(table: FunctionCostTable):
    """A layer's forward operators as torch's estimator notes them: ms, bytes, which are views."""
    from torch.distributed._tools.sac_estimator import SACStats

    local = table.local_functions[1]
    names, milliseconds, sizes, views = [], [], [], []
    for number, op in enumerate(local.forward_ops):
        produced = [r for r in op.results if r >= 0]
        declared = declaration(site_of(op, local.types)) if op.operands() else None
        if declared is not None and declared.work == "view":
            views.append(number)
        names.append(op.target)
        milliseconds.append(table.pricer.op(local, op).seconds * 1e3)
        sizes.append(sum(local.types[r].bytes for r in produced if table.roots[r] == r))
    last = max(n for n in range(len(names)) if n not in views)
    sizes[last] = 0  # the layer's output, which is there anyway
    return SACStats(names, milliseconds, sizes, views, [], [], [], False)


def graph(found, saved_bytes: int):
    """A stack of such layers as the tree of modules that the program takes."""
    from torch.distributed._tools.ilp_utils import Graph
    from torch.distributed._tools.sac_estimator import SACEstimator

    estimator = SACEstimator()
    trade = estimator._get_sac_tradeoff_pwlf_stats(found, estimator._get_greedy_order_meta(found))
    result = Graph(LAYERS + 1)
    names = [f"model.{number}" for number in range(LAYERS)]
    result.fw_post_order = [*names, "model"]
    for number, name in enumerate(["model", *names]):
        block = number > 0
        result.add_node(
            {  # pyright: ignore[reportArgumentType]
                "fqn": name,
                "index": number,
                "pos_fw_post_order": result.fw_post_order.index(name),
                "is_leaf": not block,
                "param_per_module": 0,
                "grad_total": 0,
                "act_grad_per_module": 0,
                "act_fw_per_module": saved_bytes if block else LAYERS * saved_bytes,
                "act_total": (number if block else LAYERS) * saved_bytes,
                "sac_runtime": trade.sac_runtime if block else 0.0,
                "sac_memory": max(trade.sac_memory, saved_bytes) if block else 0,
                "n_segments": trade.n_segments if block else 0,
                "slopes": trade.slopes,
                "intercepts": trade.intercepts,
            }
        )
        result.ad_matrix[number][number] = 1
    result.ad_matrix[0] = 1
    return result


def theirs(table: FunctionCostTable, budget_bytes: float) -> tuple[float, float, int] | None:
    """Seconds that run again as torch runs them, those of them that are needed, and saved bytes."""
    from torch.distributed._tools.sac_ilp import (
        get_optimal_checkpointing_policy_per_module,
        sac_milp,
    )

    statistics, ops = stats(table), table.local_functions[1].forward_ops
    (_, least), (_, most) = cost(table, "recompute"), cost(table, "keep")
    decided, _, peak = sac_milp(graph(statistics, most - least), budget_bytes / 2**30)
    if peak < 0:
        return None
    as_run = needed = 0.0
    size = (LAYERS - len(decided)) * (most - least)
    for discarded in decided.values():
        policy = get_optimal_checkpointing_policy_per_module(statistics, 1 - discarded)
        saved = [op for op, save in zip(ops, policy, strict=True) if save]
        seconds, bytes_ = cost(table, tuple(produced_values(tuple(saved))))
        as_run += (
            sum(t for t, save in zip(statistics.runtimes, policy, strict=True) if not save) / 1e3
        )
        needed += seconds
        size += bytes_ - least
    return as_run, needed, size


def ours(table: FunctionCostTable, size: float) -> float:
    """The least seconds of a mixture of two of the parts over the layers, within the bytes."""
    (_, least), answer = (
        cost(table, "recompute"),
        [cost(table, select_saved(table, part)) for part in PARTS],
    )
    best = float("inf")
    for one, other in combinations_with_replacement(answer, 2):
        for count in range(LAYERS + 1):
            bytes_ = count * one[1] + (LAYERS - count) * other[1] - LAYERS * least
            if bytes_ <= size:
                best = min(best, count * one[0] + (LAYERS - count) * other[0])
    return best


def main() -> int:
    try:
        import pulp  # noqa: F401  # pyright: ignore[reportMissingImports]
        import pwlf  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"skipped: torch.distributed._tools.sac_ilp needs {error.name}")
        return 0
    print(
        f"{LAYERS} layers  budget   saved GiB   here ms   torch ms   torch needed ms   all again ms"
    )
    for name, batch, seq in MODELS:
        table = layer(name, batch, seq)
        (whole, least), (_, most) = cost(table, "recompute"), cost(table, "keep")
        for part in BUDGETS:
            graph_made = theirs(table, part * LAYERS * (most - least))
            if graph_made is None:
                print(f"{name:<10}{part:>8.0%}   torch finds nothing")
                continue
            as_run, needed, size = graph_made
            print(
                f"{name:<10}{part:>8.0%}{size / 2**30:>12.3f}{ours(table, size) * 1e3:>10.3f}"
                f"{as_run * 1e3:>11.3f}{needed * 1e3:>18.3f}{LAYERS * whole * 1e3:>15.3f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
