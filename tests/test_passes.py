"""Every pass of the compiler on a small model: what it gives is a golden text."""

import pytest
import torch
from torch import nn

from plait.api.cli import main
from plait.api.commands.print_after import trace_printers
from plait.ir.capture import TRACE_PASSES, trace
from plait.tests.paths import LLAMA


class Layer(nn.Module):
    """A residual layer: x + dropout(relu(x w + b)), the ReLU in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.dropout(self.linear(x).relu_(), 0.5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


@pytest.fixture(scope="session")
def texts():
    """The texts that every pass of a trace gives, by the pass's name."""
    printers = trace_printers()
    shown: dict[str, list[str]] = {}
    trace(
        Net(),
        torch.zeros(8, 4),
        observer=lambda step, value: shown.setdefault(step.name, []).append(
            printers[step.name](value)
        ),
    )
    return shown


@pytest.mark.parametrize("step", TRACE_PASSES, ids=lambda step: step.name)
def test_passes_of_a_trace(texts, golden, step):
    golden("\n\n".join(texts[step.name]), step.name)
    assert step.__doc__


def test_passes_have_names_of_their_own():
    names = [step.name for step in TRACE_PASSES]
    assert len(set(names)) == len(names)


def test_print_after(capsys):
    assert main(["trace", LLAMA, "--print-after", "rewrite"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# after rewrite\ngraph\n")
    assert "plait.attention.default" in text


def test_an_unknown_pass_lists_the_known_ones(capsys):
    assert main(["trace", LLAMA, "--print-after", "rewite"]) == 2
    assert (
        "unknown pass 'rewite'; known: export, functionalize, decompose" in capsys.readouterr().err
    )
