"""A program's state as the tensors and numbers of a checkpoint, and back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...ir.errors import MismatchError
from ...ir.program import ProgramTable
from ..comm.program_groups import MeshGroups
from ..compression.optimizers.parameter_states import load_parameter_states
from ..execution.calls import Run
from ..execution.placed_rank import PlacedRun
from . import checkpoint, error_feedback, unsharded
from .parameters import ParameterStore

MODEL, OPTIMIZER, COMPRESSION = "model", "optimizer", "compression"


class ProgramState(Protocol):
    """The parts of a program that a checkpoint stores."""

    table: ProgramTable
    groups: MeshGroups
    store: ParameterStore
    run: Run | PlacedRun
    optimizer: torch.optim.Optimizer | None
    steps: int
    seed: int


def save(program: ProgramState, folder: Path) -> Path:
    """Write a checkpoint; all ranks together. Gives its directory."""
    store, groups = program.store, program.groups
    states = unsharded.optimizer_state(store, groups, program.optimizer)
    tensors = {f"{MODEL}/{n}": t for n, t in unsharded.values(store, groups).items()}
    tensors |= {f"{OPTIMIZER}/{key}/{n}": t for (n, key), t in states.tensors.items()}
    compression = error_feedback.checkpoint_tensors(store, groups)
    tensors |= {f"{COMPRESSION}/{key}": t for key, t in compression.items()}
    manifest = checkpoint.Manifest(
        model=program.table.model,
        steps=program.steps,
        seed=program.seed,
        optimizer=type(program.optimizer).__name__,
        options=_options(program.optimizer),
        numbers={f"{key}/{n}": number for (n, key), number in states.numbers.items()},
        tensors=(),
        exchange_counts=error_feedback.exchange_counts(store, groups),
    )
    return checkpoint.save(folder, tensors, manifest)


def load_checkpoint(program: ProgramState, folder: Path, generation: int | None) -> None:
    """Load a checkpoint into the program; all ranks together.

    Raises FileError for a damaged one, MismatchError when it is of another model or optimizer.
    """
    manifest, tensors = checkpoint.read(folder, generation)
    check(program, folder, manifest, tensors)
    for name in program.store.parameters:
        if f"{MODEL}/{name}" in tensors:
            program.store.set_value(name, tensors[f"{MODEL}/{name}"])
    if program.optimizer is not None:
        _restore_optimizer(program, program.optimizer, manifest, tensors)
    program.store.zero_gradients()
    _restore_compression(program, folder, manifest, tensors)
    program.steps = manifest.steps
    program.seed = program.run.seed = manifest.seed


def check(
    program: ProgramState, folder: Path, manifest: checkpoint.Manifest, tensors: dict[str, Tensor]
) -> None:
    """Raise MismatchError unless the checkpoint has exactly the program's tensors, in their shapes."""
    expected = {
        f"{MODEL}/{name}": spec.type.shape
        for name, spec in program.store.specs.items()
        if spec.kind != "constant"
    }
    stored = {n: tuple(t.shape) for n, t in tensors.items() if n.startswith(f"{MODEL}/")}
    wrong = sorted(n for n in expected.keys() | stored.keys() if expected.get(n) != stored.get(n))
    if wrong:
        name = wrong[0]
        raise MismatchError(
            f"{folder} is a checkpoint of {manifest.model}, the program of {program.table.model}: "
            f"{name.removeprefix(f'{MODEL}/')} is {_shape(stored.get(name))} there and "
            f"{_shape(expected.get(name))} here ({len(wrong)} tensors differ)"
        )
    optimizer_name = type(program.optimizer).__name__
    if program.optimizer is not None and manifest.optimizer not in (optimizer_name, "NoneType"):
        raise MismatchError(
            f"{folder} was saved with {manifest.optimizer}, the program trains with {optimizer_name}: "
            f"load it with the same optimizer"
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _restore_compression(
    program: ProgramState, folder: Path, manifest: checkpoint.Manifest, tensors: dict[str, Tensor]
) -> None:
    """Load error feedback and replicas; warn about errors that this plan has no state for."""
    program.store.transports.reset()
    part = f"{COMPRESSION}/"
    saved = {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
    dropped_here = error_feedback.load(
        program.store, saved, manifest.exchange_counts, manifest.steps
    )
    dropped = sorted(set(checkpoint.gather(sorted(dropped_here)))) if saved else []
    if dropped and program.groups.rank == 0:
        warnings.warn(
            f"{folder} holds errors of compressed gradients that this plan does not carry on: those "
            f"of {len(dropped)} parameters are dropped, {dropped[0]} among them",
            stacklevel=4,
        )


def _restore_optimizer(
    program: ProgramState,
    optimizer: torch.optim.Optimizer,
    manifest: checkpoint.Manifest,
    tensors: dict[str, Tensor],
) -> None:
    """Give the optimizer its shards through its own `load_state_dict`."""
    by_parameter: dict[str, dict[str, Any]] = {}
    for full, tensor in tensors.items():
        part, _, rest = full.partition("/")
        if part == OPTIMIZER:
            key, _, name = rest.partition("/")
            by_parameter.setdefault(name, {})[key] = tensor
    for full, number in manifest.numbers.items():
        key, _, name = full.partition("/")
        by_parameter.setdefault(name, {})[key] = number
    state = {}
    for position, parameter in enumerate(program.store.trainable()):
        entries = by_parameter.get(parameter.name, {})
        state[position] = {
            key: program.store.scatter(parameter, value)
            if isinstance(value, Tensor)
            and tuple(value.shape) == parameter.spec.type.shape
            and key != "step"  # a count, also where the parameter is a scalar itself
            else value
            for key, value in entries.items()
        }
    compressed_optimizer, trained = program.store.compressed_optimizer, program.store.trainable()
    groups = (
        optimizer.state_dict()["param_groups"]
        if compressed_optimizer is None
        else compressed_optimizer.param_groups
    )
    for group in groups:
        group.update({k: _like(group[k], v) for k, v in manifest.options.items() if k in group})
    if compressed_optimizer is None:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    else:
        load_parameter_states(
            compressed_optimizer,
            {k.leaf: state[i] for i, k in enumerate(trained) if k.leaf is not None},
        )


def _options(optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Hyperparameters that are plain numbers, of the first group: all groups have the same."""
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
    """A saved hyperparameter in the type that the optimizer uses."""
    if isinstance(current, Tensor):
        return torch.full_like(current, saved)
    return tuple(saved) if isinstance(saved, list) else saved
