"""Every operator of a program makes its tensors on the program's device: a step on the meta device."""

import os

import pytest
import torch

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.launch.session import session
from plait.runtime.program import Program
from plait.tests import zoo
from plait.tests.sampling import some

ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}


@pytest.fixture(scope="module")
def one_rank():
    """This process as the only rank of a group."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ALONE.items():
            patch.setitem(os.environ, name, value)
        with session("gloo"):
            yield


@pytest.mark.parametrize("name", some(zoo.ZOO, 6))
def test_a_step_makes_no_tensor_on_another_device(name, one_rank, traced, tmp_path):
    """Operators of the meta device refuse tensors of the CPU."""
    options = PlanOptions(pins=pin_all("dp=1"), memory_actions=("keep",))
    write_program(
        compile_program(plan(traced(name), load_cluster("local:1"), options), traced(name)),
        tmp_path / "program",
    )
    module, batch = zoo.ZOO[name]()
    program = Program.open(
        tmp_path / "program", module.train(), torch.optim.AdamW, {"lr": 1e-3}, device="meta"
    )
    assert program.forward_backward(batch).device.type == "meta"
