"""A library's warning is an error where a call in our files causes it, and there alone."""

import pytest
import torch

from plait.tests.our_warnings import our_warnings_are_errors
from plait.tests.paths import ROOT

CALL = "copy = lambda tensor: torch.tensor(tensor)"


@pytest.mark.parametrize(("file", "ours"), [("ir/none.py", True), ("tests/none.py", False)])
def test_warnings_under_our_calls_are_errors(file: str, ours: bool) -> None:
    names = {"torch": torch}
    exec(compile(CALL, str(ROOT / file), "exec"), names)
    expected = pytest.raises(UserWarning, match="copy construct") if ours else pytest.warns()
    with expected, our_warnings_are_errors():
        names["copy"](torch.ones(1))
