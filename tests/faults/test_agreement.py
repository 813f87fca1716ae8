"""Ranks that have drifted apart are an error on all ranks that names the rank and what differs."""

from pathlib import Path

import pytest

from plait.tests.ranks import launch

WORKER = Path(__file__).parent / "agreement_worker.py"


@pytest.mark.ranks
def test_ranks_that_drift_apart_are_named(tmp_path: Path) -> None:
    launch(4, [str(WORKER), str(tmp_path)], timeout_seconds=120)
