"""The command line: exit codes, JSON, and that help needs no torch."""

import json
import subprocess
import sys

import pytest

from plait.api.cli import main
from plait.api.commands.table import COMMANDS
from plait.api.plans.plan_object import load_plan
from plait.ir.text.sharding import parse_sharding
from plait.tests.paths import LLAMA


@pytest.mark.parametrize("command", [c.name for c in COMMANDS])
def test_help_is_there(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "usage: plait" in capsys.readouterr().out


def test_help_loads_no_torch():
    code = (
        "import sys; from plait.api.cli import command_parser; command_parser()\n"
        "print({'torch', 'ortools', 'numba', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_trace_plan_view_check(tmp_path, capsys):
    model, plan_file, page = (
        tmp_path / "model.json",
        tmp_path / "plan.json",
        tmp_path / "report.html",
    )
    assert main(["trace", LLAMA, "--json", "-o", str(model)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["functions"] == 4
    assert figures["opaque"] == []
    assert main(["plan", str(model), "--cluster", "8xh100", "--json", "-o", str(plan_file)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["status"] in ("optimal", "feasible")
    assert all(row["peak"] <= row["budget"] for row in figures["memory"])
    assert main(["view", str(plan_file), "--model", str(model), "-o", str(page)]) == 0
    text = page.read_text()
    assert "default-src 'none'" in text
    assert "http://" not in text
    assert main(["check", str(plan_file)]) == 0
    assert main(["explain", str(plan_file), "--memory"]) == 0
    assert "optimizer" in capsys.readouterr().out


def test_broken_files_exit_6(tmp_path, capsys):
    file = tmp_path / "plan.json"
    for text in ("{", '{"format": "plait/plan", "version": 2}', '{"format": "x"}', "[1]", "NaN"):
        file.write_text(text)
        assert main(["check", str(file)]) == 6
        assert "plan.json" in capsys.readouterr().err


def test_usage_exits_2():
    assert main(["plan", LLAMA, "--cluster", "8xnothing"]) == 2


def test_too_little_memory_exits_3():
    assert main(["plan", LLAMA, "--cluster", "8xh100", "--memory", "1MB"]) == 3


def test_a_branch_on_data_exits_5_with_file_and_line(tmp_path, capsys):
    source = tmp_path / "branchy.py"
    source.write_text(
        "import torch\n"
        "class Branchy(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        if len(torch.unique(x)) > 1:\n"
        "            return x.mean()\n"
        "        return -x.mean()\n"
        "def make():\n"
        "    return Branchy(), (torch.randn(4, 4),)\n"
    )
    assert main(["trace", f"{source}:make"]) == 5
    assert "branchy.py:4" in capsys.readouterr().err.replace('", line ', ":")


def test_explain_sharding_reads_back(tmp_path, capsys, llama_file):
    model, plan = llama_file, tmp_path / "plan.json"
    main(["plan", model, "--cluster", "4xh100", "--pin", "*:dp=2,tp=2", "-o", str(plan)])
    capsys.readouterr()
    for arguments in ([], ["model.layers.0", "--model", model], ["llama*"]):
        assert main(["explain", str(plan), *arguments, "--sharding"]) == 0
        texts = capsys.readouterr().out.split("\n\n")
        assert set(map(parse_sharding, texts)) <= set(load_plan(plan).shardings)
    assert "  mlp.down_proj mm" in texts[0]
