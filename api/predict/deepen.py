"""Repeats the equal layers of a traced model, whose calls are data, to any depth."""

from __future__ import annotations

from msgspec.structs import replace

from ...ir.model.model import Call, Model, Parameter


def deepen(model: Model, layers: int) -> Model:
    """The model with `layers` layers in all: copies of the last call but one, between the others.

    Every copy has its own parameters.
    """
    name = model.calls[-2].function
    places = [i for i, call in enumerate(model.calls) if call.function == name]
    first, last = model.calls[places[0]], model.calls[places[-1]]
    ends = (model.calls[: places[0]], model.calls[places[-1] + 1 :])
    count = layers - sum(call.path.startswith("layers.") for calls in ends for call in calls)
    parameter_of = {p.name: p for p in model.parameters}
    layer_names = [n for n in first.parameters if n not in last.parameters]
    copied = {n for i in places for n in model.calls[i].parameters if n not in _common(first, last)}
    parameters = [p for n, p in parameter_of.items() if n not in copied]
    calls: list[Call] = []
    for number in range(count):
        calls.append(_copy(first, number, layer_names, calls[-1] if calls else None))
        parameters += _renamed(parameter_of, layer_names, number)
    calls[-1] = replace(calls[-1], results=last.results)
    return replace(model, calls=(*ends[0], *calls, *ends[1]), parameters=tuple(parameters))


def _common(first: Call, last: Call) -> set[str]:
    """Parameters that all layers share."""
    return set(first.parameters) & set(last.parameters)


def _copy(template: Call, number: int, layer_names: list[str], before: Call | None) -> Call:
    names = {n: f"{number}.{n}" for n in layer_names}
    arguments = (
        template.arguments if before is None else (before.results[0], *template.arguments[1:])
    )
    return replace(
        template,
        parameters=tuple(names.get(n, n) for n in template.parameters),
        arguments=arguments,
        results=tuple(f"{r}_{number}" for r in template.results),
    )


def _renamed(
    parameter_of: dict[str, Parameter], layer_names: list[str], number: int
) -> list[Parameter]:
    return [replace(parameter_of[n], name=f"{number}.{n}", aliases=()) for n in layer_names]
