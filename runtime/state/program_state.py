"""A program's state as the tensors and numbers of a checkpoint, and back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...ir.errors import MismatchError
from ...ir.program import Table
from ..comm.program_groups import MeshGroups
from ..compression.optimizers.carried import carry
from ..execution.calls import Run
from ..execution.placed_rank import PlacedRun
from . import checkpoint, error_feedback, unsharded
from .parameters import Store

MODEL, OPTIMIZER, COMPRESSION = "model", "optimizer", "compression"


class Training(Protocol):
    """What of a program outlives it."""

    table: Table
    groups: MeshGroups
    store: Store
    run: Run | PlacedRun
    optimizer: torch.optim.Optimizer | None
    steps: int
    seed: int


def save(program: Training, folder: Path) -> Path:
    store, groups = program.store, program.groups
    kept = unsharded.optimizer_state(store, groups, program.optimizer)
    tensors = {f"{MODEL}/{n}": t for n, t in unsharded.values(store, groups).items()}
    tensors |= {f"{OPTIMIZER}/{key}/{n}": t for (n, key), t in kept.tensors.items()}
    carried = error_feedback.states(store, groups)
    tensors |= {f"{COMPRESSION}/{key}": t for key, t in carried.items()}
    manifest = checkpoint.Manifest(
        model=program.table.model,
        steps=program.steps,
        seed=program.seed,
        optimizer=type(program.optimizer).__name__,
        options=_options(program.optimizer),
        numbers={f"{key}/{n}": number for (n, key), number in kept.numbers.items()},
        tensors=(),
        travelled=error_feedback.travelled(store, groups),
    )
    return checkpoint.save(folder, tensors, manifest)


def restore(program: Training, folder: Path, generation: int | None) -> None:
    manifest, tensors = checkpoint.read(folder, generation)
    check(program, folder, manifest, tensors)
    for name in program.store.kept:
        if f"{MODEL}/{name}" in tensors:
            program.store.put(name, tensors[f"{MODEL}/{name}"])
    if program.optimizer is not None:
        _restore_optimizer(program, program.optimizer, manifest, tensors)
    program.store.zero_gradients()
    _restore_compression(program, folder, manifest, tensors)
    program.steps = manifest.steps
    program.seed = program.run.seed = manifest.seed


def check(
    program: Training, folder: Path, manifest: checkpoint.Manifest, tensors: dict[str, Tensor]
) -> None:
    """The checkpoint has exactly the program's tensors, in their shapes."""
    expected = {
        f"{MODEL}/{name}": held.type.shape
        for name, held in program.store.everything.items()
        if held.kind != "constant"
    }
    found = {n: tuple(t.shape) for n, t in tensors.items() if n.startswith(f"{MODEL}/")}
    wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    if wrong:
        name = wrong[0]
        raise MismatchError(
            f"{folder} is a checkpoint of {manifest.model}, the program of {program.table.model}: "
            f"{name.removeprefix(f'{MODEL}/')} is {_shape(found.get(name))} there and "
            f"{_shape(expected.get(name))} here ({len(wrong)} tensors differ)"
        )
    made = type(program.optimizer).__name__
    if program.optimizer is not None and manifest.optimizer not in (made, "NoneType"):
        raise MismatchError(
            f"{folder} was saved with {manifest.optimizer}, the program trains with {made}: load "
            f"it with the same optimizer"
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _restore_compression(
    program: Training, folder: Path, manifest: checkpoint.Manifest, tensors: dict[str, Tensor]
) -> None:
    """Errors and replicas go on; says so where this plan has no place for some errors."""
    program.store.wires.reset()
    part = f"{COMPRESSION}/"
    saved = {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
    mine = error_feedback.restore(program.store, saved, manifest.travelled, manifest.steps)
    left = sorted(set(checkpoint.gather(sorted(mine)))) if saved else []
    if left and program.groups.rank == 0:
        warnings.warn(
            f"{folder} holds errors of compressed gradients that this plan does not carry on: those "
            f"of {len(left)} parameters are dropped, {left[0]} among them",
            stacklevel=4,
        )


def _restore_optimizer(
    program: Training,
    optimizer: torch.optim.Optimizer,
    manifest: checkpoint.Manifest,
    tensors: dict[str, Tensor],
) -> None:
    """Give the optimizer its pieces through its own `load_state_dict`."""
    found: dict[str, dict[str, Any]] = {}
    for full, tensor in tensors.items():
        part, _, rest = full.partition("/")
        if part == OPTIMIZER:
            key, _, name = rest.partition("/")
            found.setdefault(name, {})[key] = tensor
    for full, number in manifest.numbers.items():
        key, _, name = full.partition("/")
        found.setdefault(name, {})[key] = number
    state = {}
    for position, kept in enumerate(program.store.trained()):
        entries = found.get(kept.name, {})
        state[position] = {
            key: program.store.scatter(kept, value)
            if isinstance(value, Tensor)
            and tuple(value.shape) == kept.held.type.shape
            and key != "step"  # a count, also where the parameter is a scalar itself
            else value
            for key, value in entries.items()
        }
    leader, trained = program.store.leader, program.store.trained()
    groups = optimizer.state_dict()["param_groups"] if leader is None else leader.param_groups
    for group in groups:
        group.update({k: _like(group[k], v) for k, v in manifest.options.items() if k in group})
    if leader is None:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    else:
        carry(leader, {k.leaf: state[i] for i, k in enumerate(trained) if k.leaf is not None})


def _options(optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Hyperparameters that are plain numbers: all groups have the same."""
    if optimizer is None:
        return {}
    group = optimizer.param_groups[0]
    plain = {k: _plain(v) for k, v in group.items() if k not in ("params", "seed")}
    return {k: v for k, v in plain.items() if v is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, tuple | list):
        return [float(v) for v in value]
    return value if isinstance(value, bool | int | float | str) else None


def _like(current: Any, saved: Any) -> Any:
    """A saved hyperparameter in the form that the optimizer keeps it."""
    if isinstance(current, Tensor):
        return torch.full_like(current, saved)
    return tuple(saved) if isinstance(saved, list) else saved
