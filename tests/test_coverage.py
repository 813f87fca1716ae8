"""The table of models in docs: what its head counts is what its rows say."""

import re
from pathlib import Path

from plait.tests import zoo

TABLE = Path(__file__).resolve().parent.parent / "docs" / "results" / "coverage.md"


def rows() -> list[list[str]]:
    """`model, traced, opaque, micro-batches, local:4, 8xh100, verified, CPU-s` of every model."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if len(row) == 8 and row[1] in ("yes", "refused", "traceback")]


def test_the_counts_are_those_of_the_rows():
    traced = [row for row in rows() if row[1] == "yes"]
    known = [row for row in traced if row[2] == "none"]
    text = TABLE.read_text()
    head = re.search(r"(\d+) of (\d+) models of \d+ sources trace, (\d+) of them", text)
    assert head is not None
    assert [int(number) for number in head.groups()] == [len(traced), len(rows()), len(known)]
    assert len(rows()) >= 120


def test_at_least_twenty_kinds_of_model():
    assert len(zoo.ZOO) >= 20
    assert len(zoo.KINDS) >= 8
