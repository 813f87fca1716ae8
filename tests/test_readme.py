"""What the README and the documents say to type: every command runs as it is written, in the order of
its page, in a folder that has what a fresh clone has; what is printed below it is what it prints."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from plait.api.cli import main
from plait.tests.paths import ROOT
from plait.tests.test_docs import DOCUMENTS, code_lines, name

README = ROOT / "README.md"
TYPED = ("plait ", "echo ")
# a command, the marker, and the first lines of what it prints
PRINTED = re.compile(
    r"^    (plait [^\n]*(?:\\\n[^\n]*)*)\n\n<!-- prints -->\n\n((?:    [^\n]*\n)+)", re.MULTILINE
)
WIDEST = 118


def commands(path: Path) -> list[str]:
    lines = code_lines(path.read_text(encoding="utf-8"))
    return [line for line in lines if line.startswith(TYPED)]


PAGES = [path for path in DOCUMENTS if path != README and commands(path)]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples, to type commands in."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(line: str) -> str:
    """What a command prints, run in this process; a pipe or a file behind `>` is the shell's, and
    `plait run` becomes torchrun, in a process of its own."""
    if line.startswith("echo "):
        return subprocess.run(line, shell=True, check=True, capture_output=True, text=True).stdout
    if line.startswith("plait run "):
        return typed_by_a_user(line)
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        code = main(shlex.split(line)[1:])
    assert code == 0, f"{line}: {errors.getvalue()[-2000:]}"
    return said.getvalue()


def typed_by_a_user(line: str) -> str:
    """What a command prints in a process of its own."""
    command = [sys.executable, "-m", "plait", *shlex.split(line)[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("path", PAGES, ids=name)
@pytest.mark.long
@pytest.mark.usefixtures("clone")
def test_commands_of_a_page_run(path: Path):
    for line in commands(path):
        typed(line)


@pytest.mark.long
def test_commands_of_the_readme_run(clone: Path, request: pytest.FixtureRequest):
    """As a user types them: every command is a process of its own."""
    said = {line: typed_by_a_user(line) for line in commands(README)}
    assert (clone / "plan.html").exists()
    assert len(said) >= 10
    text = README.read_text(encoding="utf-8")
    current = PRINTED.sub(lambda match: with_output(match, said), text)
    if request.config.getoption("--update-golden"):
        README.write_text(current, encoding="utf-8")
    assert PRINTED.search(text)
    assert current == README.read_text(encoding="utf-8"), "pytest --update-golden prints it anew"


def with_output(match: re.Match[str], said: dict[str, str]) -> str:
    """The match with as many lines of what its command printed; long ones are cut."""
    (line,) = code_lines(f"    {match[1]}\n")
    printed = said[line].splitlines()[: match[2].count("\n")]
    short = [x if len(x) <= WIDEST else x[: WIDEST - 2].rstrip() + " …" for x in printed]
    return match[0].removesuffix(match[2]) + "".join(f"    {x}".rstrip() + "\n" for x in short)


def test_python_of_the_readme_runs(clone: Path):
    """The few lines that replace DDP, in one process."""
    import torch
    from torch import nn

    import plait
    from plait.runtime.launch.session import session

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).square().mean()

    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    batch = {"x": torch.ones(4, 4)}
    names = {"plait": plait, "torch": torch, "model": Net(), "batch": batch, "loader": [batch] * 3}
    with session("gloo"):
        exec(compile(block, "README.md", "exec"), names)
    shown = "<plait.Program Net: dp 1, rank 0 of 1 on cpu, 3 steps done>"
    assert str(names["program"]).startswith(f"{shown}\nplan for Net on local:1 (1 device)")
    assert "step" in dir(names["program"])
    assert "table" not in dir(names["program"])
    assert (clone / "checkpoint").is_dir()


def test_every_python_block_is_run_by_a_test():
    """Blocks of ```python are run here, by tests/api/test_training_doc.py or tests/ir/compression."""
    run_elsewhere = {"README.md", "docs/guide/training.md", "docs/design/compression.md"}
    blocks = {name(p) for p in DOCUMENTS if "```python" in p.read_text(encoding="utf-8")}
    assert blocks <= run_elsewhere
