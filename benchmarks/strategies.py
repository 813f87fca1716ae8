"""CPU seconds to price strategies: `python benchmarks/strategies.py [CONFIG.json] [--cluster C]`.

Prices every strategy word, number of micro-batches and memory variant of the search's space, without
its pruning, until there are `--count`, with the planner's own evaluator: once with the prices of
functions still to be made, once with them at hand, as for the strategies of a longer search. Every
hundredth is held against its stages in full, which plans are made of.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import islice
from math import isclose
from pathlib import Path

from msgspec.structs import replace

from plait.cost_model.communication.stage_transfer import (
    TransferPayload,
    boundary_links,
    price_transfers,
)
from plait.cost_model.hardware import load_cluster
from plait.cost_model.pipeline.closed_form import pipeline_seconds
from plait.ir.capture import load_source, trace
from plait.ir.model.model import Model
from plait.ir.plan.memory_action import BASIC_ACTIONS
from plait.planner.pricing.candidate_pricer import CandidatePricer
from plait.planner.pricing.function_prices import FunctionPrices
from plait.planner.question.candidate import Candidate, RunPoint
from plait.planner.question.options import PlanOptions
from plait.planner.question.strategy_space import axis_families, divisors, strategies
from plait.planner.question.training import optimizer_states

CONFIG = Path(__file__).resolve().parent.parent / "examples" / "configs" / "llama3-8b.json"


def space(pricer: CandidatePricer) -> Iterator[RunPoint]:
    """Everything that the search may price."""
    roles, devices = PlanOptions().roles, pricer.cluster.devices
    texts = (
        strategy
        for family in axis_families(pricer.cluster, roles)
        for text in family
        for strategy in strategies(devices, text, roles, len(pricer.calls))
    )
    for strategy in dict.fromkeys(texts):
        samples, left = divmod(pricer.global_batch, strategy.batch_degree())
        if not left:
            points = (RunPoint(strategy, pricer.global_batch, n) for n in divisors(samples))
            yield from (replace(p, memory=memory) for p in points for memory in BASIC_ACTIONS)


def in_full(pricer: CandidatePricer, candidate: Candidate) -> tuple[float, int]:
    """Step seconds and peak bytes from the stages of a plan, each priced anew."""
    stages, execution = pricer.stages(candidate), pricer.function_prices.execution
    busy = [s.forward_seconds + s.backward_seconds for s in stages]
    links = boundary_links(len(stages), pricer.cluster)
    crossings = [TransferPayload(s.transfer_bytes, s.compressible) for s in stages]
    sends = [
        transfer.seconds
        for transfer in price_transfers(crossings, links, None, pricer.cluster.device)
    ]
    times = candidate.micro_batches
    sharing = pricer.cluster.device.ranks_per_processor
    pipeline = pipeline_seconds(
        busy, sends, times, execution.chunks, "transfers" in execution.overlaps, sharing
    )
    return pipeline + max(s.sync_seconds for s in stages), max(s.peak_bytes for s in stages)


def differing(pricer: CandidatePricer, made: list[Candidate]) -> int:
    """How many of a sample are not what their stages in full add up to."""
    found = [(c, *in_full(pricer, c)) for c in made[::100]]
    return sum(
        not isclose(c.step_seconds, step, rel_tol=1e-9) or c.peak_bytes != peak
        for c, step, peak in found
    )


def timed(work: Callable[[], list[Candidate]]) -> tuple[float, list[Candidate]]:
    start = time.process_time()
    made = work()
    return time.process_time() - start, made


def traced(config: Path, batch: int, tokens: int) -> Model:
    source = load_source(f"hf:{config}", batch=batch, seq=tokens)
    return trace(source.model, source.batch, source.loss_fn)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG)
    parser.add_argument("--cluster", default="64x8xh100")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    model = traced(options.config, options.batch, options.seq)
    cluster = load_cluster(options.cluster)
    pricer = CandidatePricer(
        FunctionPrices(model, cluster), model.batch, optimizer_states(PlanOptions(), 4)
    )
    todo = list(islice(space(pricer), options.count))

    def work() -> list[Candidate]:
        return [c for x in todo if (c := pricer.candidate(x)) is not None]

    print(f"{model.name}, {len(model.calls)} calls, batch {model.batch}, on {cluster}")
    for name in ("with prices of functions", "strategies alone"):
        seconds, answer = timed(work)
        print(
            f"{name:<26}{len(todo):>7}{seconds:>8.2f} CPU-s{seconds / len(todo) * 1e6:>8.1f} us each"
        )
    print(f"of a sample, {differing(pricer, answer)} differ from their stages in full")


if __name__ == "__main__":
    main()
