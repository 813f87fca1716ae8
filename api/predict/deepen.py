"""A model of a few equal layers, made as deep as wanted: layers are calls, and calls are data."""

from __future__ import annotations

from msgspec.structs import replace

from ...ir.model import Call, Model, Parameter


def deepen(model: Model, layers: int) -> Model:
    """The model with so many of its repeated call that it has `layers`; others stay at its ends.

    The repeated call is the last but one; every copy has parameters of its own.
    """
    name = model.calls[-2].function
    places = [i for i, call in enumerate(model.calls) if call.function == name]
    first, last = model.calls[places[0]], model.calls[places[-1]]
    ends = (model.calls[: places[0]], model.calls[places[-1] + 1 :])
    count = layers - sum(call.path.startswith("layers.") for calls in ends for call in calls)
    held = {p.name: p for p in model.parameters}
    own = [n for n in first.parameters if n not in last.parameters]
    copied = {n for i in places for n in model.calls[i].parameters if n not in _common(first, last)}
    parameters = [p for n, p in held.items() if n not in copied]
    calls: list[Call] = []
    for number in range(count):
        calls.append(_copy(first, number, own, calls[-1] if calls else None))
        parameters += _renamed(held, own, number)
    calls[-1] = replace(calls[-1], results=last.results)
    return replace(model, calls=(*ends[0], *calls, *ends[1]), parameters=tuple(parameters))


def _common(first: Call, last: Call) -> set[str]:
    """What all layers share."""
    return set(first.parameters) & set(last.parameters)


def _copy(template: Call, number: int, own: list[str], before: Call | None) -> Call:
    names = {n: f"{number}.{n}" for n in own}
    arguments = (
        template.arguments if before is None else (before.results[0], *template.arguments[1:])
    )
    return replace(
        template,
        parameters=tuple(names.get(n, n) for n in template.parameters),
        arguments=arguments,
        results=tuple(f"{r}_{number}" for r in template.results),
    )


def _renamed(held: dict[str, Parameter], own: list[str], number: int) -> list[Parameter]:
    return [replace(held[n], name=f"{number}.{n}", aliases=()) for n in own]
