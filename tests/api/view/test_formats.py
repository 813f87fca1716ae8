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
    each = 2 * plan["micro_batches"]
    assert (kinds.count("forward"), kinds.count("backward")) == (each, each)
    end = max(e["ts"] + e["dur"] for e in spans) * 1e-6
    assert end == pytest.approx(plan["prediction"]["step_seconds"], rel=0.05)


def test_models_have_no_timeline(files, tmp_path, capsys):
    assert main(["view", files[0], "--format", "chrome-trace", "-o", str(tmp_path / "x")]) == 2
    assert "has no timeline" in capsys.readouterr().err


def test_an_svg_is_xml_with_every_stage(files, tmp_path):
    root = ElementTree.fromstring(written(files[1], "svg", tmp_path))
    said = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("× llama_decoder" in text for text in said)
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
