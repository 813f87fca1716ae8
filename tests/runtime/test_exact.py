"""Under every plan a model trains as in one process, hooks and all, or the plan is refused."""

from pathlib import Path

import pytest

from plait.tests.ranks import launch
from plait.tests.runtime import exact_cases as cases

WORKER = str(Path(__file__).parent / "exact_worker.py")
FINE = ("same", "refused as it should be")


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("share", [22, pytest.param(1, marks=pytest.mark.long)])
def test_every_case_under_every_strategy(ranks: int, share: int) -> None:
    """By default three of eleven cases, each under another strategy."""
    first, *_ = launch(ranks, [WORKER, str(share)], timeout_seconds=900)
    lines = [line.split(" | ") for line in first.splitlines() if " | " in line]
    assert {(case, strategy) for case, strategy, _ in lines} == set(cases.drawn(ranks, share))
    wrong = [line for line in lines if line[2] not in FINE]
    assert not wrong, wrong
