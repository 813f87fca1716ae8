"""The training script of docs/guide/training.md runs as it stands."""

import re

import torch
from torch import nn

import plait
from plait.runtime.launch.session import session
from plait.tests.paths import ROOT


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x, y=None):
        scores = self.head(torch.relu(self.inner(x)))
        return scores if y is None else nn.functional.cross_entropy(scores, y)


def batch(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        "x": torch.randn(4, 8, generator=generator),
        "y": torch.randint(0, 4, (4,), generator=generator),
    }


def test_the_training_script_runs(tmp_path) -> None:
    text = (ROOT / "docs" / "guide" / "training.md").read_text()
    script = "".join(re.findall(r"```python\n(.*?)```", text, re.S))
    names = {
        "plait": plait,
        "torch": torch,
        "model": Net(),
        "batch": batch(0),
        "folder": tmp_path,
        "loader": lambda step, count: [batch(step * count + i) for i in range(count)],
    }
    with session("gloo"):
        exec(compile(script, "docs/guide/training.md", "exec"), names)
        expected = names["model"].eval()(**names["batch"])
    torch.testing.assert_close(names["loss"], expected.detach().double())
    assert names["outputs"].shape == names["mine"].shape == (4, 4)
    program = names["program"]
    assert (program.steps, program.batches) == (3, 6)
    decays = [g["weight_decay"] for g in program.optimizer.param_groups]
    assert decays == [0.1, 0.0]
    assert program.optimizer.param_groups[0]["lr"] == names["scheduler"].get_last_lr()[0] < 3e-4
