"""Pages that are written from the code are those that the code gives now."""

import re

import msgspec
import pytest

from plait.ir.devices import cluster_file
from plait.tests.paths import ROOT
from plait.tests.references import PAGES

FOLDER = ROOT / "docs" / "reference"


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_follows_the_code(name, request):
    path, text = FOLDER / f"{name}.md", PAGES[name]().rstrip() + "\n"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, "pytest --update-golden writes it anew"


def test_the_cluster_file_reference_has_every_key():
    page = (ROOT / "docs" / "guide" / "clusters.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    tables = [
        kind
        for kind in vars(cluster_file).values()
        if isinstance(kind, type) and issubclass(kind, cluster_file.TomlTable)
    ]
    keys = {field.name for table in tables for field in msgspec.structs.fields(table)}
    assert len(keys) >= 30
    assert explained == keys
