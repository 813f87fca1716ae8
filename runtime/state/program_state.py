"""A program's state as the tensors and numbers of a checkpoint, and back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...ir.errors import MismatchError
from ...ir.plan.program import ProgramTable
from ..comm.program_groups import MeshGroups
from ..compression.optimizers.parameter_states import load_parameter_states, parameter_states
from . import checkpoint, error_feedback, unsharded
from .gradients import LossScale
from .local_parameter import LocalParameter
from .optimizer import LocalOptimizer
from .optimizer_state import (
    StoredGroup,
    local_items,
    pack_scheduler,
    plain_options,
    restore,
    restore_options,
    stored_groups,
    unpack_scheduler,
)
from .parameters import ParameterStore

MODEL, OPTIMIZER, COMPRESSION = "model", "optimizer", "compression"
SCHEDULER = "scheduler/state"


class Seeded(Protocol):
    """What draws random numbers from the program's seed: its run."""

    seed: int


class ProgramState(Protocol):
    """The parts of a program that a checkpoint stores."""

    table: ProgramTable
    groups: MeshGroups
    store: ParameterStore
    optimizer: torch.optim.Optimizer | None
    updates: LocalOptimizer | None
    loss_scale: LossScale | None
    steps: int
    batches: int
    seed: int

    @property
    def run(self) -> Seeded: ...


def save(program: ProgramState, folder: Path, scheduler: Any = None) -> Path:
    """Write a checkpoint, with the state of a scheduler if one is given; all ranks together. Gives its
    directory."""
    store, groups, optimizer = program.store, program.groups, program.optimizer
    states = _optimizer_state(program)
    tensors = {f"{MODEL}/{n}": t for n, t in unsharded.values(store, groups).items()}
    tensors |= {f"{OPTIMIZER}/{key}/{n}": t for (n, key), t in states.tensors.items()}
    compression = error_feedback.checkpoint_tensors(store, groups)
    tensors |= {f"{COMPRESSION}/{key}": t for key, t in compression.items()}
    if scheduler is not None:
        tensors[SCHEDULER] = pack_scheduler(scheduler)
    manifest = checkpoint.Manifest(
        model=program.table.model,
        steps=program.steps,
        seed=program.seed,
        optimizer=type(optimizer).__name__,
        options={} if optimizer is None else plain_options(optimizer.param_groups[0]),
        numbers={f"{key}/{n}": number for (n, key), number in states.numbers.items()},
        tensors=(),
        exchange_counts=error_feedback.exchange_counts(store, groups),
        batches=program.batches,
        groups=() if program.updates is None else stored_groups(program.updates),
        loss_scale=0.0 if program.loss_scale is None else program.loss_scale.value,
        loss_scale_steps=0 if program.loss_scale is None else program.loss_scale.steps,
    )
    return checkpoint.save(folder, tensors, manifest)


def load_checkpoint(
    program: ProgramState, folder: Path, generation: int | None, scheduler: Any = None
) -> None:
    """Load a checkpoint into the program, and into a scheduler if one is given; all ranks together.

    Raises FileError for a damaged one, MismatchError when it is of another model or optimizer.
    """
    manifest, tensors = checkpoint.read(folder, generation)
    check(program, folder, manifest, tensors)
    for name in program.store.parameters:
        if f"{MODEL}/{name}" in tensors:
            program.store.set_value(name, tensors[f"{MODEL}/{name}"])
            if program.updates is not None:
                program.updates.whole.set_value(name, tensors[f"{MODEL}/{name}"])
    _restore_optimizer(program, manifest, tensors)
    if scheduler is not None:
        if SCHEDULER not in tensors:
            raise MismatchError(f"{folder} holds no scheduler: load it without one")
        scheduler.load_state_dict(unpack_scheduler(tensors[SCHEDULER]))
    program.store.zero_gradients()
    _restore_compression(program, folder, manifest, tensors)
    program.steps = manifest.steps
    program.batches = manifest.steps if manifest.batches is None else manifest.batches
    program.seed = program.run.seed = manifest.seed
    if program.loss_scale is not None and manifest.loss_scale:
        program.loss_scale.value = manifest.loss_scale
        program.loss_scale.steps = manifest.loss_scale_steps


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


def _optimizer_state(program: ProgramState) -> unsharded.OptimizerState:
    """The optimizer's full state; all ranks together."""
    store, compressed = program.store, program.store.compressed_optimizer
    if compressed is not None:
        states = parameter_states(compressed)
        items = {p.name: states.get(p.leaf, {}) for p in store.trainable() if p.leaf is not None}
        return unsharded.optimizer_state(store, program.groups, items, ())
    if program.updates is None:
        return unsharded.optimizer_state(store, program.groups, {}, ())
    items = local_items(program.updates)
    return unsharded.optimizer_state(store, program.groups, items, program.updates.whole.tensors)


def _restore_optimizer(
    program: ProgramState, manifest: checkpoint.Manifest, tensors: dict[str, Tensor]
) -> None:
    """Give the optimizer its shards and the options of its groups."""
    saved: dict[str, dict[str, Any]] = {}
    for full, tensor in tensors.items():
        part, _, rest = full.partition("/")
        if part == OPTIMIZER:
            key, _, name = rest.partition("/")
            saved.setdefault(name, {})[key] = tensor
    for full, number in manifest.numbers.items():
        key, _, name = full.partition("/")
        saved.setdefault(name, {})[key] = number
    compressed = program.store.compressed_optimizer
    if program.updates is not None:
        groups = manifest.groups or tuple(
            StoredGroup(manifest.options, names) for names in program.updates.group_names
        )
        restore(program.updates, program.store, saved, groups)
    elif compressed is not None:
        for group in compressed.param_groups:
            restore_options(group, manifest.options)
        load_parameter_states(
            compressed,
            {
                p.leaf: {k: _shard(program.store, p, v) for k, v in saved.get(p.name, {}).items()}
                for p in program.store.trainable()
                if p.leaf is not None
            },
        )


def _shard(store: ParameterStore, parameter: LocalParameter, value: Any) -> Any:
    whole = isinstance(value, Tensor) and tuple(value.shape) == parameter.spec.type.shape
    return store.scatter(parameter, value) if whole else value
