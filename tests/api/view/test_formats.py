"""`plait view --format`: pictures and traces that other tools read."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from plait.api.cli import main


def written(file, kind, folder):
    target = folder / "out"
    assert main(["view", file, "--format", kind, "-o", str(target)]) == 0
    return target.read_text(encoding="utf-8")


def test_a_trace_has_every_forward_and_backward(files, tmp_path):
    body = json.loads(written(files[1], "chrome-trace", tmp_path))
    plan = json.loads(Path(files[1]).read_text())
    spans = [e for e in body["traceEvents"] if e["ph"] == "X"]
    kinds = [e["cat"] for e in spans]
    each = 8 * plan["micro_batches"]  # ranks
    assert (kinds.count("forward"), kinds.count("backward")) == (each, each)
    assert {e["tid"] for e in spans} == set(range(8))
    end = max(e["ts"] + e["dur"] for e in spans) * 1e-6
    assert end == pytest.approx(plan["prediction"]["step_seconds"], rel=0.05)


def test_a_trace_says_what_is_sent_and_held(files, tmp_path):
    body = json.loads(written(files[1], "chrome-trace", tmp_path))["traceEvents"]
    plan = json.loads(Path(files[1]).read_text())
    starts = {e["id"]: e for e in body if e["ph"] == "s"}
    ends = {e["id"]: e for e in body if e["ph"] == "f"}
    assert len(starts) == 8 * plan["micro_batches"]  # 4 ranks, forward and backward
    assert starts.keys() == ends.keys()
    for number, start in starts.items():
        assert start["pid"] != ends[number]["pid"]
        assert start["ts"] <= ends[number]["ts"]
        assert start["args"]["bytes"] > 0
    for stage in (0, 1):
        levels = [e["args"]["bytes"] for e in body if e["ph"] == "C" and e["pid"] == stage]
        peak = sum(amount for _, amount in plan["stages"][stage]["memory_terms"])
        assert max(levels) == pytest.approx(peak, rel=1e-6)


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
