"""Which modules are built alike, what a forward reads of them, and whether two differ in that."""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..locate import is_users
from ..python_state.snapshot import CONTAINERS, SCALARS, State, global_names, is_installed
from ..torch_private import tensor_tables
from .torch_private import children_of, module_hooks_of

LEAST_EQUAL = 3  # modules of a kind: two must be recorded to earn anything by a third
MOST_LEAVES = 20_000  # of Python state around a module, which is compared at each call
DEEPEST = 8
ABSENT = object()
TABLES = ("_parameters", "_buffers", "_modules")  # which are built alike
_TORCH_MODULE = nn.Module.__call__.__code__.co_filename


def repeated_modules(model: nn.Module) -> dict[int, int]:
    """A number for how a module is built (classes, names, shapes), by id, of those that are repeated."""
    numbers: dict[Any, int] = {}
    built: dict[int, int] = {}

    def number(module: nn.Module) -> int:
        if id(module) not in built:
            tables = [
                [
                    (n, None if t is None else (t.shape, t.dtype, t.requires_grad))
                    for n, t in table.items()
                ]
                for table in tensor_tables(module)
            ]
            children = [
                (n, None if c is None else number(c)) for n, c in children_of(module).items()
            ]
            key = type(module), *(tuple(map(tuple, t)) for t in tables), tuple(children)
            built[id(module)] = numbers.setdefault(key, len(numbers))
        return built[id(module)]

    for module in model.modules():
        number(module)
    counts = Counter(built.values())
    parents = (
        id(m) for m in model.modules() if children_of(m)
    )  # others are too small to earn much
    return {key: built[key] for key in parents if counts[built[key]] >= LEAST_EQUAL}


def hooked(modules: list[nn.Module]) -> bool:
    """Whether a module has hooks, or its class answers for its own attributes."""
    return any(
        module_hooks_of(m)
        or type(m).__getattribute__ is not object.__getattribute__
        or "forward" in vars(m)
        for m in modules
    )


@dataclass
class Reads:
    """Attributes that were read: names by the place of a module in a tree. `apart`: something else was
    read or asked that no comparison of attributes covers."""

    names: set[tuple[int, str]] = field(default_factory=set)
    apart: bool = False


@contextlib.contextmanager
def reads_of(modules: list[nn.Module]) -> Iterator[Reads]:
    """Note which attributes of some modules are read, by any way that Python has."""
    reads = Reads()
    places = {id(m): n for n, m in enumerate(modules)}

    def read(module: nn.Module, name: str) -> Any:
        place = places.get(id(module))
        if place is None:
            reads.apart = True
        elif name != "__dict__":
            reads.names.add((place, name))
        elif sys._getframe(1).f_code.co_filename != _TORCH_MODULE:
            reads.apart = True
        return object.__getattribute__(module, name)

    def hashed(module: nn.Module) -> int:
        reads.apart = True  # a table by module
        return object.__hash__(module)

    nn.Module.__getattribute__, nn.Module.__hash__ = read, hashed  # type: ignore[method-assign,assignment]
    try:
        yield reads
    finally:
        del nn.Module.__getattribute__, nn.Module.__hash__


def state_around(modules: list[nn.Module]) -> State | None:
    """The Python state that code of some modules can reach: theirs, and what methods of the user's own
    classes name; None where it is too large to look at again and again, or out of sight."""
    named: dict[int, Any] = {}
    for kind in {k for m in modules for k in type(m).__mro__ if not is_installed(k)}:
        for method in filter(lambda f: isinstance(f, FunctionType), vars(kind).values()):
            values = [method.__globals__.get(n) for n in global_names(method.__code__)]
            named |= {id(v): v for v in values if not isinstance(v, (type, FunctionType, *SCALARS))}
    files = (
        getattr(v, "__file__", None) for v in named.values() if isinstance(v, types.ModuleType)
    )
    if any(is_users(file or "<builtin>") for file in files):
        return None
    state = State(*modules, *named.values())
    return state if len(state.leaves) <= MOST_LEAVES else None


def read_values(modules: list[nn.Module], reads: Reads) -> Iterator[Any]:
    """What a forward read in modules' own attributes, apart from their tensors and children."""
    for place, name in reads.names - {(n, t) for n in range(len(modules)) for t in TABLES}:
        yield vars(modules[place]).get(name, ABSENT)


def holds_module(value: Any, seen: set[int]) -> bool:
    """Whether a module is inside a value, which code may compare with itself."""
    if isinstance(value, nn.Module):
        return True
    if id(value) in seen or isinstance(value, (*SCALARS, Tensor, type, types.ModuleType)):
        return False
    seen.add(id(value))
    if isinstance(value, dict):
        return any(holds_module(v, seen) for pair in value.items() for v in pair)
    if isinstance(value, (tuple, *CONTAINERS)):
        return any(holds_module(v, seen) for v in value)
    if isinstance(value, MethodType):
        return holds_module(value.__self__, seen)
    if isinstance(value, functools.partial):
        return holds_module(_parts_of(value), seen)
    return hasattr(value, "__dict__") and holds_module(vars(value), seen)


class Correspondence:
    """Whether two trees of modules that are built alike are equal in attributes that were read."""

    def __init__(self, modules: list[nn.Module], others: list[nn.Module]) -> None:
        self.modules, self.others = modules, others
        self.partners = {id(m): o for m, o in zip(modules, others, strict=True)}

    def holds(self, reads: Reads) -> bool:
        return all(
            self.equal(
                vars(self.modules[place]).get(name, ABSENT),
                vars(self.others[place]).get(name, ABSENT),
            )
            for place, name in reads.names
            if name not in TABLES
        )

    def equal(self, one: Any, other: Any, depth: int = 0) -> bool:
        """Whether code that reads one value instead of the other does the same."""
        if isinstance(one, nn.Module):
            return self.partners.get(id(one), one) is other
        if one is other:
            return _is_still(one)
        if type(one) is not type(other) or depth > DEEPEST or isinstance(one, (Tensor, type)):
            return False
        if isinstance(one, SCALARS):
            return repr(one) == repr(other)
        if isinstance(one, (torch.dtype, torch.device, torch.Size)):
            return one == other
        return self.equal_parts(one, other, depth + 1)

    def equal_parts(self, one: Any, other: Any, depth: int) -> bool:
        if isinstance(one, dict):
            same_keys = [*map(repr, one)] == [*map(repr, other)]
            values = zip(one.values(), other.values(), strict=False)
            return same_keys and all(self.equal(a, b, depth) for a, b in values)
        if isinstance(one, (tuple, list)):
            pairs = zip(one, other, strict=False)
            return len(one) == len(other) and all(self.equal(a, b, depth) for a, b in pairs)
        if isinstance(one, MethodType):
            same = one.__func__ is other.__func__
            return same and self.equal(one.__self__, other.__self__, depth)
        if isinstance(one, functools.partial):
            return self.equal(_parts_of(one), _parts_of(other), depth)
        if isinstance(one, FunctionType):
            same = one.__code__ is other.__code__ and one.__globals__ is other.__globals__
            return same and self.equal(_variables(one), _variables(other), depth)
        plain = hasattr(one, "__dict__") and not any(
            "__slots__" in vars(k) for k in type(one).__mro__
        )
        return plain and _is_still(one) and self.equal(vars(one), vars(other), depth)


def _is_still(value: Any) -> bool:
    """Whether all that a value may change is in what `State` looks at."""
    if isinstance(value, (*SCALARS, *CONTAINERS, tuple, Tensor, type, torch.dtype, torch.device)):
        return True
    if isinstance(value, (FunctionType, MethodType, functools.partial, types.BuiltinFunctionType)):
        return True
    return value is ABSENT or (hasattr(value, "__dict__") and not hasattr(value, "__next__"))


def _parts_of(function: functools.partial[Any]) -> tuple[Any, ...]:
    return function.func, function.args, function.keywords


def _variables(function: FunctionType) -> tuple[Any, ...]:
    cells = tuple(c.cell_contents for c in function.__closure__ or ())
    return cells, function.__defaults__, function.__kwdefaults__, vars(function)
