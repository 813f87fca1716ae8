"""The storages of calls: what one takes, makes, leaves for its backward, and gives back.

Weights, the gradients that they add up to and the batch live elsewhere; a weight's gradient is here
until its call's backward ends, when it is added to its place. Where a call runs in pieces, the storages
of one of them stand for all, which take its place one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from ...ir.model import Input, Model
from .call_storage import Routine
from .lifetimes import Known, Lifetimes

Place = TypeVar("Place", str, str | None)
Sizes = Sequence[int]  # bytes of what a value becomes, one after the other, on its way
Ways = Callable[[int, int], Sizes]  # of an argument, by call and position
Key = tuple[str, int]  # micro-batch and call


def no_way(call: int, position: int) -> Sizes:
    """Arguments are taken as they are made."""
    return ()


class Calls:
    """Walks calls of micro-batches forward and backward and notes their storages.

    `forth` and `back` say what arguments and their gradients pass through between calls; copies to and
    from host memory `hide` behind other calls, or are done before the next one.
    """

    def __init__(
        self,
        model: Model,
        routines: Mapping[int, Routine],
        forth: Ways = no_way,
        back: Ways = no_way,
        hide: bool = True,
    ) -> None:
        self.model, self.routines, self.forth, self.back = model, routines, forth, back
        self.hide = hide
        self.life = Lifetimes()
        self.values: dict[tuple[str, str], str | None] = {}  # by micro-batch and name
        self.gradients: dict[tuple[str, str], str] = {}
        self.taken: dict[Key, list[str | None]] = {}
        self.waiting: dict[Key, tuple[int, ...]] = {}  # in host memory
        self.fetched: dict[Key, Known] = {}
        self.leaving: list[str | None] = []

    def forward(self, micro: str, number: int) -> None:
        """A call's forward piece; its results are values from then on."""
        call, routine, life = self.model.calls[number], self.routines[number], self.life
        life.begin()
        prefix = f"{micro}.{number}"
        taken = [
            self.bring(
                self.values.get((micro, name)), f"{prefix}.taken {at}", self.forth(number, at)
            )
            for at, name in enumerate(call.arguments)
        ]
        self.taken[micro, number] = taken
        weights = self.gather(routine, f"{prefix}.forward")
        outputs = [o.value for o in routine.whole.outputs]
        made = self.wholes(routine, outputs, f"{prefix}.forward")
        known = self.given(routine, taken, f"{prefix}.forward")
        life.run(routine.forward, routine.function, routine.roots, f"{prefix}.forward", known)
        for value, output in zip(outputs, routine.function.outputs, strict=True):
            made.setdefault(value, known.get(routine.roots[output.value]))
        results = [made[value] for value in outputs]
        life.hold(weights, *results)
        self.values.update({(micro, n): m for n, m in zip(call.results, results, strict=False)})
        life.hold(*self.leaving)
        self.leaving = []
        if routine.hosted:
            left = [known.get(routine.roots[v]) for v in routine.saved]
            life.hold(*left)
            self.leaving = left if self.hide else []
            self.waiting[micro, number] = routine.saved

    def backward(self, micro: str, number: int) -> None:
        """A call's backward piece; the gradients of its arguments are added to what is there of them."""
        call, routine, life = self.model.calls[number], self.routines[number], self.life
        life.begin()
        prefix = f"{micro}.{number}"
        known = self.at_backward(micro, number)
        gradients = [i.gradient for i in routine.whole.inputs if i.gradient is not None]
        weights = self.gather(routine, f"{prefix}.backward")
        made = self.wholes(routine, gradients, f"{prefix}.backward")
        life.run(routine.backward, routine.function, routine.late, f"{prefix}.backward", known)
        for mine, piece in zip(routine.whole.inputs, routine.function.inputs, strict=True):
            if mine.gradient is not None and piece.gradient is not None:
                made.setdefault(mine.gradient, known.get(routine.late[piece.gradient]))
        life.hold(weights, *made.values(), *self.leaving)
        self.leaving = []
        for at, (item, name) in enumerate(self.arguments(number)):
            place = None if item.gradient is None else made.get(item.gradient)
            if place is not None:
                self.add(
                    (micro, name),
                    self.bring(place, f"{prefix}.given {at}", self.back(number, at)),
                    f"{prefix}.sum {at}",
                )
        for name in call.results:
            self.gradients.pop((micro, name), None)

    def arguments(self, number: int) -> Iterable[tuple[Input, str]]:
        """What a call's function takes, and the names of the values that it is given."""
        activations = self.routines[number].whole.activations()
        return zip(activations, self.model.calls[number].arguments, strict=True)

    def at_backward(self, micro: str, number: int) -> Known:
        """The storages that a backward piece may read: arguments, what forward left, tangents."""
        call, routine = self.model.calls[number], self.routines[number]
        prefix, function = f"{micro}.{number}", self.routines[number].function
        taken = self.taken.pop((micro, number))
        known = self.given(routine, taken, f"{prefix}.backward")
        back = self.fetch((micro, number))
        for value in routine.saved:
            root = routine.roots[value]
            left = f"{prefix}.forward.{root}"
            known[value] = left if left in self.life.born else known.get(root)
        known.update(back)
        tangents = [
            (o.tangent, mine.tangent, name)
            for o, mine, name in zip(
                function.outputs, routine.whole.outputs, call.results, strict=False
            )
        ]
        for tangent, whole, name in tangents:
            if tangent is None or whole is None:
                continue
            place = self.gradients.get((micro, name))
            if place is None and name != self.model.loss:  # nothing differentiable reads it
                zeros = routine.whole.types[whole].bytes
                place = self.life.make(f"{prefix}.zeros {tangent}", zeros)
            known[tangent] = self.part(routine, place, tangent, whole, f"{prefix}.backward")
        return known

    def fetch(self, key: Key) -> Known:
        """What a call left in host memory; that of the call whose backward is next comes as well."""
        if not self.routines[key[1]].hosted:
            return {}
        found = self.fetched.pop(key) if key in self.fetched else self.come(key)
        following = next((other for other in reversed(self.waiting) if other[0] == key[0]), None)
        if following is not None and self.hide:
            self.fetched[following] = self.come(following)
        return found

    def come(self, key: Key) -> Known:
        """What a call left comes back, values that share memory together."""
        micro, number = key
        routine, found = self.routines[number], Known()
        sharing: dict[int, list[int]] = {}
        for value in self.waiting.pop(key):
            sharing.setdefault(routine.roots[value], []).append(value)
        for root, values in sharing.items():
            sizes = {v: routine.function.types[v].bytes for v in values}
            whole = routine.function.types[root].bytes
            together = whole <= sum(sizes.values())
            for one in [values] if together else [[v] for v in values]:
                size = whole if together else sizes[one[0]]
                made = self.life.make(f"{micro}.{number}.fetched.{one[0]}", size)
                found.update(dict.fromkeys(one, made))
        return found

    def given(self, routine: Routine, taken: Sequence[str | None], prefix: str) -> Known:
        """The storages of a function's inputs."""
        known: Known = {i.value: None for i in routine.function.inputs}
        whole, mine = routine.whole.activations(), routine.function.activations()
        for place, outer, inner in zip(taken, whole, mine, strict=True):
            known[inner.value] = self.part(routine, place, inner.value, outer.value, prefix)
        return known

    def part(
        self, routine: Routine, place: str | None, value: int, whole: int, prefix: str
    ) -> str | None:
        """What a piece sees of a value: the whole, or a copy of its part."""
        if not routine.divided or not routine.cut(value, whole):
            return place
        size = routine.function.types[value].bytes
        return self.life.make(f"{prefix}.part {value}", size)

    def wholes(self, routine: Routine, values: Iterable[int], prefix: str) -> dict[int, str | None]:
        """What pieces put together or add up, from the first of them on."""
        if not routine.divided:
            return {}
        types = routine.whole.types
        return {v: self.life.make(f"{prefix}.whole {v}", types[v].bytes) for v in values}

    def gather(self, routine: Routine, prefix: str) -> str | None:
        """Weights that lie in parts on other devices, while a call runs."""
        return self.life.make(f"{prefix}.weights", routine.weights) if routine.weights else None

    def bring(self, place: Place, name: str, sizes: Sizes) -> Place:
        """A value on its way from one call to another."""
        for step, size in enumerate(sizes):
            place = self.life.turn(place, f"{name} step {step}", size)
        return place

    def add(self, value: tuple[str, str], place: str, total: str) -> None:
        """The gradient of a value read by several calls: their sums, one after the other."""
        have, life = self.gradients.get(value), self.life
        if have is not None:
            life.make(total, life.born[have][1])
            life.use(have)
            life.use(place)
            life.tick()
        self.gradients[value] = place if have is None else total
