"""Mutated files of every kind: refused or taken by every command, never more."""

from pathlib import Path

import pytest

from plait.tests.faults.files.fuzz import Effort, examine
from plait.tests.faults.files.subjects import subjects

SAMPLE, WHOLE = 5, 2_000  # mutants of a subject
BYTES = 200 << 20  # beyond what the process has before


def check(folder: Path, kinds: frozenset[str], count: int) -> None:
    for subject in subjects(folder, kinds):
        report = examine(subject, Effort(count))
        assert not report.crashes, report.examples
        assert report.accepted + report.refused == count
        assert report.peak_bytes < BYTES, report.largest


def test_a_sample_of_mutated_files(tmp_path: Path) -> None:
    check(tmp_path, frozenset({"model", "cluster", "graph"}), SAMPLE)


def test_a_sample_of_mutated_programs(tmp_path: Path) -> None:
    check(tmp_path, frozenset({"program", "galvatron", "log"}), SAMPLE)


@pytest.mark.long
def test_many_mutated_files(tmp_path: Path) -> None:
    check(tmp_path, frozenset(), WHOLE)
