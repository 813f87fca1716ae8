"""Run on 2 ranks: programs for evaluation, outputs and other batches, against the eager module.

Every plan comes under one of the two, and under both where the `whole` is asked for.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import plait
from plait.codegen import compile_program, write_program
from plait.runtime.launch.session import begin
from plait.tests.our_warnings import our_warnings_are_errors

PLANS = ("dp=2", "zero3=2", "tp=2", "pp=2")
SIZES = (8, 8, 4, 7, 8)  # samples of a step's batch: a small one, and one that 2 ranks cannot split


class Block(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(0.3)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.drop(self.down(F.gelu(self.up(self.norm(x)))))


class Net(nn.Module):
    """Batch norm in front of blocks with dropout; a dict with a loss where there are labels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.BatchNorm1d(16)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, 12)

    def forward(self, x, y=None):
        x = self.scale(x)
        for layer in self.layers:
            x = layer(x)
        scores = self.head(x)
        outputs = {"scores": scores, "best": scores.argmax(-1), "kind": "classes"}
        return outputs if y is None else {"loss": F.cross_entropy(scores, y), **outputs}


def build(rate: float) -> Net:
    torch.manual_seed(0)
    net = Net().double()
    for layer in net.layers:
        layer.drop.p = rate
    return net


def data(number: int, samples: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        "x": torch.randn(samples, 16, dtype=torch.float64, generator=generator),
        "y": torch.randint(0, 12, (samples,), generator=generator),
    }


def evaluate(pin: str) -> None:
    """Losses and outputs as of the module with the trained weights, in `eval()`."""
    module = build(rate=0.3)
    program = plait.parallelize(module, data(0), pin=f"*:{pin}")
    for step in range(2):
        program.step(data(step))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module(data(0)["x"])
        module(data(0)["x"])
    assert ["program is at step 2" in str(w.message) for w in caught] == [True], caught
    program.load_into(module)
    module.eval()
    for samples in (8, 6):
        batch = data(7, samples)
        with torch.no_grad():
            expected = module(**batch)
            loss, outputs = program.eval(batch), program({"x": batch["x"]})
        torch.testing.assert_close(loss, expected["loss"], rtol=1e-12, atol=0)
        torch.testing.assert_close(outputs["scores"], expected["scores"], rtol=1e-12, atol=1e-12)
        assert torch.equal(outputs["best"], expected["best"])
        assert outputs["kind"] == "classes"
    part = program({"x": batch["x"]}, whole=False)["scores"]
    if pin in ("dp=2", "zero3=2"):
        expected["scores"] = expected["scores"].chunk(2)[torch.distributed.get_rank()]
    torch.testing.assert_close(part, expected["scores"], rtol=1e-12, atol=1e-12)


def other_sizes(pin: str) -> None:
    """Batches of several sizes, with weights and states of the optimizer in common."""
    module, reference = build(rate=0.0), build(rate=0.0)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-2)
    program = plait.parallelize(module, data(0), optimizer_args={"lr": 1e-2}, pin=f"*:{pin}")
    for step, samples in enumerate(SIZES):
        batch = data(step, samples)
        optimizer.zero_grad()
        expected = reference(**batch)["loss"]
        expected.backward()
        optimizer.step()
        loss = program.step(batch)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    assert len(program.variants.known) == 2
    trained = program.state_dict()
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-9, atol=1e-12)


def inputs_of_ranks(rank: int) -> None:
    """Batches that differ are refused with the rank's name; parts are put together."""
    steps, losses = [], []
    whole = plait.parallelize(build(rate=0.0), data(0), pin="*:dp=2")
    with pytest.raises(plait.MismatchError, match=r"rank 1 .* inputs='local'"):
        whole.step(data(rank))
    part = {name: tensor.chunk(2)[rank] for name, tensor in data(0).items()}
    local = plait.parallelize(build(rate=0.0), part, pin="*:tp=2", inputs="local")
    local.on_step(steps.append)
    losses = [program.step(b).item() for program, b in ((whole, data(0)), (local, part))]
    assert abs(losses[0] - losses[1]) < 1e-12
    (numbers,) = steps
    assert (numbers.step, numbers.loss) == (1, losses[1])
    assert min(numbers.grad_norm, numbers.sent_bytes, numbers.mfu) > 0
    assert (local.plan.strategy_text, local.metrics) == ("tp=2", numbers)


def opened_from_folder(folder: Path) -> None:
    """A program of a folder evaluates, and takes other sizes, where its module is given."""
    plan = plait.plan(build(rate=0.3), data(0), cluster="local:2", pin="*:zero3=2")
    write_program(compile_program(plan, plait.trace(build(rate=0.3), data(0))), folder)
    alone = plait.Program.open(folder, build(rate=0.3))
    with pytest.raises(plait.UsageError, match=r"plait\.open_program"):
        alone.eval(data(0))
    module = build(rate=0.3)
    program = plait.open_program(folder, module, optimizer_args={"lr": 1e-2})
    for step, samples in enumerate((8, 4)):
        program.step(data(step, samples))
    program.load_into(module)
    batch, module = data(7, 6), module.eval()
    with torch.no_grad():
        expected, outputs = module(**batch), program({"x": batch["x"]})
    torch.testing.assert_close(program.eval(batch), expected["loss"], rtol=1e-12, atol=0)
    torch.testing.assert_close(outputs["scores"], expected["scores"], rtol=1e-12, atol=1e-12)
    assert program.plan is not None


def main() -> None:
    rank, _ = begin()
    inputs_of_ranks(rank)
    whole = "whole" in sys.argv
    for number, pin in enumerate(PLANS):
        if whole or number % 2 == 0:
            evaluate(pin)
        if whole or number % 2:
            other_sizes(pin)
    with tempfile.TemporaryDirectory() as folder:
        opened_from_folder(Path(folder))
    print("done", rank)


if __name__ == "__main__":
    with our_warnings_are_errors():
        main()
