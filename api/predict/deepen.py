"""Repeats the layers of a traced model, whose calls are data, to any depth."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from ...ir.model.model import Call, Model, Parameter

LAYERS = "layers."


def deepen(model: Model, order: Sequence[int]) -> Model:
    """The model with one layer for every item of `order`: the number of the traced layer that it copies.

    Every copy has its own parameters.
    """
    places = [i for i, call in enumerate(model.calls) if call.path.startswith(LAYERS)]
    before, after = model.calls[: places[0]], model.calls[places[-1] + 1 :]
    traced = {call.path.removeprefix(LAYERS): call for call in model.calls[places[0] :]}
    parameters = [p for p in model.parameters if not p.name.startswith(LAYERS)]
    parameter_of = {p.name: p for p in model.parameters}
    calls: list[Call] = []
    for number, source in enumerate(order):
        layer = traced[str(source)]
        names = {n: f"{number}.{n}" for n in layer.parameters if n.startswith(LAYERS)}
        calls.append(_copy(layer, number, names, calls[-1] if calls else model.calls[places[0]]))
        parameters += _renamed(parameter_of, names)
    calls[-1] = replace(calls[-1], results=model.calls[places[-1]].results)
    return replace(model, calls=(*before, *calls, *after), parameters=tuple(parameters))


def _copy(template: Call, number: int, names: dict[str, str], before: Call) -> Call:
    """The template as a layer after the call `before`; the first one reads what that one reads."""
    value = before.results[0] if number else before.arguments[0]
    return replace(
        template,
        path=f"{LAYERS}{number}",
        parameters=tuple(names.get(n, n) for n in template.parameters),
        arguments=(value, *template.arguments[1:]),
        results=tuple(f"{r}_{number}" for r in template.results),
    )


def _renamed(parameter_of: dict[str, Parameter], names: dict[str, str]) -> list[Parameter]:
    return [replace(parameter_of[n], name=name, aliases=()) for n, name in names.items()]
