"""Random models under random plans: no rank has more bytes of tensors than its plan promises."""

from pathlib import Path
from statistics import median

import pytest

from plait.benchmarks import peak
from plait.tests import ranks
from plait.tests.faults.peaks import peak_rows, summary


@pytest.fixture(autouse=True)
def _ranks_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "launch", ranks.launch)


@pytest.mark.ranks
def test_a_sample_keeps_its_promise(tmp_path: Path) -> None:
    rows = peak_rows(models=2, plans=1, first=40, folder=tmp_path)
    assert min(row.slack for row in rows) >= 0, summary(rows)


@pytest.mark.long
@pytest.mark.ranks
def test_many_keep_their_promise(tmp_path: Path) -> None:
    rows = peak_rows(models=40, plans=4, first=0, folder=tmp_path)
    assert min(row.slack for row in rows) >= 0, summary(rows)
    assert median(row.slack for row in rows) <= 0.1, summary(rows)
