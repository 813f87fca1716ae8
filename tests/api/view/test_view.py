"""The report: inert names, no network, the same bytes every time, and figures that add up."""

import base64
import json
import re
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

import plait
from plait.api.view import Report, page, render, report_of_model, report_of_plan
from plait.api.view.call_names import span_name
from plait.api.view.exports.slots import all_events, slots_of
from plait.api.view.layout import arrange
from plait.api.view.plans.from_schedule import inputs_and_weights
from plait.api.view.report import (
    Bar,
    Box,
    BoxGraph,
    Edge,
    Event,
    Pages,
    Point,
    ReportTable,
    Rival,
    TimelineChart,
)
from plait.cost_model.pipeline.closed_form import timeline as simulated

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
        verdict=HOSTILE,
        reasons=(HOSTILE,),
        rivals=(Rival(HOSTILE, HOSTILE, 2, HOSTILE, 1.0, 3, True, ((HOSTILE, 1.0, 2.0),)),),
        points=(Point(HOSTILE, 1.0, 2, True),) * 3,
        stages=1,
        memory_limit_bytes=9,
        memory=(Bar(HOSTILE, ((HOSTILE, 5.0),)),),
        step=(Bar(HOSTILE, ((HOSTILE, 1.0),)),),
        timeline=TimelineChart((HOSTILE,), (Event(0, "F", HOSTILE, 0.0, 1.0),)),
        tables=(ReportTable(HOSTILE, HOSTILE, (HOSTILE,), ((HOSTILE,),)),),
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
    assert msgspec.convert(json.loads(embedded(text)), Pages).reports == (report,)


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
    folded = next(box for box in boxes if box.times > 1)
    assert any(edge.transfer for edge in report.graphs[folded.inside].edges)


def test_what_is_inside_a_box_adds_up_to_it(plan, model):
    report = report_of_plan(plan, model)
    for layers in plan.layers:
        inside = sum(b.forward_seconds for b in report.graphs[str(layers.sharding)].boxes)
        assert inside == pytest.approx(layers.forward_seconds, rel=1e-6)
    for graph in report.graphs.values():
        for box in graph.boxes:
            members = report.graphs[box.inside].boxes if box.inside else ()
            if members and members[0].kind == "call":
                assert box.times == sum(b.times for b in members)


def test_the_bars_add_up_to_peak_and_step(plan):
    report = report_of_plan(plan)
    for bar in report.memory:
        peaks = [plan.stages[s].peak_bytes for s in bar.stages]
        assert sum(amount for _, amount in bar.parts) == max(peaks)
    for bar in report.step:
        total = sum(amount for _, amount in bar.parts)
        assert total == pytest.approx(plan.prediction.step_seconds, rel=0.02)


def test_weights_take_computing_and_inputs_the_collectives():
    backward = (("compute", 6.0), ("all_reduce over tp", 2.0))
    inputs, weights = inputs_and_weights(backward, 0.25)
    assert weights == (("compute", 2.0),)
    assert dict(inputs) == {"compute": 4.0, "all_reduce over tp": 2.0}
    assert dict(inputs_and_weights(backward, 0.9)[1]) == pytest.approx(
        {"compute": 6.0, "all_reduce over tp": 1.2}
    )


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
        spans = sorted(
            (e.start_seconds, e.end_seconds) for e in all_events(timeline) if e.row == row
        )
        tolerance = 1e-6 * spans[-1][1]
        assert all(b[0] >= a[1] - tolerance for a, b in pairwise(spans))


def test_folded_layers_open_by_stage_to_all_of_them(plan, model):
    report = report_of_plan(plan, model)
    (folded,) = [box for box in report.graphs[""].boxes if box.times > 1]
    stages = report.graphs[folded.inside].boxes
    assert [box.stage for box in stages] == [0, 1]
    assert sum(box.times for box in stages) == folded.times == 5


def test_terms_of_rivals_add_up_to_what_they_take(plan):
    for rival in report_of_plan(plan).rivals:
        if rival.seconds:
            *terms, total = rival.seconds
            assert sum(t[2] for t in terms) == pytest.approx(total[2])
            assert total[2] == pytest.approx(rival.step_seconds, rel=1e-6)
            assert total[1] == pytest.approx(plan.prediction.step_seconds, rel=1e-6)
            assert rival.memory[-1][2] == pytest.approx(rival.peak_bytes, rel=1e-6)


def test_slots_are_the_simulated_schedule(plan):
    chart = report_of_plan(plan).timeline
    for slot, event in zip(slots_of(chart), simulated(plan), strict=True):
        assert (slot.row, slot.kind.kind) == (event.stage, event.kind)
        assert slot.micro_batch == event.micro_batch
        assert slot.start_seconds == pytest.approx(
            event.start_seconds, abs=1.5 * chart.tick_seconds
        )


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["m.layers.0", "m.layers.1", "m.layers.2"], "m.layers.0–2"),
        (["m.layers.3.mlp", "m.layers.19.mlp"], "m.layers.3, 19.mlp"),
        (["entry"], "entry"),
        (["data", "exit"], "data … exit"),
    ],
)
def test_spans_of_calls_have_names(paths, name):
    assert span_name(paths) == name
