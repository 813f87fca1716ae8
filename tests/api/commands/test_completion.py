"""`plait completion`: what bash offers after it has read the script."""

import shutil
import subprocess

import pytest

from plait.api.cli import main


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash at hand")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pl", {"plan", "place"}),
        ("plan --engi", {"--engine"}),
        ("plan model.json --engine mega", {"megatron"}),
        ("view --format ch", {"chrome-trace"}),
        ("completion z", {"zsh"}),
    ],
)
def test_bash_completes(typed, offered, capsys):
    assert main(["completion", "bash"]) == 0
    line = ["plait", *typed.split(" ")]
    ask = (
        f"COMP_WORDS=({' '.join(line)}); COMP_CWORD={len(line) - 1}; _plait; "
        'echo "${COMPREPLY[@]}"'
    )
    script = f"{capsys.readouterr().out}\n{ask}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == offered
