"""Which calls stand alike: stages of the same calls in the same order cost the same.

Calls are alike where they run one function, hold parameters of their own, and get their arguments
from as far back. Deep models have many calls and few kinds, and their stages fewer still.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from ...ir.model import Call, Model

WIDELY = 2  # a value that more calls use is known by its name, wherever they stand


def alike(model: Model, early: Collection[str]) -> list[int]:
    """A number for every call, equal for calls that stand alike; `early` values follow from the
    batch."""
    origin = {
        name: (i, r) for i, call in enumerate(model.calls) for r, name in enumerate(call.results)
    }
    uses = Counter(name for call in model.calls for name in set(call.arguments))
    holders = Counter(name for call in model.calls for name in set(call.parameters))
    trained = {p.name: p.trainable for p in model.parameters}

    def place(i: int, name: str) -> object:
        if name in early:
            return "early"
        if uses[name] > WIDELY:
            return name
        call, result = origin[name]
        return i - call, result

    def face(i: int, call: Call) -> object:
        return (
            call.function,
            tuple(place(i, name) for name in call.arguments),
            tuple(name for name in call.results if uses[name] > WIDELY),
            tuple(name if holders[name] > 1 else trained[name] for name in call.parameters),
        )

    numbers: dict[object, int] = {}
    return [numbers.setdefault(face(i, call), len(numbers)) for i, call in enumerate(model.calls)]
