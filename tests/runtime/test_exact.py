"""Under every plan a model trains as in one process, hooks and all, or the plan is refused."""

from pathlib import Path

import pytest

from plait.runtime.launch.launch import launch
from plait.tests.runtime import exact_cases as cases

WORKER = str(Path(__file__).parent / "exact_worker.py")
FINE = ("same", "refused as it should be")


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("ranks", "count"),
    [(2, len(cases.CASES) * len(cases.WORDS)), (4, len(cases.WIDE) * len(cases.WIDE_WORDS))],
)
def test_every_case_under_every_strategy(ranks: int, count: int) -> None:
    first, *_ = launch(ranks, [WORKER], timeout_seconds=900)
    lines = [line.split(" | ") for line in first.splitlines() if " | " in line]
    assert len(lines) == count
    wrong = [line for line in lines if line[2] not in FINE]
    assert not wrong, wrong
