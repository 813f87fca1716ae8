"""`plait plan`: how to spread the training of a model over a cluster."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ...ir.errors import UsageError
from ...ir.passes import Observer
from ...ir.passes import run as run_pass
from ..options import add_flags, given_options
from .arguments import add_json, add_source, source_of
from .output import TIME_LIMIT, best_so_far, note, print_json, progress
from .print_after import PassPrinter, add_print_after, pass_printer, plan_printers

if TYPE_CHECKING:
    from ...ir.devices.cluster import Cluster
    from ...ir.model.model import Model
    from ...ir.plan.plan import Plan
    from ..formats.model_source import ModelSource
    from ..plans.bucket_plans import Bucket
    from ..plans.plan_request import PlanRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    add_json(parser)
    add_print_after(parser)
    parser.add_argument(
        "--cluster",
        required=True,
        help="name (8x8xh100, 16xp5; see `plait clusters`), local:N, or a TOML file",
    )
    add_flags(parser)
    parser.add_argument(
        "--front",
        action="store_true",
        help="also show the fastest plans for less memory, and for more",
    )
    parser.add_argument(
        "--buckets",
        metavar="SEQ[:BATCH],...",
        help="a plan for each sequence length (4096:64,16384:16) of an hf: source, and "
        "what switching sends; -o plan.json writes plan.4096.json",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the plan as JSON")


def run(arguments: argparse.Namespace) -> int:
    """The exit code is 4 where the search was stopped before its end."""
    if arguments.buckets:
        return _run_buckets(arguments)
    printer = pass_printer(arguments, plan_printers)
    if printer is not None:
        return _print_passes(arguments, printer)
    start = time.perf_counter()
    options, source = given_options(arguments), source_of(arguments)
    model, cluster = _model_and_cluster(
        source, arguments.cluster, options.get("global_batch"), options.get("precision")
    )
    traced = time.perf_counter()
    request = _request(model, cluster, options)
    plan = _search(request, cluster, source)
    if arguments.front and (cluster.parts or request.options.chooses_devices):
        raise UsageError("--front plans for all devices of a cluster of one kind, by time")
    pareto = _pareto_plans(request, cluster, model.batch) if arguments.front else []
    end = time.perf_counter()
    _write(arguments.output, plan, "plait/plan")
    if arguments.json:
        from ..plans.plan_json import pareto_row, plan_json

        times = {"total": end - start, "trace": traced - start, "search": end - traced}
        rows = {"front": [pareto_row(p) for p in pareto]} if arguments.front else {}
        print_json(plan_json(plan, times) | rows)
    else:
        from ...ir.text.summary import plan_summary
        from ..plans.plan_json import pareto_table
        from ..plans.range_line import range_line

        print(plan_summary(plan))
        print(range_line(plan))
        if arguments.front:
            print("\n".join(pareto_table(pareto)))
        note(f"planned in {end - start:.1f} s, of it tracing {traced - start:.1f} s")
    if not plan.complete:
        note("the search was stopped: the plan is the best so far")
    return 0 if plan.complete else TIME_LIMIT


def _print_passes(arguments: argparse.Namespace, printer: PassPrinter) -> int:
    """Plan, and print what a pass gives instead of the plan."""
    from ...planner.search.plan import Search
    from ..plans.plan_request import plan_request

    options, source = given_options(arguments), source_of(arguments)
    model, cluster = _model_and_cluster(
        source, arguments.cluster, options.get("global_batch"), options.get("precision"), printer
    )
    if cluster.parts:
        raise UsageError("--print-after plans for clusters of one kind of device")
    if arguments.output:
        raise UsageError("--print-after prints and writes no plan: leave out --output")
    request = plan_request(model, cluster.devices, options, observer=printer)
    run_pass(Search(cluster, request.options, printer), request.model, printer)
    printer.finish()
    return 0


def _model_and_cluster(
    source: ModelSource,
    cluster_name: str,
    global_batch: int | None,
    precision: str | None,
    observer: Observer | None = None,
) -> tuple[Model, Cluster]:
    """The model, with at least one sample for every device where no batch is asked for."""
    from ...cost_model.hardware import load_any_cluster

    cluster = load_any_cluster(cluster_name)
    model = source.load(global_batch, precision, observer)
    if global_batch is None and model.batch < cluster.devices:
        batch = -(-cluster.devices // model.batch) * model.batch
        note(f"global batch {batch}: {model.batch} would leave devices without a sample")
        model = source.load(batch, precision, observer)
    return model, cluster


def _request(model: Model, cluster: Cluster, options: dict[str, Any]) -> PlanRequest:
    from ..plans.plan_request import plan_request

    return plan_request(model, cluster.devices, options)


def _search(request: PlanRequest, cluster: Cluster, source: ModelSource) -> Plan:
    from ...ir.text.units import seconds as with_unit
    from ...planner import plan

    with progress("searching") as update:
        watch = best_so_far(update, lambda s: f"{with_unit(s)}/step", "; Ctrl-C takes it")
        answer = plan(request.model, cluster, request.options, watch=watch)
    return replace(answer, source=str(source))


def _pareto_plans(request: PlanRequest, cluster: Cluster, batch: int) -> list[Plan]:
    """The fastest plans by memory, for the batch and those of twice and half its size."""
    from ...ir.text.units import seconds as with_unit
    from ...planner.search.pareto import pareto_front

    batches = [batch * 2, *([batch // 2] if batch % 2 == 0 else [])]
    with progress("searching for other memory limits and batches") as update:
        watch = best_so_far(update, lambda s: f"{with_unit(s)}/step")
        return pareto_front(request.model, cluster, request.options, batches, watch)


def _write(output: str | None, plan: object, format_: str) -> None:
    from ..formats import files

    if output:
        files.write(Path(output), plan, format_)
        note(f"wrote {output}")


def _run_buckets(arguments: argparse.Namespace) -> int:
    """Plan every sequence length of --buckets, and show what switching between them sends."""
    from ..plans.bucket_plans import (
        parse_buckets,
        plan_rows,
        switch_json,
        switch_rows,
        switches_between,
    )
    from ..plans.plan_json import plan_json

    if not arguments.source.startswith("hf:"):
        raise UsageError("--buckets traces several lengths, for which it needs an hf: source")
    if arguments.front:
        raise UsageError("--buckets makes plans of its own: ask for the --front of one length")
    start = time.perf_counter()
    lengths = parse_buckets(arguments.buckets)
    buckets = [_plan_bucket(arguments, tokens, batch) for tokens, batch in lengths]
    switches = switches_between(buckets)
    for bucket in buckets if arguments.output else ():
        path = Path(arguments.output)
        path = path.with_name(f"{path.stem}.{bucket.tokens}{path.suffix}")
        _write(str(path), bucket.plan, "plait/plan")
    if arguments.json:
        print_json(
            {
                "buckets": [{"tokens": b.tokens} | plan_json(b.plan, {}) for b in buckets],
                "switches": [switch_json(switch) for switch in switches],
            }
        )
    else:
        print("\n".join([*plan_rows(buckets), *switch_rows(switches)]))
        note(f"planned in {time.perf_counter() - start:.1f} s")
    return 0 if all(b.plan.complete for b in buckets) else TIME_LIMIT


def _plan_bucket(arguments: argparse.Namespace, tokens: int, batch: int | None) -> Bucket:
    from ..plans.bucket_plans import bucket

    options = given_options(arguments)
    batch = batch or options.get("global_batch")
    source = source_of(arguments)._replace(batch=arguments.batch or batch, seq=tokens)
    model, cluster = _model_and_cluster(source, arguments.cluster, batch, options.get("precision"))
    if cluster.parts:
        raise UsageError("--buckets plans for clusters of one kind of device")
    request = _request(model, cluster, options | {"global_batch": batch})
    return bucket(tokens, _search(request, cluster, source), request.model)
