"""Everything outside tensors that a forward can read or change: found, compared, put back.

A trace takes numbers, flags, texts and containers as constants. `State` walks what a model and its
loss function reach (attributes of modules and of their classes, containers, plain objects, variables
of closures, globals of the user's own functions) and remembers all of it.
"""

from __future__ import annotations

import dis
import enum
import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..locate import INSTALLED, PACKAGES
from .random_state import GENERATORS, generator_state, set_generator_state

MOST_HOLDERS = 100_000
MOST_ITEMS = 4_096  # of a container whose items are looked at one by one
DEPTH = 12
SCALARS = (bool, int, float, complex, str, bytes, type(None), enum.Enum)
CONTAINERS = (dict, list, set, deque)
# swapped while a model is recorded; `export` looks after them
TABLES = ("_parameters", "_buffers")
NUMBER = ("number", "items")
Child = tuple[Any, str, Any]  # key inside the holder, text for people, value


@dataclass(frozen=True)
class Leaf:
    """A value with the place where it lies; `owner` is the object that holds it."""

    path: str
    owner: Any
    value: Any

    @property
    def text(self) -> str:
        scalar = isinstance(self.value, SCALARS)
        return f"{self.value!r:.60}" if scalar else f"a {type(self.value).__name__}"


class State:
    """A snapshot of what some roots reach."""

    def __init__(self, *roots: Any) -> None:
        self.leaves: dict[tuple[int, Any], Leaf] = {}
        self.generators: list[tuple[str, Any, Any]] = []
        self.undo: list[Callable[[], None]] = []
        self.seen: dict[int, Any] = {}
        for root in roots:
            if root is not None:
                self.visit("" if isinstance(root, nn.Module) else _name(root), root, 0)

    def visit(self, path: str, value: Any, depth: int) -> None:
        if id(value) in self.seen or depth > DEPTH or len(self.seen) > MOST_HOLDERS:
            return
        if isinstance(value, GENERATORS):
            self.generators.append((path, value, generator_state(value)))
            return
        self.seen[id(value)] = value
        for key, text, child in self.children(value):
            inner = f"{path}{text}" if path else text.removeprefix(".")
            self.leaves[id(value), key] = Leaf(inner, value, child)
            if not isinstance(child, (*SCALARS, Tensor)):
                self.visit(inner, child, depth + 1)

    def children(self, value: Any) -> Iterator[Child]:
        """What a holder holds; how to put it back is noted in `undo`."""
        if isinstance(value, (types.ModuleType, Tensor)):
            return
        if isinstance(value, type):
            if issubclass(value, nn.Module) and not is_installed(value):
                yield from self.of_class(value)
            return
        if isinstance(value, CONTAINERS):
            self.undo.append(functools.partial(_refill, value, _content(value)))
            yield from _contained(value)
        elif isinstance(value, types.MethodType):
            yield from (("self", "", value.__self__), ("function", "", value.__func__))
        elif isinstance(value, types.FunctionType):
            yield from self.variables(value)
        elif isinstance(value, functools.partial):
            yield from ((n, f"({n})", a) for n, a in enumerate(value.args))
            yield from ((n, f"({n})", a) for n, a in value.keywords.items())
            yield "func", "", value.func
        elif hasattr(value, "__dict__"):
            yield from self.attributes(value)

    def attributes(self, value: Any) -> Iterator[Child]:
        attributes = vars(value)
        self.undo.append(functools.partial(_refill, attributes, dict(attributes)))
        for name, child in attributes.items():
            if not (isinstance(value, nn.Module) and name in TABLES):
                yield name, "" if name == "_modules" else f".{name}", child
        if isinstance(value, nn.Module):
            for kind in type(value).__mro__:
                yield ("kind", kind), "", kind
                if issubclass(kind, nn.Module) and not is_installed(kind):
                    plain = ((n, c) for n, c in vars(kind).items() if _is_plain(n, c))
                    yield from (
                        (("inherited", n), f".{n}", c) for n, c in plain if n not in attributes
                    )

    def of_class(self, kind: type) -> Iterator[Child]:
        """Attributes of a class of the user's own, and the globals of its methods."""
        plain = {n: c for n, c in vars(kind).items() if _is_plain(n, c)}
        self.undo.append(functools.partial(_reset, kind, plain))
        for name, child in plain.items():
            yield ("class", name), f".{name}", child
        for name, child in vars(kind).items():
            if isinstance(child, types.FunctionType):
                yield ("class", name), "", child

    def variables(self, function: types.FunctionType) -> Iterator[Child]:
        """Variables of the closure, and globals that a function of the user's own names."""
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for name, cell in cells:
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            self.undo.append(functools.partial(setattr, cell, "cell_contents", content))
            yield ("cell", name), f".{name}", content
        if is_installed(function):
            return
        known = function.__globals__
        for name in global_names(function.__code__):
            child = known.get(name, known)
            if isinstance(child, (*SCALARS, *CONTAINERS, types.FunctionType, Tensor)) and (
                child is not known
            ):
                self.undo.append(functools.partial(known.__setitem__, name, child))
                yield ("global", name), f".{name}", child

    def changes(self, after: State) -> list[tuple[Leaf | None, Leaf | None]]:
        """(before, after) of every value that is not the same."""
        pairs: list[tuple[Leaf | None, Leaf | None]] = []
        for key, leaf in self.leaves.items():
            now = after.leaves.get(key)
            if now is None or not same(leaf.value, now.value):
                pairs.append((leaf, now))
        return pairs + [(None, leaf) for k, leaf in after.leaves.items() if k not in self.leaves]

    def drawn(self) -> str | None:
        """The path of a random generator that has been drawn from since."""
        moved = (p for p, g, old in self.generators if repr(generator_state(g)) != repr(old))
        return next(moved, None)

    def restore(self) -> None:
        """Put back what every holder had, in place."""
        for step in self.undo:
            step()
        for _, generator, state in self.generators:
            set_generator_state(generator, state)


def same(one: Any, other: Any) -> bool:
    """Whether a value is still what it was: scalars are compared, all else must be the object."""
    if isinstance(one, SCALARS) and isinstance(other, SCALARS):
        return type(one) is type(other) and repr(one) == repr(other)
    if isinstance(one, types.MethodType) and isinstance(other, types.MethodType):
        return one == other
    return one is other


def look(owner: Any, key: Any) -> Any:
    """What a holder has now under the key of a leaf; None where there is nothing."""
    if isinstance(key, int):
        return owner[key] if isinstance(owner, (list, deque)) and key < len(owner) else None
    if isinstance(key, str):
        return vars(owner).get(key) if hasattr(owner, "__dict__") else None
    kind, name = key
    if kind == "cell":
        return owner.__closure__[owner.__code__.co_freevars.index(name)].cell_contents
    if kind == "kind":
        return name
    if kind == "inherited":
        return getattr(owner, name, None)
    if kind == "global":
        return owner.__globals__.get(name)
    if kind == "class":
        return vars(owner).get(name)
    return len(owner) if key == NUMBER else owner.get(name)


def _name(root: Any) -> str:
    return str(getattr(root, "__name__", type(root).__name__))


def _contained(value: Any) -> Iterator[Child]:
    yield NUMBER, ": number of items", len(value)
    if len(value) > MOST_ITEMS:
        return
    if isinstance(value, dict):
        for key, child in value.items():
            plain = isinstance(key, str) and key.replace("_", "a").isalnum()
            yield ("item", key), f".{key}" if plain else f"[{key!r:.40}]", child
    elif isinstance(value, set):
        yield from ((repr(child), "{…}", child) for child in value)
    else:
        yield from ((n, f"[{n}]", child) for n, child in enumerate(value))


def is_installed(thing: Any) -> bool:
    """Whether a function or class comes with an installed library, not from the user's own code."""
    code = getattr(thing, "__code__", None)
    if code is not None:
        return str(code.co_filename).startswith(INSTALLED)
    file = getattr(sys.modules.get(thing.__module__), "__file__", None) or ""
    return file.startswith(INSTALLED) or thing.__module__ == "builtins"


@functools.cache
def global_names(code: types.CodeType) -> tuple[str, ...]:
    """Globals that a function's code, or code inside it, reads or assigns."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname.endswith("_GLOBAL")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(global_names(constant))
    return tuple(sorted(names))


def is_library(kind: type) -> bool:
    """Whether a class comes from an installed package; Python's own classes hold the user's data."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return file.startswith(PACKAGES)


def _content(holder: Any) -> Any:
    """A plain copy; of a dict whatever its class makes of `holder[key]`."""
    if isinstance(holder, dict):
        return {key: dict.__getitem__(holder, key) for key in holder}
    return holder.copy()


def _refill(holder: Any, content: Any) -> None:
    if isinstance(holder, dict):
        now = _content(holder)
        if list(now) != list(content) or any(now[key] is not content[key] for key in now):
            holder.clear()
            holder.update(content)
    elif isinstance(holder, set):
        if holder != content:
            holder.clear()
            holder.update(content)
    elif len(holder) != len(content) or any(
        a is not b for a, b in zip(holder, content, strict=True)
    ):
        holder.clear()
        holder.extend(content)


def _is_plain(name: str, value: Any) -> bool:
    return isinstance(value, (*SCALARS, *CONTAINERS)) and not name.startswith("__")


def _reset(kind: type, plain: dict[str, Any]) -> None:
    now = {n: c for n, c in vars(kind).items() if _is_plain(n, c)}
    for name in now.keys() - plain.keys():
        delattr(kind, name)
    for name, value in plain.items():
        if now.get(name, plain) is not value:
            setattr(kind, name, value)
