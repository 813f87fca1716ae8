"""The graph of calls agrees with what the calls say."""

import pytest
import torch
from torch import nn

from plait.ir.analysis.model_graph import CallEnd, ModelGraph
from plait.ir.capture import trace


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_makers_and_readers_are_each_others_ends(name, traced):
    model = traced(name)
    graph = ModelGraph(model)
    made = [n for call in model.calls for n in call.results]
    assert all(graph.maker(item.name) is None for item in model.inputs)
    for value in made:
        maker = graph.maker(value)
        assert model.calls[maker.call].results[maker.position] == value
        assert list(graph.readers(value)) == sorted(graph.readers(value))
    ends = {
        CallEnd(number, position): value
        for number, call in enumerate(model.calls)
        for position, value in enumerate(call.arguments)
    }
    assert ends == {end: v for v in set(ends.values()) for end in graph.readers(v)}
    assert graph.readers("nowhere") == ()
    assert graph.batch_only == model.batch_only_calls()


def test_every_input_of_a_function_is_filled(traced):
    model = traced("gpt2")
    graph = ModelGraph(model)
    for number, call in enumerate(model.calls):
        function = graph.function(number)
        filled = (*graph.parameters(number), *graph.arguments(number))
        assert [n for n, _ in filled] == [*call.parameters, *call.arguments]
        assert [i for _, i in filled] == [i for i in function.inputs if i.kind != "key"]
        assert [o for _, o in graph.results(number)] == list(function.outputs)


class Layer(nn.Module):
    """Two results, of which the second is not always read with a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = self.first(x).relu()
        return h, self.second(h)


class Partly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.teacher, self.unused, self.zero = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.gate, self.shape = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x):
        taught, seconds = self.teacher(x).detach(), []
        for layer in self.layers:
            x, second = layer(x * (self.gate > 0.5))
            seconds.append(second)
        loss = (x - taught).square().mean() + seconds[1].mean() + seconds[3].detach().mean()
        return loss + 0.0 * self.zero(x).sum() + torch.zeros_like(self.shape).sum()


def test_reached_are_the_parameters_with_a_gradient_in_eager() -> None:
    module, x = Partly(), torch.randn(4, 8)
    model = trace(module, x)
    module(x).backward()
    expected = {n for n, p in module.named_parameters() if p.grad is not None}
    assert {"zero.weight", "layers.1.second.weight"} <= expected
    assert ModelGraph(model).reached == expected
