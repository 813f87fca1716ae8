"""Every pass of the compiler on a small model: what it gives is a golden text."""

import pytest
import torch
from torch import nn

from plait.api.cli import main
from plait.api.commands.print_after import compile_printers, plan_printers, trace_printers
from plait.api.options import options_from
from plait.api.plans.plan_object import load_plan
from plait.codegen.program import compile_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import TRACE_PASSES, trace
from plait.ir.lowering.cast import in_precision
from plait.ir.lowering.rescale import Rescale
from plait.ir.passes import Pass, run
from plait.ir.text.plan import parse_plan
from plait.planner.search.plan import Search
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
    printed: dict[str, list[str]] = {}
    trace(
        Net(),
        torch.zeros(8, 4),
        observer=lambda step, value: printed.setdefault(step.name, []).append(
            printers[step.name](value)
        ),
    )
    return printed


@pytest.fixture(scope="session")
def later_texts():
    """The texts that the passes of planning, lowering and code generation give, by the pass's name."""
    printers = {**plan_printers(), **compile_printers()}
    printed: dict[str, list[str]] = {}

    def observer(step, value):
        printed.setdefault(step.name, []).append(printers[step.name](value))

    model = run(Rescale(16), trace(Net(), torch.zeros(8, 4)), observer)
    cluster = load_cluster("4xa100-80")
    options = options_from(
        {"pin": ["*:dp=2,tp=2"], "micro_batches": 2, "memory_actions": ("split 2",)}
    )
    plan = run(Search(cluster, options, observer), in_precision(model, "bf16", observer), observer)
    compile_program(plan, in_precision(model, "bf16"), observer=observer)
    compile_zero_bubble(model, observer)
    return printed


def compile_zero_bubble(model, observer):
    """Compile the model under a schedule that runs backward in two parts, and show those parts."""
    options = options_from({"pin": ["*:pp=2,dp=2"], "micro_batches": 2, "schedule": "zb-h1"})
    plan = run(Search(load_cluster("4xa100-80"), options), model)
    only = {"split_backward"}
    compile_program(plan, model, observer=lambda s, v: observer(s, v) if s.name in only else None)


LATER = (
    "chunk",
    "rescale",
    "cast",
    "sharding",
    "search",
    "axes",
    "localize",
    "forward_backward",
    "split_backward",
    "overlap",
    "function",
    "stage",
)


@pytest.mark.parametrize("name", LATER)
def test_passes_of_planning_and_code_generation(later_texts, golden, name):
    golden("\n\n".join(dict.fromkeys(later_texts[name])), name)


def test_every_pass_has_a_printer_and_a_golden_text():
    printers = {**plan_printers(), **compile_printers()}
    assert {step.name for step in subclasses(Pass)} == set(printers)
    assert set(printers) == {step.name for step in TRACE_PASSES} | set(LATER)


def subclasses(kind):
    for sub in kind.__subclasses__():
        yield from subclasses(sub) if sub.__subclasses__() else [sub]


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
    assert "unknown pass 'rewite'; did you mean rewrite? known: export," in capsys.readouterr().err


def test_print_after_a_pass_of_planning_and_of_code_generation(tmp_path, capsys, llama_file):
    model, plan = llama_file, str(tmp_path / "plan.json")
    command = ["plan", model, "--cluster", "4xh100", "--pin", "*:dp=4"]
    main([*command, "-o", plan])
    capsys.readouterr()
    assert main([*command, "--print-after", "search"]) == 0
    printed = parse_plan(capsys.readouterr().out)
    assert printed.shardings == load_plan(plan).shardings
    assert main(["compile", plan, model, "--print-after", "stage"]) == 0
    assert capsys.readouterr().out.startswith('# after stage\n"""Stage 0 of 1: dp=4')
