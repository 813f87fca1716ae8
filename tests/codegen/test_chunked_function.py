"""Functions in pieces and values in host memory: what fits nowhere else fits, and computes the same."""

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.errors import FileError, InfeasibleError
from plait.ir.plan.memory_action import BASIC_ACTIONS
from plait.ir.plan.verify import verify_plan
from plait.planner import PlanOptions, plan
from plait.planner.activations.ladder import OFFLOADED_ACTIONS, PARTIAL_ACTIONS
from plait.runtime.execution.offload import HostBuffer
from plait.runtime.launch.session import session
from plait.runtime.program import Program
from plait.runtime.verification.live_bytes import LiveBytes

STEPS, BATCH, TOKENS, WIDTH, VOCABULARY = 3, 8, 32, 16, 4096


class Wide(nn.Module):
    """Next to its logits everything is small."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens, labels):
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return nn.functional.cross_entropy(self.head(x).transpose(1, 2), labels)


def wide():
    torch.manual_seed(0)
    tokens = torch.randint(64, (BATCH, TOKENS))
    return Wide(), {"tokens": tokens, "labels": torch.randint(VOCABULARY, (BATCH, TOKENS))}


def planned(model, actions, **options):
    asked = PlanOptions(memory_actions=actions, micro_batches=1, **options)
    return plan(model, load_cluster("local:1"), asked)


@pytest.mark.ranks
def test_a_model_that_fits_no_other_way_fits_in_chunks(tmp_path):
    module, batch = wide()
    model = trace(module, batch)
    actions = (*BASIC_ACTIONS, *PARTIAL_ACTIONS, *OFFLOADED_ACTIONS)
    without = min(planned(model, (str(m),)).peak_bytes for m in actions)
    budget = (without + planned(model, ("split 16",)).peak_bytes) // 2
    with pytest.raises(InfeasibleError, match="short"):
        planned(model, ("keep", "recompute"), memory_bytes=budget)
    plan = planned(model, ("keep", "recompute", "offload", "split"), memory_bytes=budget)
    assert any(layers.memory.chunked for layers in plan.layers)
    assert plan.peak_bytes <= budget
    with pytest.raises(FileError, match="no division says how"):
        verify_plan(replace(plan, chunkings=()))
    write_program(compile_program(plan, model), tmp_path / "program")
    expected = trained(module, batch)
    with session("gloo"), LiveBytes() as live:
        program = Program.open(tmp_path / "program", module, optimizer_args={"lr": 0.01})
        live.restart()  # making the first values is not training
        losses = [program.step(batch).item() for _ in range(STEPS)]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert live.peak <= budget - dict(plan.stages[0].memory_terms)["runtime"]


def trained(module, batch):
    """Losses of plain steps; the module is as before."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = module(**batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    module.load_state_dict(before)
    return losses


class SharedBias(nn.Module):
    """The first layer makes a bias that does not depend on the batch, and hands it on to the second."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(SharedBiasLayer(first) for first in (True, False))

    def forward(self, x):
        bias = None
        for layer in self.layers:
            x, bias = layer(x, bias)
        return x.square().mean()


class SharedBiasLayer(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(1, WIDTH)) if first else None

    def forward(self, x, bias):
        bias = self.bias.tanh() if bias is None else bias
        return torch.tanh(self.linear(x) + bias), bias


@pytest.mark.ranks
def test_the_gradient_of_a_value_without_samples_counts_once(tmp_path):
    torch.manual_seed(0)
    module, x = SharedBias().double(), torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.float64)
    model = trace(module, (x,))
    made = planned(model, ("split 4",))
    assert {layers.memory.chunks for layers in made.layers} == {4}
    write_program(compile_program(made, model), tmp_path / "program")
    module(x).backward()
    with session("gloo"):
        program = Program.open(tmp_path / "program", module)
        program.forward_backward((x,))
        gradients = program.full_gradients()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_host_memory_gives_back_what_it_took(dtype):
    values = tuple(torch.randint(0, 2, shape).to(dtype) for shape in ((3, 4), (), (0, 2), (4, 3)))
    turned = (*values[:3], values[3].t())
    with LiveBytes(turned) as live:
        host = HostBuffer(torch.device("cpu"))
        host.offload((7, 0), turned)
        assert live.bytes == sum(value.nbytes for value in values)
        assert host.bytes == live.bytes
        back = host.restore((7, 0))
    assert host.bytes == 0
    for one, other in zip(turned, back, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
        assert (
            one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr() or not one.nbytes
        )


def test_values_that_share_memory_travel_once():
    whole, other = torch.arange(24.0), torch.arange(1000.0)
    views = (whole.view(4, 6), whole.view(4, 6).t(), whole[6:12], other[990:], other[::10])
    host = HostBuffer(torch.device("cpu"))
    host.offload((0, 0), views)
    assert host.bytes == 24 * 4 + 10 * 4 + 100 * 4  # of the other one, two parts alone
    back = host.restore((0, 0))
    assert all(torch.equal(one, two) for one, two in zip(views, back, strict=True))
    assert back[0].untyped_storage().data_ptr() == back[1].untyped_storage().data_ptr()
    assert back[1].stride() == views[1].stride()


def test_of_a_micro_batch_the_last_call_comes_back_first():
    host = HostBuffer(torch.device("cpu"))
    for micro in (0, 1, 2):
        for call in (3, 4, 5):
            host.offload((call, micro), (torch.zeros(2),))
    host.restore((5, 0))
    assert host.next_key((5, 0)) == (4, 0)
    host.restore((4, 0))
    host.restore((3, 0))
    assert host.next_key((3, 0)) is None
    assert host.next_key((5, 1)) == (5, 1)


def test_a_call_may_leave_nothing_in_host_memory():
    host = HostBuffer(torch.device("cpu"))
    host.offload((0, 0), ())
    host.fetched[0, 0] = host.fetch((0, 0))  # as where it was fetched ahead
    assert host.restore((0, 0)) == ()
