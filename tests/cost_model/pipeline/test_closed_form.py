"""The closed form of 1F1B against the simulated table, and its bounds."""

import random

import pytest

from plait.cost_model.communication.collective import send_link, send_seconds
from plait.cost_model.hardware import load_cluster
from plait.cost_model.pipeline.closed_form import pipeline_seconds
from plait.cost_model.pipeline.simulate import simulate, simulate_rows, stage_seconds
from plait.ir.plan.schedules.interleave import interleaved
from plait.ir.plan.schedules.table import one_f_one_b


def simulated(busy, sends, micro_batches):
    costs = [
        stage_seconds(b / 3, 2 * b / 3, forth, back)
        for b, forth, back in zip(busy, sends, [0.0, *sends[:-1]], strict=True)
    ]
    return simulate(one_f_one_b(len(busy), micro_batches), costs).makespan_seconds


@pytest.mark.parametrize("stages", [1, 2, 4, 7])
@pytest.mark.parametrize("micro_batches", [1, 4, 16])
def test_equal_stages_are_exact(stages, micro_batches):
    closed = pipeline_seconds([3.0] * stages, [0.0] * stages, micro_batches)
    assert closed == pytest.approx(simulated([3.0] * stages, [0.0] * stages, micro_batches))


@pytest.mark.parametrize("seed", range(20))
def test_uneven_stages_with_sends_are_near(seed):
    rng = random.Random(seed)
    stages, micro_batches = rng.randint(2, 6), rng.randint(2, 24)
    busy = [rng.uniform(2, 4) for _ in range(stages)]
    sends = [*(rng.uniform(0, 0.3) for _ in range(stages - 1)), 0.0]
    closed = pipeline_seconds(busy, sends, micro_batches)
    assert closed == pytest.approx(simulated(busy, sends, micro_batches), rel=0.1)


def test_chunks_shrink_the_bubble_to_their_part():
    """Interleaved 1F1B: a bubble of (stages - 1) / chunks (Narayanan et al. 2021)."""
    for chunks in (1, 2, 4):
        assert pipeline_seconds([1.0] * 8, [0.0] * 8, 16, chunks) == 16 + 7 / chunks


@pytest.mark.parametrize("seed", range(20))
def test_uneven_chunks_are_near(seed):
    """The first and the last piece of the model are often shorter than the others."""
    rng = random.Random(seed)
    stages, chunks = rng.randint(2, 8), rng.randint(2, 6)
    micro_batches = stages * rng.randint(1, 4)
    work = [[rng.uniform(0.9, 1.1) for _ in range(chunks)] for _ in range(stages)]
    work[0][0], work[-1][-1] = rng.uniform(0.05, 1), rng.uniform(0.1, 1)
    sends = [rng.uniform(0, 0.03) for _ in range(stages)]
    costs = [
        [stage_seconds(w / 3, 2 * w / 3, sends[s], sends[s - 1]) for w in row]
        for s, row in enumerate(work)
    ]
    exact = simulate_rows(interleaved(stages, micro_batches, chunks), costs).makespan_seconds
    ends = [(row[0] / sum(row), row[-1] / sum(row)) for row in work]
    closed = pipeline_seconds(
        [sum(row) for row in work], sends, micro_batches, chunks, edge_shares=ends
    )
    assert closed == pytest.approx(exact, rel=0.1)


def test_overlap_hides_all_sends_but_the_first():
    busy, sends = [1.0] * 4, [0.1, 0.1, 0.1, 0.0]
    assert pipeline_seconds(busy, sends, 8, overlap=True) == pytest.approx(11 + 2 * 0.3)
    assert pipeline_seconds(busy, sends, 8) > pipeline_seconds(busy, sends, 8, overlap=True)


def test_boundaries_are_priced_where_they_lie():
    cluster = load_cluster("2x8xh100")
    inside, across = (send_seconds(1e8, send_link(first, 4, cluster)) for first in (0, 4))
    assert across > 2 * inside
    assert send_seconds(1e8, send_link(0, 8, cluster)) == across
    assert send_seconds(0, send_link(4, 4, cluster)) == 0
