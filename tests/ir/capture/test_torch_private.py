"""Private names of torch stand in the listed files alone (STYLE, rule 8)."""

import re

import pytest

from plait.tests.paths import ROOT

LISTED = (
    "ir/capture/torch_private.py",
    "ir/capture/repeated/torch_private.py",
    "runtime/torch_private.py",
)
ROOMS = ("ir", "cost_model", "planner", "codegen", "runtime", "api")
FILES = sorted(
    p
    for room in ROOMS
    for p in (ROOT / room).rglob("*.py")
    if str(p.relative_to(ROOT)) not in LISTED
)
PRIVATE = re.compile(
    r"\btorch(\.\w+)*\._[a-zA-Z]\w*"  # torch._x, torch.x._y, imports from them
    r"|\b_[a-z]\w*\s*=\s*torch\.ops\.\w+\._"
    r"|\.(_schema|_opname|_overloadname|_cdata|_parameters|_buffers|_modules)\b"
)


def test_private_torch_names_are_listed():
    uses = {str(p.relative_to(ROOT)): PRIVATE.findall(p.read_text()) for p in FILES}
    assert not {path: names for path, names in uses.items() if names}


@pytest.mark.parametrize("path", LISTED)
def test_every_listed_name_is_used(path):
    module = (ROOT / path).read_text()
    listed = re.findall(r'^    "(\w+)",$', module, re.MULTILINE)
    names = {*listed, *re.findall(r"^def ([a-z]\w*)", module, re.MULTILINE)}
    assert names
    others = [*FILES, *(ROOT / other for other in LISTED if other != path)]
    users = "".join(p.read_text() for p in others)
    unused = {name for name in names if not re.search(rf"\b{name}\b", users)}
    assert not unused
