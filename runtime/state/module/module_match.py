"""Whether the user's module is still the one that a program was compiled for."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ....ir.capture.python_state.module_facts import PYTHON, module_facts
from ....ir.errors import MismatchError
from ....ir.plan.program import ModuleFacts, ProgramTable

MOST_DIFFERENCES = 5  # in a message


def verify_module(table: ProgramTable, module: nn.Module) -> None:
    """Raises MismatchError with the differences between a module and what was compiled: modules, their
    classes, code, hooks, plain attributes and modes, which parameters are trained and which are one."""
    changes = [
        *differences(table.modules, module),
        *_trained_differently(table, module),
        *_tied_differently(table, module),
    ]
    if changes:
        rest = len(changes) - MOST_DIFFERENCES
        lines = [*changes[:MOST_DIFFERENCES], *([f"and {rest} more"] if rest > 0 else [])]
        raise MismatchError(
            f"the module is not the one that was compiled ({table.model}); compile it again:\n  "
            + "\n  ".join(lines)
        )


def differences(compiled: tuple[ModuleFacts, ...], module: nn.Module) -> list[str]:
    """What differs between the modules that were compiled and those of a module, a line each; nothing
    where none were recorded."""
    if not compiled:
        return []
    then, now = _by_path(compiled), _by_path(module_facts(module))
    lines = [f"{path or 'the model'} is missing" for path in then if path not in now]
    lines += [f"{path} is new" for path in now if path not in then]
    for path, before in then.items():
        if path in now:
            lines += [f"{path or 'the model'}: {line}" for line in _changes(before, now[path])]
    return lines


def _by_path(facts: tuple[ModuleFacts, ...]) -> dict[str, ModuleFacts]:
    return {path: fact for fact in facts for path in fact.paths}


def _changes(then: ModuleFacts, now: ModuleFacts) -> Iterator[str]:
    if then.kind != now.kind:
        yield f"a {now.kind}, was a {then.kind}"
        return
    comparable = then.code.startswith(f"{PYTHON}:")
    if comparable and then.code != now.code:
        yield f"the code of {now.kind} was changed"
    if then.training != now.training:
        yield f"in {_mode(now)} mode, was in {_mode(then)} mode"
    for name in sorted(then.settings.keys() | now.settings.keys()):
        before, after = then.settings.get(name, "absent"), now.settings.get(name, "absent")
        if before != after:
            yield f"{name} is {after}, was {before}"


def _mode(facts: ModuleFacts) -> str:
    return "training" if facts.training else "evaluation"


def _trained_differently(table: ProgramTable, module: nn.Module) -> Iterator[str]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for spec in table.state_tensors:
        for name in (*spec.names(), *spec.aliases) if spec.kind == "parameter" else ():
            parameter = parameters.get(name)
            if parameter is not None and parameter.requires_grad != spec.trainable:
                now = "trained" if parameter.requires_grad else "frozen"
                yield f"{name} is {now}, was {'trained' if spec.trainable else 'frozen'}"


def _tied_differently(table: ProgramTable, module: nn.Module) -> Iterator[str]:
    first = {
        alias: name
        for spec in table.state_tensors
        if spec.kind == "parameter"
        for name in spec.names()
        for alias in (name, *spec.aliases)
    }
    parameters = {
        name: parameter
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if name in first
    }
    users: dict[int, str] = {}
    for name, parameter in parameters.items():
        other = users.setdefault(id(parameter), name)
        if first[other] != first[name]:
            yield f"{name} is tied to {other}, was a tensor of its own"
        apart = parameters.get(first[name], parameter) is not parameter
        if apart and not parameter.is_meta:  # `module.to("meta")` unties parameters
            yield f"{name} is a tensor of its own, was tied to {first[name]}"
