"""Programs that evaluate, give outputs and take other batches, on ranks."""

import tempfile
from pathlib import Path

import pytest

from plait.tests import ranks
from plait.tests.paths import ROOT


@pytest.mark.ranks
def test_evaluation_outputs_and_other_batches():
    before = set(Path(tempfile.gettempdir()).glob("plait-program-*"))
    worker = str(ROOT / "tests" / "api" / "variants_worker.py")
    outputs = ranks.launch(2, [worker], timeout_seconds=240)
    assert [text.split()[-2:] for text in outputs] == [["done", "0"], ["done", "1"]]
    assert set(Path(tempfile.gettempdir()).glob("plait-program-*")) <= before
