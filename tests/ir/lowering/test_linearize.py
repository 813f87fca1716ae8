"""A step written out as one list of operators is the model's step."""

import pytest
import torch
from msgspec.structs import replace

from plait.ir.capture import trace
from plait.ir.capture.execute import run_ops
from plait.ir.lowering.linearize import linearize, units
from plait.ir.model.verify import verify_function


class Twice(torch.nn.Module):
    """One layer called twice, of whose last call one result is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.layer(x))
        y.exp()
        return (self.layer(y.view(2, -1).view(-1, 4)) ** 2).sum()


@pytest.fixture(scope="module")
def model():
    return trace(Twice(), (torch.randn(6, 4),))


def test_run_alone_it_makes_loss_gradients_and_buffers(model):
    torch.manual_seed(0)
    module, x = Twice(), torch.randn(6, 4)
    step = linearize(model)
    state_tensors = {
        n: t.detach().clone() for n, t in (*module.named_parameters(), *module.named_buffers())
    }
    values = {v: state_tensors[n] for v, n in step.state_tensors.items()} | {
        v: x for v in step.batch
    }
    values |= {v: torch.full(step.types[v].shape, n) for v, n in step.fills.items()}
    wanted = [step.loss, *step.gradients.values(), *step.updates.values()]
    results = run_ops(step.ops, values, wanted)
    loss = module(x)
    loss.backward()
    torch.testing.assert_close(results[step.loss], loss.detach())
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(results[step.gradients[name]], parameter.grad)
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(results[step.updates[name]], buffer)


def test_every_value_is_made_once_and_before_it_is_read(model):
    step = linearize(model)
    known = {*step.state_tensors, *step.batch, *step.keys, *step.fills}
    for op in step.ops:
        assert known.issuperset(op.operands())
        assert known.isdisjoint(op.results)
        known.update(r for r in op.results if r >= 0)
    assert verify_function(replace(step.function, ops=(), forward=0), "$") is None


def test_what_leads_nowhere_is_left_out_and_views_are_no_units(model):
    step = linearize(model)
    assert not any(op.target == "aten.exp.default" for op in step.ops)
    names = [unit.name for unit in units(step, model)]
    views = [m for m in step.origins if m.view]
    assert views
    assert len(names) == len(model.parameters) * 2 + len(step.ops) - len(views)


def test_a_view_is_the_memory_of_what_it_looks_at(model):
    step = linearize(model)
    roots = step.roots()
    for op, mark in zip(step.ops, step.origins, strict=True):
        for result in op.results:
            if result >= 0:
                assert (roots[result] == result) == (not mark.view)
