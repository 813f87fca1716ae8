"""Compiled programs of the zoo train as those of single operators do, in float64."""

import pytest
import torch

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.plan.program import Kernels, with_kernels
from plait.planner import PlanOptions, plan
from plait.runtime.launch.session import session
from plait.runtime.program import Program
from plait.tests import zoo

STEPS, BOUND = 2, 1e-9


def float64(name: str):
    torch.manual_seed(0)
    module, batch = zoo.ZOO[name]()
    wide = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    return module.double().train(), wide


def trained(name: str, kernels: Kernels, folder) -> list[torch.Tensor]:
    """Losses, then parameters after some steps."""
    module, batch = float64(name)
    options = PlanOptions(micro_batches=2, memory_actions=("keep",))
    model = trace(module, batch)
    program = compile_program(plan(model, load_cluster("local:1"), options), model)
    write_program(with_kernels(program, kernels), folder / kernels)
    with session("gloo"):
        running = Program.open(folder / kernels, module, torch.optim.SGD, {"lr": 0.1})
        losses = [running.step(batch) for _ in range(STEPS)]
        compiler = running.variants.first.compiler
        assert (compiler is not None and len(compiler.kernels) > 0) == (kernels == "inductor")
        return [*losses, *(p.flat.clone() for p in running.store.parameters.values())]


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_compiled_functions_are_whole_graphs_and_give_the_same(name: str, tmp_path) -> None:
    expected = trained(name, "aten", tmp_path)
    for one, other in zip(trained(name, "inductor", tmp_path), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=BOUND, atol=BOUND)
