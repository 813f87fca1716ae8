"""Compiled programs of the zoo train as those of single operators do, in float64."""

import pytest
import torch

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.model.model import Model
from plait.ir.plan.program import Kernels
from plait.planner import PlanOptions, plan
from plait.runtime.launch.session import session
from plait.runtime.program import Program
from plait.tests import zoo

STEPS = 2
BOUND, FLOAT32_BOUND = 1e-9, 1e-6  # the latter where a model computes in float32 in between


def bound_of(model: Model) -> float:
    """How far results may be apart: by rounding of the widest type that every value has."""
    narrow = any(t.dtype == "float32" for f in model.functions for t in f.types)
    return FLOAT32_BOUND if narrow else BOUND


def float64(name: str):
    torch.manual_seed(0)
    module, batch = zoo.ZOO[name]()
    wide = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    return module.double().train(), wide


def trained(name: str, kernels: Kernels, folder) -> tuple[list[torch.Tensor], float]:
    """Losses, then parameters after some steps, and how far they may be apart."""
    module, batch = float64(name)
    apart = not any(isinstance(m, torch.nn.BatchNorm2d) for m in module.modules())
    options = PlanOptions(micro_batches=2 if apart else 1, memory_actions=("keep",))
    model = trace(module, batch)
    planned = plan(model, load_cluster("local:1"), options)
    write_program(compile_program(planned, model, kernels=kernels), folder / kernels)
    with session("gloo"):
        running = Program.open(folder / kernels, module, torch.optim.SGD, {"lr": 0.1})
        losses = [running.step(batch) for _ in range(STEPS)]
        compiler = running.variants.first.compiler
        assert (compiler is not None and len(compiler.kernels) > 0) == (kernels == "inductor")
        values = [*losses, *(p.flat.clone() for p in running.store.parameters.values())]
        return values, bound_of(model)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_compiled_functions_are_whole_graphs_and_give_the_same(name: str, tmp_path) -> None:
    expected, bound = trained(name, "aten", tmp_path)
    for one, other in zip(trained(name, "inductor", tmp_path)[0], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)
