"""Programs that evaluate and take other batches, and modules as users have them, on ranks."""

import tempfile
from pathlib import Path

import pytest

from plait.tests import ranks
from plait.tests.paths import ROOT


@pytest.mark.ranks
@pytest.mark.parametrize("part", ["some", pytest.param("whole", marks=pytest.mark.long)])
def test_evaluation_outputs_and_other_batches(part):
    before = set(Path(tempfile.gettempdir()).glob("plait-program-*"))
    worker = str(ROOT / "tests" / "api" / "variants_worker.py")
    outputs = ranks.launch(2, [worker, part], timeout_seconds=240)
    assert [text.split()[-2:] for text in outputs] == [["done", "0"], ["done", "1"]]
    assert set(Path(tempfile.gettempdir()).glob("plait-program-*")) <= before


@pytest.mark.ranks
def test_modules_as_users_have_them(tmp_path):
    worker = str(ROOT / "tests" / "api" / "modules_worker.py")
    outputs = ranks.launch(2, [worker, str(tmp_path)], timeout_seconds=240)
    assert [text.split()[-2:] for text in outputs] == [["done", "0"], ["done", "1"]]
