"""docs/design/compression.md lists the algorithms that there are, and its code runs."""

import contextlib
import io
import re
from pathlib import Path

from plait.ir.compression.registry import ALGORITHMS

TEXT = (Path(__file__).parents[3] / "docs" / "design" / "compression.md").read_text()


def test_the_table_is_the_registry():
    rows = re.findall(r"^\| ([\w+/-]+) \| ([\w, ]+) \| ?(\w*) ?\|", TEXT, re.MULTILINE)[1:]
    listed = {
        name: (", ".join(p.payload for p in a.programs), a.optimizer)
        for name, a in ALGORITHMS.items()
    }
    assert {name: (subjects, optimizer) for name, subjects, optimizer in rows} == listed


def test_the_code_runs_and_prints_what_it_says():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    said, names = io.StringIO(), {}
    for block in blocks:
        with contextlib.redirect_stdout(said):
            exec(compile(block, "docs/design/compression.md", "exec"), names)
    for line in said.getvalue().splitlines():
        assert f"    {line}\n" in TEXT
    assert float(names["mean"][0]) == 1.5
    assert names["names"] == ["server_error", "step", "worker_error"]
