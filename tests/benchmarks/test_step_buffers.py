"""The lifetimes of a step hold in a real arena: the step runs inside it with the same numbers."""

from random import Random

import pytest
import torch

from plait.benchmarks.step_buffers import step_buffers
from plait.ir.capture import trace
from plait.ir.capture.execute import _Interpreter, execute, run_op
from plait.ir.capture.operators.elementary import call_key
from plait.ir.lowering.forward_backward import partition
from plait.ir.plan.allocation import Buffer
from plait.planner.allocation.arena.judge import height
from plait.planner.allocation.arena.sections import sections
from plait.planner.allocation.repeated_layers import block_offsets, pack_repeated
from plait.tests import zoo
from plait.tests.sampling import some

MAKERS = (zoo.llama, zoo.mixtral, zoo.t5, zoo.resnet)


class Arena:
    """One block of memory; a value with an address is moved there as soon as it is made."""

    def __init__(self, found, packing):
        self.memory = torch.full((packing.peak_bytes,), 255, dtype=torch.uint8)
        self.places = {
            b.name: (at, b.size) for b, at in zip(found.buffers, packing.offsets, strict=True)
        }

    def keep(self, name: str, value: torch.Tensor) -> torch.Tensor:
        if name not in self.places:
            return value
        at, size = self.places[name]
        assert value.nbytes <= size
        stored = self.memory[at : at + value.nbytes]
        stored.copy_(value.contiguous().reshape(-1).view(torch.uint8))
        return stored.view(value.dtype).reshape(value.shape)


def run_inside(model, parameters, batch, found, packing, variant):
    """A step whose every value with an address lies in the arena."""
    arena = Arena(found, packing)
    run = _Interpreter(
        model, dict(parameters), {i.name: t for i, t in zip(model.inputs, batch, strict=True)}
    )
    saved = {}

    def graph(ops, number, label, values):
        for op in ops:
            for r, made in zip(op.results, run_op(op, values.__getitem__), strict=True):
                if r >= 0:
                    values[r] = arena.keep(f"0.{number}.{label}.{r}", made)

    for number, call in enumerate(model.calls):
        function = run.functions[call.function]
        values = run.inputs(function, call, call_key(0, 0, number))
        ops = (
            partition(function, variant).forward
            if function.differentiable
            else function.forward_ops
        )
        graph(ops, number, "forward", values)
        run.values.update(
            {n: values[o.value] for n, o in zip(call.results, function.outputs, strict=True)}
        )
        saved[number] = values
    loss = run.values[model.loss].clone()
    run.gradients[model.loss] = torch.ones_like(loss)
    for number, call in reversed(list(enumerate(model.calls))):
        function = run.functions[call.function]
        if function.differentiable:
            backward(run, arena, graph, number, call, function, saved[number], variant)
    return loss, run.parameter_gradients


def backward(run, arena, graph, number, call, function, values, variant):
    graphs = partition(function, variant)
    live = {i.value for i in function.inputs}
    values = {v: t for v, t in values.items() if v in live or v in graphs.saved}
    for name, output in zip(call.results, function.outputs, strict=True):
        if output.tangent is not None:
            zero = torch.zeros_like(run.values[name])
            values[output.tangent] = run.gradients.pop(name, zero)
    graph(graphs.backward, number, "backward", values)
    names = (*call.parameters, *call.arguments, *(("",) if function.random else ()))
    for at, (name, item) in enumerate(zip(names, function.inputs, strict=True)):
        if item.gradient is None:
            continue
        more = values[item.gradient]
        into = run.gradients if item.kind == "activation" else run.parameter_gradients
        if item.kind != "activation":
            into[name] = into[name] + more if name in into else more.clone()
        elif name in into:
            into[name] = arena.keep(
                f"0.{number}.sum {at - len(call.parameters)}", into[name] + more
            )
        else:
            into[name] = more


@pytest.mark.parametrize("variant", ["keep", "recompute"])
@pytest.mark.parametrize("make", some(MAKERS, 2), ids=lambda make: make.__name__)
def test_a_step_runs_inside_an_arena_near_its_live_bytes(make, variant):
    torch.manual_seed(0)
    module, batch = make()
    model = trace(module, batch)
    live = {n: t.detach() for n, t in (*module.named_parameters(), *module.named_buffers())}
    tensors = [batch[i.path[0]] for i in model.inputs]
    step = step_buffers(model, variant)
    packing = pack_repeated(step.buffers, step.segment_starts, time_limit_seconds=0.05)
    assert height(step.buffers, packing.offsets) == packing.peak_bytes
    assert packing.peak_bytes <= 1.02 * sections(step.buffers).bound()
    with torch.no_grad():
        loss, gradients = run_inside(model, live, tensors, step, packing, variant)
    expected, wanted, _ = execute(model, live, tensors)
    assert torch.equal(loss, expected)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_recomputing_lives_in_less():
    model = trace(*zoo.llama(layers=6))
    stored, again = (
        sections(step_buffers(model, v).buffers).bound() for v in ("keep", "recompute")
    )
    assert again < stored


def test_stacks_are_sound_wherever_time_is_cut():
    for seed in range(60):
        random = Random(seed)
        buffers = []
        for i in range(30):
            lower = random.randint(0, 40)
            buffers.append(
                Buffer(f"b{i}", lower, lower + random.randint(1, 9), random.randint(1, 9))
            )
        bounds = [0, *sorted(random.sample(range(1, 49), 4)), 50]
        offsets = block_offsets(buffers, bounds, 0.2)
        made = pack_repeated(buffers, bounds, time_limit_seconds=0.2)
        assert height(buffers, made.offsets) == made.peak_bytes <= height(buffers, offsets)
