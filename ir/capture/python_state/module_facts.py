"""What a program takes for granted of the user's module: classes, code, plain attributes, mode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from hashlib import sha256
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

from torch import nn

from ...plan.program import ModuleFacts
from .snapshot import SCALARS, is_installed

PYTHON = "{}.{}".format(*sys.version_info)
HOOKS = "forward_pre_hooks", "forward_hooks", "backward_pre_hooks", "backward_hooks"
DEEPEST = 8  # calls from a method of the user's into functions of the user's


def module_facts(module: nn.Module) -> tuple[ModuleFacts, ...]:
    """The facts of a module and of all inside it, those of equal ones together."""
    paths: dict[Any, list[str]] = {}
    facts: dict[Any, ModuleFacts] = {}
    codes: dict[type, str] = {}
    for path, part in module.named_modules():
        kind = type(part)
        codes[kind] = codes.get(kind) or code_of(kind)
        code, settings = codes[kind] + _hook_digest(part), dict(_settings(part))
        key = kind, code, tuple(settings.items()), part.training
        if key not in facts:
            name = f"{kind.__module__}.{kind.__qualname__}"
            if not is_installed(kind):
                name = kind.__qualname__  # a file of the user's is imported under several names
            facts[key] = ModuleFacts(name, code, settings, part.training, ())
        paths.setdefault(key, []).append(path)
    return tuple(
        ModuleFacts(f.kind, f.code, f.settings, f.training, tuple(paths[key]))
        for key, f in facts.items()
    )


def _settings(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Attributes that are plain values, or functions, and hooks, by name."""
    for name, value in sorted(vars(module).items()):
        if not name.startswith("_") and name != "training" and _is_plain(value):
            yield name, _text(value)
    for name in HOOKS:
        if hooks := vars(module).get(f"_{name}"):
            yield name, ", ".join(_hook_name(hook) for hook in hooks.values())


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(isinstance(item, SCALARS) for item in value)
    return isinstance(value, (*SCALARS, FunctionType, BuiltinFunctionType))


def _text(value: Any) -> str:
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return f"{value.__module__ or ''}.{value.__qualname__}"
    return repr(value)[:200]


def _hook_name(hook: Any) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)


def _hook_digest(module: nn.Module) -> str:
    """A digest of what a module's hooks do, where they are functions of the user's own."""
    hooks = (hook for name in HOOKS for hook in vars(module).get(f"_{name}", {}).values())
    functions = (getattr(hook, "__func__", hook) for hook in hooks)
    texts = [[*_function_texts(f, set(), 0)] for f in functions if isinstance(f, FunctionType)]
    return f"+{sha256(repr(texts).encode()).hexdigest()[:8]}" if any(texts) else ""


def code_of(kind: type) -> str:
    """Python's version and a digest of what methods of a class of the user's own do, with the functions
    of the user's own that they call; the version alone for an installed class."""
    texts: list[str] = []
    seen: set[int] = set()
    for base in kind.__mro__:
        if not is_installed(base):
            for name, member in sorted(vars(base).items(), key=lambda pair: pair[0]):
                function = getattr(member, "__func__", member)
                if isinstance(function, FunctionType):
                    texts += [name, *_function_texts(function, seen, 0)]
    return f"{PYTHON}:{sha256(repr(texts).encode()).hexdigest()[:16]}"


def _function_texts(function: FunctionType, seen: set[int], depth: int) -> Iterator[str]:
    if id(function) in seen or depth > DEEPEST or is_installed(function):
        return
    seen.add(id(function))
    yield _code_text(function.__code__)
    yield f"{function.__defaults__!r}"[:200]
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType):
            yield name
            yield from _function_texts(value, seen, depth + 1)
        elif isinstance(value, SCALARS):
            yield f"{name}={value!r:.200}"


def _names(code: CodeType) -> Iterator[str]:
    """Names that a function and those inside it look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _code_text(code: CodeType) -> str:
    """What a function does, apart from where it stands."""
    constants = [
        _code_text(c) if isinstance(c, CodeType) else repr(c)[:1000] for c in code.co_consts
    ]
    return repr((code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants))
