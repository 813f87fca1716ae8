"""Experts that have replicas and move between steps train what one process trains."""

import json
from pathlib import Path

import pytest

from plait.tests.ranks import launch

CASES = [
    {"pin": "*:ep=4", "slots": 1, "options": {}},
    {"pin": "*:ep=2,dp=2", "slots": 1, "options": {}},
    {"pin": "*:ep=2,zero1=2", "slots": 1, "options": {"micro_batches": 2}},
    {"pin": "*:ep=2,zero3=2", "slots": 2, "options": {"memory_actions": ["recompute"]}},
    {"pin": "*:ep=2,tp=2", "slots": 1, "options": {}},
    {"pin": "*:pp=2,ep=2", "slots": 1, "options": {"micro_batches": 2}},
]


@pytest.mark.ranks
@pytest.mark.long
def test_experts_in_several_places_train_as_in_one(tmp_path) -> None:
    """Against the eager module with its own AdamW. Where homes move, states move with them, bit by bit;
    checkpoints know nothing of it. Steps whose loads are those of the step before are balanced, up to
    what two batches differ by."""
    out = tmp_path / "replicas.json"
    worker = Path(__file__).with_name("replicas_worker.py")
    launch(4, [str(worker), str(out), json.dumps(CASES)], timeout_seconds=900)
    rows = json.loads(out.read_text())
    assert rows.keys() == {case["pin"] for case in CASES}
    for row in rows.values():
        assert row["loss_error"] < 1e-9
        assert row["weight_error"] < 1e-9
        assert row["evaluation_error"] < 1e-9
        assert row["moved"]
        assert row["continued"] < 1e-9
        assert row["replicas"]
        assert max(row["ratios"][1::2]) < 1.3 <= min(row["ratios"][:3:2])
    assert rows["*:ep=2,dp=2"]["homes"] > 1
