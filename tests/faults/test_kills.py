"""A run whose ranks are killed ends with the bits of one that nobody interrupted."""

from pathlib import Path

import pytest

from plait.tests.faults.kills import survive


@pytest.mark.ranks
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    print(survive(tmp_path, kills=1, batches=20, seed=1))


@pytest.mark.long
@pytest.mark.ranks
def test_fifty_kills_change_nothing(tmp_path: Path) -> None:
    print(survive(tmp_path, kills=50, batches=400, seed=2))
