"""What waits beside a step of a schedule with two parts of backward, against sets of what is there."""

import pytest

from plait.cost_model.memory.scheduled import ChunkBytes, waiting_beside
from plait.ir.plan.schedules.registry import SCHEDULES, build_rows

SAVED, PARTED = (100.0, 40.0), (30.0, 70.0)
SPLIT = [name for name, schedule in SCHEDULES.items() if schedule.splits]
KINDS = {"F": "F", "I": "B", "B": "B", "W": "W"}


def bytes_beside(schedule, stages, stage, micro_batches, chunks):
    """Most bytes that wait beside the steps of every kind, chunk, and with or without gradients."""
    most, saved, parted, reduced = {}, set(), set(), False
    for kind, chunk, micro in build_rows(schedule, stages, micro_batches, chunks)[stage]:
        running = chunk, micro
        if kind == "F":
            saved.add(running)
        beside = sum(SAVED[c] for c, m in saved if kind == "W" or (c, m) != running)
        beside += sum(PARTED[c] for c, m in parted if (c, m) != running)
        key = KINDS[kind], chunk, reduced
        most[key] = max(most.get(key, 0.0), beside)
        saved -= {running} if kind in "BI" else set()
        parted ^= {running} if kind in "IW" else set()
        reduced |= kind in "BW"
    return most


@pytest.mark.parametrize("schedule", SPLIT)
def test_what_waits_is_what_is_there(schedule):
    chunks = SCHEDULES[schedule].chunks
    values = [ChunkBytes(*pair) for pair in zip(SAVED, PARTED, strict=True)][:chunks]
    one = [sum(amounts[:chunks]) for amounts in (SAVED, PARTED)]
    for stage in range(3):
        most = {}
        for case in waiting_beside(schedule, 3, stage, 9, values):
            key = case.step, case.chunk, case.reduced
            beside = case.saved * one[0] + case.parted * one[1]
            most[key] = max(most.get(key, 0.0), beside)
        expected = bytes_beside(schedule, 3, stage, 9, chunks)
        for step, chunk, reduced in expected:
            known = [n for key, n in most.items() if key[:2] == (step, chunk) and key[2] >= reduced]
            assert max(known) >= expected[step, chunk, reduced] - 1e-6
        assert max(most.values()) == pytest.approx(max(expected.values()))
