"""The graph of calls agrees with what the calls say."""

import pytest

from plait.ir.analysis.model_graph import CallEnd, ModelGraph


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
