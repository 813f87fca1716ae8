"""Examples of other people's loops on a plan train, on two gloo ranks."""

import pytest

from plait.api.cli import main
from plait.tests.paths import EXAMPLES, LLAMA
from plait.tests.ranks import launch


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("examples") / "plan.json")
    flags = ["--engine", "torch", "--pin", "zero3=2", "--micro-batches", "1", "-o", path]
    assert main(["plan", LLAMA, "--cluster", "local:2", *flags]) == 0
    return path


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("example", "packages"),
    [
        ("hf_trainer.py", ("transformers", "accelerate")),
        ("accelerate_loop.py", ("accelerate",)),
        ("lightning_strategy.py", ("lightning",)),
    ],
)
def test_examples_train(plan, example, packages):
    for package in packages:
        pytest.importorskip(package)
    printed = launch(2, [str(EXAMPLES / example), plan], timeout_seconds=200)
    (line,) = (x for x in printed[0].splitlines() if x.startswith("losses"))
    losses = [float(x) for x in line.split()[1:]]
    assert len(losses) >= 3
    assert losses[-1] < losses[0]
