"""The report: inert names, no network, the same bytes every time, and figures that add up."""

import base64
import json
import re
import shutil
import subprocess
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

import plait
from plait.api.view import Report, page, render, report_of_model, report_of_plan
from plait.api.view.layout import arrange
from plait.api.view.report import Bar, Box, BoxGraph, Edge, Event, ReportTable, TimelineChart

VIEW = Path(page.__file__).parent
HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>&amp;'\"\u2028"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(6))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x.pow(2).mean()


@pytest.fixture(scope="module")
def model():
    return plait.trace(Net(), (torch.zeros(16, 64),))


@pytest.fixture(scope="module")
def plan(model):
    return plait.plan(model, cluster="4xh100", pin="pp=2,tp=2", micro_batches=4, schedule="1f1b")


def hostile_report() -> Report:
    box = Box(
        HOSTILE,
        "call",
        about=HOSTILE,
        strategy=HOSTILE,
        facts=((HOSTILE, HOSTILE),),
        inside=HOSTILE,
        times=3,
    )
    graph = BoxGraph((box, box), (Edge(0, 1, HOSTILE),))
    leaf = BoxGraph((msgspec.structs.replace(box, inside=""),), ())
    return Report(
        HOSTILE,
        HOSTILE,
        ((HOSTILE, HOSTILE, HOSTILE),),
        {"": graph, HOSTILE: leaf},
        ("time",),
        1,
        9,
        (Bar(HOSTILE, ((HOSTILE, 5.0),)),),
        (Bar(HOSTILE, ((HOSTILE, 1.0),)),),
        TimelineChart((HOSTILE,), (Event(0, "F", HOSTILE, 0.0, 1.0),), (1,), (1,)),
        (ReportTable(HOSTILE, HOSTILE, (HOSTILE,), ((HOSTILE,),)),),
    )


def embedded(text: str) -> str:
    match = re.search(
        r'<script type="application/json" id="report">(.*?)</script>', text, re.DOTALL
    )
    assert match is not None
    return match[1]


def test_hostile_names_are_inert():
    report = hostile_report()
    text = render(report)
    assert "<img" not in text
    assert "<!--" not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert msgspec.convert(json.loads(embedded(text)), Report) == report


def test_policy_allows_nothing_but_the_page_itself():
    text = render(hostile_report())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "://" not in text


def test_scripts_only_set_text():
    source = "".join((VIEW / name).read_text() for name in page.SCRIPTS)
    for text in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
    ):
        assert text not in source


def test_no_text_is_smaller_than_11_px():
    source = "".join((VIEW / name).read_text() for name in (*page.SCRIPTS, "page.css"))
    sizes = re.findall(r"font(?:-size)?:? *[=:]? *[`\"']?(?:\d{3} )?([\d.]+)px", source)
    assert len(sizes) > 8
    assert min(map(float, sizes)) >= 11


def test_the_same_plan_gives_the_same_bytes(plan, model):
    assert render(report_of_plan(plan, model)) == render(report_of_plan(plan, model))


def test_equal_layers_are_one_box(plan, model):
    report = report_of_plan(plan, model)
    boxes = report.graphs[""].boxes
    assert sum(box.times for box in boxes) == len(model.calls)
    assert len(boxes) < len(model.calls)
    assert {box.stage for box in boxes} == {0, 1}
    assert any(edge.transfer for edge in report.graphs[""].edges)


def test_what_is_inside_a_box_adds_up_to_it(plan, model):
    report = report_of_plan(plan, model)
    for box, layers in zip(report.graphs[""].boxes, plan.layers, strict=True):
        inside = sum(b.forward_seconds for b in report.graphs[box.inside].boxes)
        assert inside == pytest.approx(layers.forward_seconds, rel=1e-6)


def test_the_bars_add_up_to_peak_and_step(plan):
    report = report_of_plan(plan)
    for bar, step, stage in zip(report.memory, report.step, plan.stages, strict=True):
        assert sum(amount for _, amount in bar.parts) == stage.peak_bytes
        total = sum(amount for _, amount in step.parts)
        assert total == pytest.approx(plan.prediction.step_seconds, rel=0.02)


def test_every_edge_goes_to_a_later_column(plan, model):
    for report in (report_of_plan(plan, model), report_of_model(model)):
        for graph in report.graphs.values():
            for edge in graph.edges:
                source, target = graph.boxes[edge.source], graph.boxes[edge.target]
                assert source.column < target.column
            places = [(box.column, box.row) for box in graph.boxes]
            assert len(set(places)) == len(places)


def test_columns_are_longest_chains():
    boxes = [Box(str(i), "operator") for i in range(4)]
    graph = arrange(boxes, [Edge(0, 1), Edge(1, 3), Edge(0, 3), Edge(2, 3)])
    assert [(b.column, b.row) for b in graph.boxes] == [(0, 0), (1, 0), (0, 1), (2, 0)]


def test_timeline_rows_do_not_overlap(plan):
    timeline = report_of_plan(plan).timeline
    for row in range(len(timeline.rows)):
        spans = sorted((e.start_seconds, e.end_seconds) for e in timeline.events if e.row == row)
        tolerance = 1e-6 * spans[-1][1]
        assert all(b[0] >= a[1] - tolerance for a, b in pairwise(spans))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser at hand")
@pytest.mark.parametrize("kind", ["plan", "model", "hostile"])
def test_a_browser_draws_it_without_complaint(plan, model, kind, tmp_path):
    reports = {
        "plan": lambda: report_of_plan(plan, model),
        "model": lambda: report_of_model(model),
        "hostile": hostile_report,
    }
    file = tmp_path / "report.html"
    file.write_text(render(reports[kind]()), encoding="utf-8")
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        "--dump-dom",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
    )
    browser = subprocess.run(
        ["chromium", *flags, f"file://{file}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in browser.stderr
    assert browser.stdout.count("<section") >= 2
    assert "<img" not in browser.stdout
