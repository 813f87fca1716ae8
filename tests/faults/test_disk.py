"""Errors of the disk, at any operation of saving and loading, are PlaitErrors that say what happened."""

from pathlib import Path

import pytest

from plait.runtime.launch.session import session
from plait.tests.faults.disk import survive


def test_a_sample_of_failing_operations(tmp_path: Path) -> None:
    with session("gloo"):
        outcomes = survive(tmp_path, every=7)
    assert outcomes["refused"] > 5
    assert set(outcomes) <= {"refused", "done"}


@pytest.mark.long
def test_every_failing_operation(tmp_path: Path) -> None:
    with session("gloo"):
        outcomes = survive(tmp_path)
    assert outcomes["refused"] > 50
    assert set(outcomes) <= {"refused", "done"}
