"""Traces of plans, read back by Perfetto's own trace processor, where that is installed."""

import json
import shutil

import pytest

from plait.api.cli import main

SHELL = shutil.which("trace_processor_shell")
pytestmark = pytest.mark.skipif(SHELL is None, reason="no trace_processor_shell at hand")


@pytest.fixture
def processor(files, tmp_path):
    api = pytest.importorskip("perfetto.trace_processor")
    trace = str(tmp_path / "plan.trace.json")
    assert main(["view", files[1], "--format", "chrome-trace", "-o", trace]) == 0
    with api.TraceProcessor(trace=trace, config=api.TraceProcessorConfig(bin_path=SHELL)) as opened:
        yield opened


def number(processor, query: str) -> float:
    (row,) = processor.query(f"select {query} as value")
    return row.value


def test_perfetto_reads_slots_collectives_flows_and_memory(files, processor):
    with open(files[1], encoding="utf-8") as file:
        plan = json.load(file)
    slots = 8 * plan["micro_batches"]  # of 8 ranks
    for kind in ("forward", "backward"):
        assert number(processor, f"count(*) from slice where category = '{kind}'") == slots
    sent = "extract_arg(arg_set_id, 'args.bytes')"
    collectives = f"count(*) from slice where category = 'collective' and {sent} > 0"
    assert number(processor, collectives) > 0
    assert number(processor, "count(*) from flow") == 8 * plan["micro_batches"]
    peak = max(sum(a for _, a in stage["memory_terms"]) for stage in plan["stages"])
    assert number(processor, "max(value) from counter") == pytest.approx(peak, rel=1e-6)
