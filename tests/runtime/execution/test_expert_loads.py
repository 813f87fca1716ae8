"""Choices of experts that a program counts are those that the eager module's gates make."""

import json
from pathlib import Path

import pytest

from plait.tests.ranks import launch


@pytest.mark.ranks
@pytest.mark.long
def test_loads_are_those_of_the_gates(tmp_path) -> None:
    """Under a hierarchical all-to-all, and where forward is computed again."""
    out = tmp_path / "loads.json"
    worker = Path(__file__).with_name("expert_loads_worker.py")
    launch(4, [str(worker), str(out)], timeout_seconds=300)
    row = json.loads(out.read_text())
    assert row["expected"]
    assert row["observed"] == {"keep": row["expected"], "recompute": row["expected"]}
