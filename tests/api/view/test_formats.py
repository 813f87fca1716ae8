"""`plait view --format`: pictures and traces that other tools read."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from plait.api.cli import main
from plait.tests.api.view.trace_faults import trace_faults


def written(file, kind, folder):
    target = folder / "out"
    assert main(["view", file, "--format", kind, "-o", str(target)]) == 0
    return target.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trace(files, tmp_path_factory):
    return json.loads(written(files[1], "chrome-trace", tmp_path_factory.mktemp("trace")))


@pytest.fixture(scope="module")
def plan(files):
    return json.loads(Path(files[1]).read_text())


def test_a_trace_is_what_the_format_asks_for(trace):
    assert trace_faults(trace) == []


PLANTED = {
    "times of": lambda e: e["ph"] == "X" and e | {"dur": -1.0},
    "crosses": lambda e: e["ph"] == "X" and e["cat"] == "forward" and e | {"ts": e["ts"] + 1.0},
    "no thread_name": lambda e: e["ph"] == "X" and e | {"tid": 99},
    "one end of flow": lambda e: e["ph"] == "f" and e | {"id": 10**9},
    "order of flow": lambda e: e["ph"] == "f" and e | {"ts": 0.0},
    "order of counter": lambda e: e["ph"] == "C" and e | {"ts": 1e12},
    "fields of": lambda e: e["ph"] == "s" and {k: e[k] for k in e if k != "id"},
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_of_a_trace_are_seen(trace, fault):
    events = list(trace["traceEvents"])
    number, broken = next((i, b) for i, e in enumerate(events) if (b := PLANTED[fault](e)))
    events[number] = broken
    assert any(fault in said for said in trace_faults({"traceEvents": events}))


def test_a_trace_has_every_forward_and_backward(trace, plan):
    slices = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    kinds = [e["cat"] for e in slices]
    each = 8 * plan["micro_batches"]  # ranks
    assert (kinds.count("forward"), kinds.count("backward")) == (each, each)
    assert {e["tid"] for e in slices} == set(range(8))
    end = max(e["ts"] + e["dur"] for e in slices) * 1e-6
    assert end == pytest.approx(plan["prediction"]["step_seconds"], rel=1e-3)


def test_a_trace_says_what_is_sent_and_held(trace, plan):
    events = trace["traceEvents"]
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert len(starts) == 8 * plan["micro_batches"]  # 4 ranks, forward and backward
    for number, start in starts.items():
        assert start["pid"] != ends[number]["pid"]
        assert start["args"]["bytes"] > 0
    for stage in (0, 1):
        levels = [e["args"]["bytes"] for e in events if e["ph"] == "C" and e["pid"] == stage]
        peak = sum(amount for _, amount in plan["stages"][stage]["memory_terms"])
        assert max(levels) == pytest.approx(peak, rel=1e-6)
    collectives = [e for e in events if e.get("cat") == "collective"]
    assert collectives
    for event in collectives:
        stage = 4 * event["pid"]
        assert event["args"]["group"] == str([stage, stage + 1, stage + 2, stage + 3])
    reduced = {
        e["pid"]: e["args"]["bytes"] for e in collectives if e["name"] == "all_reduce over dp"
    }
    trained = {n: s["bytes_by_strategy"][0]["bytes"] for n, s in enumerate(plan["stages"])}
    for stage, sent in reduced.items():
        assert sent == pytest.approx(trained[stage]["trained_bytes"], rel=0.01)


def test_models_have_no_timeline(files, tmp_path, capsys):
    assert main(["view", files[0], "--format", "chrome-trace", "-o", str(tmp_path / "x")]) == 2
    assert "has no timeline" in capsys.readouterr().err


def test_an_svg_is_xml_with_every_stage(files, tmp_path):
    root = ElementTree.fromstring(written(files[1], "svg", tmp_path))
    said = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("× model.layers" in text for text in said)
    assert {"stage 0", "stage 1"} <= set(said)
    ElementTree.fromstring(written(files[0], "svg", tmp_path))


@pytest.mark.parametrize("which", [0, 1])
def test_graphs_for_model_explorer_are_closed(files, which, tmp_path):
    (collection,) = json.loads(written(files[which], "model-explorer", tmp_path))
    names = {graph["id"] for graph in collection["graphs"]}
    for graph in collection["graphs"]:
        ids = [node["id"] for node in graph["nodes"]]
        assert len(ids) == len(set(ids))
        for node in graph["nodes"]:
            assert {edge["sourceNodeId"] for edge in node["incomingEdges"]} <= set(ids)
            assert set(node.get("subgraphIds", [])) <= names
    assert len(names) == len(collection["graphs"]) >= 1
