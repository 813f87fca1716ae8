"""From a user's optimizer to a trained model: plan, parallelize, train, against one process."""

from pathlib import Path

import pytest

from plait.runtime.launch.launch import launch


@pytest.mark.ranks
@pytest.mark.long
def test_optimizers_of_users_under_plans_of_the_planner(tmp_path: Path) -> None:
    target = [str(Path(__file__).parent / "optimizer_worker.py")]
    outputs = launch(4, target, timeout_seconds=500)
    assert [o.split()[-2:] for o in outputs] == [["done", str(rank)] for rank in range(4)]
