"""Programs on real gloo ranks compute what one process computes."""

from pathlib import Path

import pytest

from plait.tests.ranks import launch

HERE = Path(__file__).parent


@pytest.mark.ranks
def test_every_role_computes_the_same_as_one_process(tmp_path: Path) -> None:
    target = [str(HERE / "toy_worker.py"), str(tmp_path)]
    outputs = launch(4, target, timeout_seconds=180)
    assert [o.split() for o in outputs] == [["done", str(rank)] for rank in range(4)]
