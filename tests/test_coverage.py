"""The table of architectures in docs is about the models that are tested, and claims no more."""

from pathlib import Path

from plait.tests import zoo

TABLE = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"


def rows():
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_model_of_the_zoo_is_listed_under_its_kind():
    assert {(name, kind) for name, kind, *_ in rows()} == set(zoo.KIND.items())


def test_what_is_listed_is_traced_without_opaque_operators():
    """`tests/ir/ops/test_models.py` finds the same from the traces themselves."""
    assert {(traced, opaque) for _, _, traced, *_, opaque, _ in rows()} == {("yes", "none")}


def test_at_least_twenty_kinds_of_model():
    assert len(zoo.ZOO) >= 20
    assert len(zoo.KINDS) >= 8
