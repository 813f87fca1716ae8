"""`plait kernels`: sources, what was compiled, and what is missing."""

import json
import shutil
import subprocess
import sys

import pytest

from plait.api.cli import main
from plait.codegen.compression.aot import available

TRITON = available()
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def test_kernels_for_a_cpu(tmp_path, capsys):
    assert main(["kernels", "sdp4bit", "--target", "cpu", "-o", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["kernels"]
    assert {row["target"] for row in rows} == {"cpu"}
    text = (tmp_path / "kernels.cpp").read_text()
    assert all(f'extern "C" void {row["name"]}(' in text for row in rows)
    # four bits and a scale for 2048 weights; eight and four bits with a scale for 128 gradients
    assert {row["bytes_per_element"] for row in rows} >= {
        0.5 + 4 / 2048,
        1 + 4 / 128,
        0.5 + 4 / 128,
    }
    assert (tmp_path / "build").stat().st_mode & 0o777 == 0o700


def test_unknown_names_and_targets_are_told(capsys):
    assert main(["kernels", "gzip"]) == 2
    assert "sdp4bit" in capsys.readouterr().err
    assert main(["kernels", "sdp4bit", "--target", "tpu"]) == 2
    assert "hip:gfx942" in capsys.readouterr().err
    assert main(["kernels", "sdp4bit", "--target", "cuda:999"]) == 2
    assert "cuda:90" in capsys.readouterr().err


@pytest.mark.skipif(TRITON, reason="Triton is there")
def test_gpus_need_triton(capsys):
    assert main(["kernels", "sdp4bit", "--target", "cuda:90"]) == 2
    assert "plait[triton]" in capsys.readouterr().err


@pytest.mark.skipif(not TRITON, reason="no Triton")
def test_kernels_for_gpus(tmp_path, capsys):
    target = "cuda:90,hip:gfx942"
    assert (
        main(["kernels", "sdp4bit.weights", "--target", target, "-o", str(tmp_path), "--json"]) == 0
    )
    rows = json.loads(capsys.readouterr().out)["kernels"]
    assert {row["target"] for row in rows} == {"cuda:90", "hip:gfx942"}
    assert all(0 < row["registers"] <= 96 and row["spills"] == 0 for row in rows)
    assert len(list(tmp_path.glob("*.cuda_90.ptx"))) == len(rows) // 2
    assert (tmp_path / "build").stat().st_mode & 0o777 == 0o700


def test_a_table_and_the_user_s_cache(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["kernels", "bf16", "--target", "cpu"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["kernel", "target", "registers", "spills", "bytes/element"]
    assert all(row.split()[1:] == ["cpu", "-", "-", "2"] for row in rows)
    assert any((tmp_path / "plait" / "kernels").glob("*.so"))


def test_help_needs_no_torch():
    code = (
        "import sys; from plait.api.cli import command_parser\n"
        "try: command_parser().parse_args(['kernels', '--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
