"""The decisions of a plan for many devices, in kind for a few: axes of two, a layer of every sort.

pp=8,zero3=32,tp=4   20 layers keep, 12 recompute       on 1,024 devices
pp=2,tp=2            1 layer keep, 1 recompute          on 4
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from math import lcm, prod

import msgspec

from ...ir.plan.flat_shard import WHOLE
from ...ir.plan.plan import DIVIDED, Memory, Plan
from ...ir.plan.strategy import FLAG, FRACTIONAL, ROLES, Strategy
from ..pins import Pin

WAYS = 2  # along every axis
MOST_MICRO_BATCHES = 4
SAMPLES = 2  # of a micro-batch on every device
NUMBER = re.compile(r"\d+")

Way = tuple[Strategy, Memory]  # what a call does
Sort = tuple[str, str]  # calls alike: their path without numbers, and their function


class Smaller(msgspec.Struct, frozen=True):
    """What is left of a plan on `devices`: `words` by those of the plan, and a way for every sort of
    call, in the order of the calls. `layers`: the fewest of a stack in which every way occurs."""

    devices: int
    words: dict[Strategy, Strategy]
    ways: dict[Sort, tuple[Way, ...]]
    layers: int
    micro_batches: int

    @property
    def global_batch(self) -> int:
        return SAMPLES * self.micro_batches * self.batch_ways

    @property
    def batch_ways(self) -> int:
        return lcm(*(word.batch_ways() for word in self.words.values()))

    @property
    def enough(self) -> int:
        """Devices that have every axis of every word."""
        return WAYS ** max(sum(n > 1 for _, n in word.axes) for word in self.words)

    @property
    def inner_ways(self) -> int:
        """Into how many parts layers are split beside the batch, at most."""
        return max(prod(n for _, n in word.inside) for word in self.words.values())

    def pins(self, calls: Sequence[tuple[str, str]]) -> tuple[Pin, ...]:
        """A pin for each call of the smaller model, given by path and function."""
        members: dict[Sort, list[int]] = {}
        for i, call in enumerate(calls):
            members.setdefault(sort(*call), []).append(i)
        made: dict[int, Way] = {}
        for own, numbers in members.items():
            made.update(zip(numbers, spread(self.like(own), len(numbers)), strict=True))
        seen: dict[str, int] = {}
        pins = []
        for i, (_, function) in enumerate(calls):
            place = seen[function] = seen.get(function, -1) + 1
            pins.append(Pin(f"{function}.{place}", *made[i]))
        return tuple(pins)

    def like(self, own: Sort) -> tuple[Way, ...]:
        """The ways of calls of this sort; of the same path, or of all, where the plan has none."""
        near = [ways for known, ways in self.ways.items() if known[0] == own[0]]
        return self.ways.get(own) or next(iter(near), next(iter(self.ways.values())))


def smaller(plan: Plan, ranks: int) -> Smaller:
    """A plan in kind on the largest power of two of ranks that is of use, at most `ranks`."""
    words = shorter(plan.strategies, ranks)
    ways: dict[Sort, list[Way]] = {}
    places: dict[Sort, list[int]] = {}
    for layers in plan.layers:
        if layers.once:
            continue
        function = plan.shardings[layers.sharding].function
        way = words[plan.strategy_of(layers)], in_kind(layers.memory)
        for path in plan.calls[layers.first : layers.last]:
            ways.setdefault(sort(path, function), []).append(way)
            places.setdefault(sort(path, function), []).append(layer(path))
    devices = next(iter(words.values())).devices
    return Smaller(
        devices,
        words,
        {name: tuple(own) for name, own in ways.items()},
        deep_enough(plan, ways, places),
        min(plan.micro_batches, MOST_MICRO_BATCHES),
    )


def sort(path: str, function: str) -> Sort:
    return NUMBER.sub("*", path), function


def layer(path: str) -> int:
    """The number of a layer in its stack; what is in no stack is always there."""
    found = NUMBER.search(path)
    return int(found[0]) if found else 0


def in_kind(memory: Memory) -> Memory:
    """Pieces become the fewest."""
    return next(iter(DIVIDED)) if memory in DIVIDED else memory


def spread(ways: Sequence[Way], count: int) -> list[Way]:
    """Ways for so many calls: their own if they are as many, else each different one in its turn."""
    if count == len(ways):
        return list(ways)
    different = list(dict.fromkeys(ways))
    return [different[i * len(different) // count] for i in range(count)]


def deep_enough(plan: Plan, ways: dict[Sort, list[Way]], places: dict[Sort, list[int]]) -> int:
    """Layers that every stack keeps: two, as many as it takes until calls of every repeated sort are
    as many as their ways, and one more where stages differ in how many they have."""
    needed = [WAYS] + [
        sorted(places[name])[len(set(own)) - 1] + 1 for name, own in ways.items() if len(own) > 1
    ]
    per_stage = {
        sum("*" in NUMBER.sub("*", path) for path in plan.calls[first:last])
        for first, last in plan.pieces
    }
    depth = max(needed)
    return depth + 1 if len(per_stage) > 1 and depth % WAYS == 0 else depth


def shorter(words: Iterable[Strategy], ranks: int) -> dict[Strategy, Strategy]:
    """Each word with axes of two, as many as ranks allow, all for as many devices. Roles that no word
    before has covered stay first, then those that split layers; stages stay always."""
    words = list(words)
    longest = max(sum(n > 1 for _, n in word.axes) for word in words)
    number = min(longest, max(ranks, 1).bit_length() - 1)
    covered: set[str] = set()
    made = {}
    for word in words:
        made[word] = short = _short(word, number, covered)
        covered.update(role for role, _ in short.axes)
    return made


def _short(word: Strategy, number: int, covered: set[str]) -> Strategy:
    """A word of so many axes of two; where it has fewer, its widest beside stages is wider."""
    order = list(ROLES)
    wide = [(role, n) for role, n in word.axes if n > 1]

    def worth(kept: tuple[str, ...]) -> tuple[bool, int, int]:
        staged = any(ROLES[role].stages for role in kept)
        return staged, len(set(kept) - covered), sum(map(order.index, kept))

    roles = [role for role, _ in wide]
    kept = max(combinations(roles, min(number, len(roles))), key=worth)
    sizes = dict.fromkeys(kept, WAYS)
    if 0 < len(kept) < number:
        free = [(n, role) for role, n in wide if role in kept and not ROLES[role].stages]
        sizes[max(free)[1] if free else kept[0]] *= WAYS ** (number - len(kept))
    split = any(ROLES[role].operators for role in kept)
    axes = [
        (role, sizes.get(role, 1))
        for role, n in word.axes
        if role in sizes or ((role, n) == (FLAG, 1) and split)
    ]
    return Strategy(tuple(axes), word.fraction if FRACTIONAL in sizes else WHOLE)


def uncovered(plan: Plan, small: Plan) -> tuple[str, ...]:
    """Roles and memory actions of a plan that a smaller one of it does not have."""
    return tuple(name for name in dict.fromkeys(_parts(plan)) if name not in set(_parts(small)))


def _parts(plan: Plan) -> list[str]:
    roles = [role for word in plan.strategies for role, n in word.axes if n > 1 or role == FLAG]
    roles += [f"part of {FRACTIONAL}" for word in plan.strategies if word.fraction != WHOLE]
    actions = [in_kind(layers.memory) for layers in plan.layers if not layers.once]
    return [*roles, *actions]
