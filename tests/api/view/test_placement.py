"""The report of a placement: figures as the placement says, every operator drawn once."""

from itertools import pairwise

import pytest

from plait.api.view import render, report_of_placement
from plait.api.view.from_placement import MOST_BOXES
from plait.ir.plan.placement import uniform_target
from plait.planner.placement import PlacementOptions
from plait.planner.placement.search import place
from plait.tests.planner.placement.graphs import random_graph


def placed(most: int, rule: str = "train"):
    graph = random_graph(11, most, most)
    options = PlacementOptions("m-etf", memory_rule=rule)
    return place(graph, uniform_target(3, 1e4, 1.0, 0.5), options).placement


@pytest.mark.parametrize("rule", ["train", "infer"])
def test_bars_and_curves_reach_the_peak(rule):
    placement = placed(40, rule)
    report = report_of_placement(placement)
    for bar, peak, curve in zip(
        report.memory, placement.peak_memory, report.timeline.curves, strict=True
    ):
        assert sum(amount for _, amount in bar.parts) == pytest.approx(peak)
        highest = max(level for _, level in curve)
        assert highest == pytest.approx(peak) if rule == "infer" else highest <= peak


@pytest.mark.parametrize("most", [40, 3 * MOST_BOXES])
def test_every_operator_is_drawn_once(most):
    graphs = dict(report_of_placement(placed(most)).graphs)
    top = graphs.pop("")
    leaves = graphs.values() if graphs else [top]
    assert sum(len(graph.boxes) for graph in leaves) == most
    for graph in (top, *leaves):
        assert len({(box.column, box.row) for box in graph.boxes}) == len(graph.boxes)
        for edge in graph.edges:
            assert graph.boxes[edge.source].column < graph.boxes[edge.target].column


def test_rows_do_not_overlap_and_end_with_the_makespan():
    placement = placed(40)
    timeline = report_of_placement(placement).timeline
    for row in range(len(timeline.rows)):
        spans = sorted((e.start_seconds, e.end_seconds) for e in timeline.events if e.row == row)
        assert all(b[0] >= a[1] - 1e-12 for a, b in pairwise(spans))
    last = max(e.end_seconds for e in timeline.events)
    assert last == pytest.approx(placement.makespan_us * 1e-6, rel=1e-6)


def test_the_same_placement_gives_the_same_bytes():
    assert render(report_of_placement(placed(40))) == render(report_of_placement(placed(40)))
