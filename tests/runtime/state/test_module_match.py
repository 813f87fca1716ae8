"""A program opens for the module that was compiled, and names what differs in any other."""

from pathlib import Path

import pytest
import torch
from torch import nn

from plait.api.cli import main
from plait.api.commands.run import verify_source
from plait.ir.capture import load_source, materialize
from plait.ir.errors import MismatchError, UsageError
from plait.runtime.launch.program_folder import read_table
from plait.runtime.launch.session import session
from plait.runtime.program import Program

MODEL = """
import torch
from torch import nn

SLOPE = 0.1


def bend(x):
    return nn.functional.leaky_relu(x, SLOPE)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 16)
        self.drop, self.act = nn.Dropout(0.25), nn.functional.gelu

    def forward(self, x):
        return self.last(self.drop(self.act(bend(self.first(x))))).square().mean()


def make():
    return Net(), (torch.randn(4, 8),)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The model's file and its program for one rank, in a folder."""
    folder = tmp_path_factory.mktemp("program")
    file, plan = folder / "net.py", folder / "plan.json"
    file.write_text(MODEL)
    source = f"{file}:make"
    assert main(["plan", source, "--cluster", "local:1", "-o", str(plan)]) == 0
    assert main(["compile", str(plan), source, "-o", str(folder / "program")]) == 0
    return file, folder / "program"


def test_the_same_module_opens_and_trains(compiled):
    file, program = compiled
    with session("gloo"):
        source = materialize(f"{file}:make", dtype="float32")
        assert torch.isfinite(Program.open(program, source.model).step(source.batch))
    verify_source(program)


def change(module: nn.Module, name: str) -> None:
    changes = {
        "rate": lambda: setattr(module.drop, "p", 0.5),
        "mode": lambda: module.eval(),
        "activation": lambda: setattr(module, "act", nn.functional.silu),
        "frozen": lambda: module.first.weight.requires_grad_(False),
        "kind": lambda: setattr(module, "drop", nn.Identity()),
        "new": lambda: module.add_module("extra", nn.ReLU()),
        "hook": lambda: module.first.register_forward_hook(lambda _, x, result: -result),
        "tied": lambda: setattr(module.last, "bias", module.first.bias),
    }
    changes[name]()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rate", r"drop: p is 0\.5, was 0\.25"),
        ("mode", "the model: in evaluation mode, was in training mode"),
        ("activation", "act is .*silu, was .*gelu"),
        ("frozen", r"first\.weight is frozen, was trained"),
        ("kind", "drop: a .*Identity, was a .*Dropout"),
        ("new", "extra is new"),
        ("hook", r"first: forward_hooks is change\..*, was absent"),
        ("tied", r"last\.bias is tied to first\.bias, was a tensor of its own"),
    ],
)
def test_another_module_is_refused_with_the_difference(compiled, name, said):
    file, program = compiled
    module = load_source(f"{file}:make").model
    change(module, name)
    with session("gloo"), pytest.raises(MismatchError, match=said):
        Program.open(program, module)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("# nothing", "# a comment", None),
        ("SLOPE = 0.1", "SLOPE = 0.2", "the code of Net was changed"),
        ("leaky_relu(x, SLOPE)", "elu(x)", "the code of Net was changed"),
        (".square()", ".abs()", "the code of Net was changed"),
        ("nn.Dropout(0.25)", "nn.Dropout(0.2)", r"drop: p is 0\.2, was 0\.25"),
    ],
)
def test_run_refuses_after_an_edit_of_the_file(compiled, old, new, said):
    file, program = compiled
    file.write_text(MODEL.replace(old, new) + "# the end\n")
    try:
        if said is None:
            verify_source(program)
        else:
            with pytest.raises(MismatchError, match=said):
                verify_source(program)
    finally:
        file.write_text(MODEL)


def test_a_program_of_a_model_file_needs_a_source_with_weights(compiled, tmp_path: Path):
    file, _ = compiled
    model, plan, program = (str(tmp_path / n) for n in ("model.json", "plan.json", "program"))
    assert main(["trace", f"{file}:make", "-o", model]) == 0
    assert main(["plan", model, "--cluster", "local:1", "-o", plan]) == 0
    assert main(["compile", plan, model, "-o", program]) == 0
    with pytest.raises(UsageError, match="--source FACTORY"):
        verify_source(Path(program))
    assert Path(model).is_absolute()
    assert model in read_table(Path(program)).source
