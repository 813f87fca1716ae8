"""From a model to a running placement on the command line, and what is said when it cannot be."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from plait.api.cli import main
from plait.api.placement import placement_target
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import materialize
from plait.ir.errors import InfeasibleError
from plait.tests.paths import EXAMPLES

SOURCE = f"{EXAMPLES / 'inception_like.py'}:make"


def losses(text: str) -> list[float]:
    return [json.loads(line)["loss"] for line in text.splitlines() if line.startswith("{")]


def one_process(steps: int) -> list[float]:
    module = materialize(SOURCE, seed=0)
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module.model(**module.batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.ranks
def test_a_placed_model_is_compiled_and_trains_as_one_process_does(tmp_path):
    placement, program = str(tmp_path / "placement.json"), str(tmp_path / "program")
    flags = ["--cluster", "local:4", "--devices", "2", "--algorithm", "m-topo"]
    assert main(["place", SOURCE, *flags, "-o", placement]) == 0
    assert main(["check", placement]) == 0
    assert main(["compile", placement, SOURCE, "-o", program]) == 0
    ranks = sorted(p.name for p in Path(program).glob("rank_*.py"))
    assert ranks == [f"rank_{n}.py" for n in range(2)]
    command = [sys.executable, "-m", "plait", "run", program, "--", "--steps", "3"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert losses(output) == pytest.approx(one_process(3), rel=1e-5)


def test_a_graph_without_a_model_is_not_compiled(tmp_path, capsys):
    nodes = [{"id": i, "compute_us": 1.0} for i in range(3)]
    graph = {"format": "placement-graph/1", "nodes": nodes, "edges": []}
    file, placement = tmp_path / "graph.json", str(tmp_path / "placement.json")
    file.write_text(json.dumps(graph))
    assert main(["place", str(file), "--devices", "2", "--memory", "1GiB", "-o", placement]) == 0
    assert main(["compile", placement, SOURCE, "-o", str(tmp_path / "program")]) == 6
    assert "place a model" in capsys.readouterr().err


def test_devices_whose_runtime_takes_all_memory_have_no_placement():
    cluster = load_cluster("2xh100")
    full = msgspec.structs.replace(cluster.device, memory_bytes=1 << 28)
    with pytest.raises(InfeasibleError, match="no memory is left"):
        placement_target(msgspec.structs.replace(cluster, device=full), 2, None, 0.0, 0.0)
