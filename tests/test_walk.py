"""One tensor through all stages, as text: the hidden state of an MLP (ARCHITECTURE shows it)."""

import re

import plait
from plait.codegen.lower import lower
from plait.codegen.program import compile_program
from plait.ir.analysis.dataflow import analyse_dataflow
from plait.ir.capture import load_source, trace
from plait.ir.lowering.overlap import Overlap
from plait.ir.text.function import print_halves, print_op
from plait.ir.text.sharding import print_sharding
from plait.ir.text.summary import model_summary, plan_summary
from plait.tests.paths import LLAMA

LAYER = "llama_decoder_layer"


def in_mlp(ops):
    return [op for op in ops if op.scope.startswith("mlp.")]


def lines_from(text: str, start: str, stop: str) -> list[str]:
    """The lines of a text from one that begins with `start`, indents apart, to the one before `stop`."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip().startswith(start))
    last = next(i for i in range(first + 1, len(lines)) if lines[i].strip().startswith(stop))
    return lines[first:last]


def narrow(line: str) -> str:
    """A line without its columns."""
    return re.sub(r" {2,}(?=[:#])", "  ", line.strip()).replace("  :", " :")


def test_walk(golden):
    source = load_source(LLAMA)
    model = trace(source.model, source.batch)
    plan = plait.plan(model, cluster="4xh100", pin="*:dp=2,tp=2")
    function, dataflow = model.function(LAYER), analyse_dataflow(model)
    functions = lower(plan, model, dataflow, Overlap.on(plan.cluster.device))
    lowered = next(low for low in functions if low.function.name == LAYER)
    program = dict(compile_program(plan, model).files)
    sharding = print_sharding(lowered.sharding, function, dataflow.axes[LAYER]).splitlines()
    forward = len(in_mlp(function.forward_ops))
    saved = next(
        line
        for line in print_halves(lowered.halves, lowered.local.types).splitlines()
        if "saved" in line
    )
    sections = {
        "calls": model_summary(model).splitlines(),
        "trace": [print_op(op, function.types) for op in in_mlp(function.forward_ops)],
        "sharding": [narrow(line) for line in sharding if line.startswith("  mlp.")][:forward],
        "plan": plan_summary(plan).splitlines(),
        "local": [print_op(op, lowered.local.types) for op in after_mlp(lowered.local.forward_ops)],
        "halves": [saved],
        "function": lines_from(program[f"functions/{LAYER}.py"], "# mlp.gate_proj", "return"),
        "stage": lines_from(program["stage_0.py"], "def forward(", "def "),
    }
    golden(
        "\n\n".join("\n".join([f"## {name}", *lines]) for name, lines in sections.items()), "walk"
    )


def after_mlp(ops):
    """The operators from the MLP's first to the one after its all-reduce."""
    first = next(i for i, op in enumerate(ops) if op.scope.startswith("mlp."))
    return ops[first:]
