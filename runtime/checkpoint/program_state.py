"""A program's state as the tensors and numbers of a checkpoint, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...ir.errors import MismatchError
from ...ir.plan.program import ProgramTable
from ..comm.program_groups import MeshGroups
from ..compression.optimizers.parameter_states import load_parameter_states, parameter_states
from ..state import error_feedback
from ..state.gradients import LossScale
from ..state.local_parameter import LocalParameter
from ..state.local_tensor import LocalTensor, shard_of, whole
from ..state.optimizer import LocalOptimizer
from ..state.optimizer_state import (
    StoredGroup,
    base_key,
    local_items,
    pack_scheduler,
    plain_options,
    restore,
    restore_options,
    stored_groups,
    unpack_scheduler,
)
from ..state.parameters import ParameterStore
from . import generations
from .background import BackgroundWork
from .generations import Manifest, StoredTensor

MODEL, OPTIMIZER, COMPRESSION = "model", "optimizer", "compression"
SCHEDULER = "scheduler/state"
LEVELS = 3  # of flat sharding, down to what the optimizer steps on
LocalTensors = dict[str, LocalTensor]


class Seeded(Protocol):
    """What draws random numbers from the program's seed: its runs."""

    def reset(self, seed: int) -> None: ...


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
    samples: int
    seed: int
    saving: BackgroundWork | None
    whole_update: generations.Counts | None  # of the last one; None inside one

    @property
    def variants(self) -> Seeded: ...


def save(
    program: ProgramState,
    folder: Path,
    scheduler: Any = None,
    keep: int = generations.KEEP,
    *,
    wait: bool = True,
) -> Path:
    """Write a checkpoint, with the state of a scheduler if one is given; all ranks together. Without
    `wait`, a thread writes a copy of this rank's part. Gives the checkpoint's directory."""
    finish_saving(program)
    tensors, manifest = collect(program, scheduler)
    group = program.groups.pool.storage()
    path = generations.begin(group, folder)
    if wait:
        generations.complete(group, path, tensors, manifest, keep)
        return path
    copies = {name: tensor.copied() for name, tensor in tensors.items()}
    program.saving = BackgroundWork(
        partial(generations.complete, group, path, copies, manifest, keep)
    )
    return path


def finish_saving(program: ProgramState) -> None:
    """Wait for a checkpoint that is being written beside training; raises its error."""
    saving, program.saving = program.saving, None
    if saving is not None:
        saving.wait()


class LocalState(NamedTuple):
    """What this rank has of a program's state, in the memory where it lies; `numbers`: plain ones."""

    tensors: LocalTensors
    numbers: dict[str, float]


def local_state(program: ProgramState, names: Collection[str]) -> LocalState:
    """What this rank has of some tensors and of their optimizer's states. Nothing is sent, unless a
    compressed optimizer averages its weights."""
    store = program.store
    items = {n: state for n, state in _optimizer_items(program).items() if n in names}
    whole_names = program.updates.whole.tensors if program.updates is not None else {}
    tensors = {f"{MODEL}/{name}": tensor for name, tensor in _values(store) if name in names}
    numbers: dict[str, float] = {}
    for name, state in items.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                parameter = store.parameters[name]
                tensors[f"{OPTIMIZER}/{key}/{name}"] = _state(store, parameter, value, whole_names)
            else:
                numbers[f"{key}/{name}"] = float(value)
    return LocalState(tensors, numbers)


def collect(program: ProgramState, scheduler: Any = None) -> tuple[LocalTensors, Manifest]:
    """What this rank has of a checkpoint, in the memory where it lies, and the manifest."""
    tensors, numbers = local_state(program, written_here(program))
    compression = error_feedback.checkpoint_tensors(program.store, program.groups)
    tensors |= {f"{COMPRESSION}/{key}": whole(t) for key, t in compression.items()}
    if scheduler is not None:
        tensors[SCHEDULER] = whole(pack_scheduler(scheduler))
    rows = program.groups.everyone.gather_objects(numbers, "numbers of the optimizer's state")
    counts = error_feedback.exchange_counts(program.store, program.groups)
    return tensors, manifest_of(program, {k: n for row in rows for k, n in row.items()}, counts)


def manifest_of(
    program: ProgramState, numbers: dict[str, float], exchange_counts: dict[str, int]
) -> Manifest:
    """The manifest of a program's state, without its tensors."""
    optimizer = program.optimizer
    return Manifest(
        model=program.table.model,
        steps=program.steps,
        seed=program.seed,
        optimizer=type(optimizer).__name__,
        options={} if optimizer is None else plain_options(optimizer.param_groups[0]),
        numbers=dict(sorted(numbers.items())),
        tensors=(),
        exchange_counts=exchange_counts,
        batches=program.batches,
        samples=program.samples,
        groups=() if program.updates is None else stored_groups(program.updates),
        loss_scale=0.0 if program.loss_scale is None else program.loss_scale.value,
        loss_scale_steps=0 if program.loss_scale is None else program.loss_scale.steps,
    )


def written_here(program: ProgramState) -> frozenset[str]:
    """Tensors of which this rank writes its part: where several device groups have one, in shards that
    overlap, the first does."""
    names, groups = program.store.parameters, program.groups
    if groups.devices is None:
        return frozenset(program.store.specs)
    return frozenset(name for name in names if groups.devices.owner(name) == groups.devices.number)


def _values(store: ParameterStore) -> Iterator[tuple[str, LocalTensor]]:
    """This rank's shards of all parameters and buffers, the exact ones beside compressed ones."""
    compressed = store.compressed_optimizer
    for name, parameter in store.parameters.items():
        if parameter.spec.kind == "constant":
            continue
        if parameter.leaf is None:
            yield name, shard_of(store, parameter, parameter.flat, 1)
        else:
            leaf = parameter.leaf if compressed is None else compressed.mean_weights(parameter.leaf)
            yield name, shard_of(store, parameter, leaf.contiguous(), LEVELS)


def _state(
    store: ParameterStore, parameter: LocalParameter, value: Tensor, whole_names: Collection[str]
) -> LocalTensor:
    """What this rank has of an optimizer's state of a parameter."""
    assert parameter.leaf is not None
    sharded = parameter.name not in whole_names and value.shape == parameter.leaf.shape
    return shard_of(store, parameter, value.contiguous(), LEVELS) if sharded else whole(value)


def load_checkpoint(
    program: ProgramState,
    folder: Path,
    generation: int | None,
    scheduler: Any = None,
    *,
    fall_back: bool = False,
) -> None:
    """Load a checkpoint into the program, and into a scheduler if one is given; all ranks together.
    With `fall_back`, the newest generation that is sound.

    Raises FileError for a damaged one, MismatchError when it is of another model or optimizer.
    """
    from . import tensor_files  # as in `generations.complete`

    finish_saving(program)
    group = program.groups.pool.storage()
    generation_found = generations.find(group, folder, generation, fall_back=fall_back)
    manifest = generation_found.manifest
    for problem in generation_found.problems if group.rank == 0 else ():
        warnings.warn(f"{problem}; loading {generation_found.path.name} instead", stacklevel=3)
    stored = {tensor.name for tensor in manifest.tensors}
    check(program, folder, manifest)
    if scheduler is not None and SCHEDULER not in stored:
        raise MismatchError(f"{folder} holds no scheduler: load it without one")

    def read(wanted: LocalTensors) -> None:
        tensor_files.read(group, generation_found.path, generation_found.files, wanted)

    load(program, manifest, read, scheduler)


def load(
    program: ProgramState,
    manifest: Manifest,
    read: Callable[[LocalTensors], None],
    scheduler: Any = None,
) -> None:
    """Take over a state of this manifest, whose values `read` puts into the memory that wants them; all
    ranks together."""
    wanted = _wanted_values(program)
    states = _state_targets(program, manifest)
    wanted |= {name: target.place for name, target in states.items()}
    whole_tensors = {
        tensor.name: _empty(tensor)
        for tensor in manifest.tensors
        if tensor.name.startswith(f"{COMPRESSION}/")
        or (tensor.name == SCHEDULER and scheduler is not None)
    }
    wanted |= {name: whole(tensor) for name, tensor in whole_tensors.items()}
    read(wanted)
    _restore_optimizer(program, manifest, {n: target.memory for n, target in states.items()})
    if scheduler is not None:
        scheduler.load_state_dict(unpack_scheduler(whole_tensors.pop(SCHEDULER)))
    program.store.zero_gradients()
    _restore_compression(program, manifest, whole_tensors)
    program.steps = manifest.steps
    program.batches = manifest.steps if manifest.batches is None else manifest.batches
    as_many = program.batches * program.table.global_batch
    program.samples = as_many if manifest.samples is None else manifest.samples
    program.whole_update = generations.Counts(program.batches, program.samples)
    program.seed = manifest.seed
    program.variants.reset(manifest.seed)
    if program.loss_scale is not None and manifest.loss_scale:
        program.loss_scale.value = manifest.loss_scale
        program.loss_scale.steps = manifest.loss_scale_steps


def _wanted_values(program: ProgramState) -> dict[str, LocalTensor]:
    """The memory of this rank's parameters, buffers, exact copies, and of whole ones that it owns."""
    store = program.store
    owned = program.updates.whole.tensors if program.updates is not None else {}
    wanted: dict[str, LocalTensor] = {}
    for name, parameter in store.parameters.items():
        if parameter.spec.kind != "constant":
            local = shard_of(store, parameter, parameter.flat, 1)
            if parameter.leaf is not None and parameter.has_master:
                local = local.joined(shard_of(store, parameter, parameter.leaf.data, LEVELS))
            owner_leaf = owned[name].leaf if name in owned else None
            if owner_leaf is not None:
                local = local.joined(whole(owner_leaf.data))
            wanted[f"{MODEL}/{name}"] = local
    if program.updates is not None:
        for name, leaf in program.updates.whole.elsewhere.items():
            wanted[f"{MODEL}/{name}"] = whole(leaf.data)
    return wanted


def _empty(tensor: StoredTensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))


class StateTarget(NamedTuple):
    """Memory for this rank's part of an optimizer's state, and where that lies in the whole state."""

    memory: Tensor
    place: LocalTensor


def _state_targets(program: ProgramState, manifest: Manifest) -> dict[str, StateTarget]:
    """What this rank's optimizer needs of a checkpoint, by name there."""
    owned = program.updates.whole.tensors if program.updates is not None else {}
    elsewhere = program.updates.whole.elsewhere if program.updates is not None else {}
    targets: dict[str, StateTarget] = {}
    for tensor in manifest.tensors:
        part, _, rest = tensor.name.partition("/")
        key, _, name = rest.partition("/")
        parameter = program.store.parameters.get(name)
        if part == OPTIMIZER and name in elsewhere:
            memory = _empty(tensor)
            targets[tensor.name] = StateTarget(memory, whole(memory))
        if part != OPTIMIZER or parameter is None or parameter.leaf is None:
            continue
        if name in owned:
            if owned[name].leaf is not None:
                memory = _empty(tensor)
                targets[tensor.name] = StateTarget(memory, whole(memory))
        elif tensor.shape == tuple(parameter.spec.type.shape) and base_key(key) != "step":
            memory = torch.zeros_like(parameter.leaf, dtype=getattr(torch, tensor.dtype))
            place = shard_of(program.store, parameter, memory, LEVELS)
            targets[tensor.name] = StateTarget(memory, place)
        else:  # a count, also where the parameter is a scalar itself
            memory = _empty(tensor)
            targets[tensor.name] = StateTarget(memory, whole(memory))
    return targets


def check(program: ProgramState, folder: Path, manifest: Manifest) -> None:
    """Raise MismatchError unless the checkpoint has exactly the program's tensors, in their shapes."""
    specs = program.store.specs.items()
    expected = {f"{MODEL}/{n}": s.type.shape for n, s in specs if s.kind != "constant"}
    stored = {t.name: t.shape for t in manifest.tensors if t.name.startswith(f"{MODEL}/")}
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
    program: ProgramState, manifest: Manifest, tensors: dict[str, Tensor]
) -> None:
    """Load error feedback and replicas; warn about errors that this plan has no state for."""
    program.store.transports.reset()
    part = f"{COMPRESSION}/"
    saved = {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
    dropped_here = error_feedback.load(
        program.store, saved, manifest.exchange_counts, manifest.steps
    )
    rows = program.groups.everyone.gather_objects(sorted(dropped_here), "errors that are dropped")
    dropped = sorted(set(n for row in rows for n in row)) if saved else []
    if dropped and program.groups.pool.rank == 0:
        warnings.warn(
            f"the checkpoint holds errors of compressed gradients that this plan does not carry on: "
            f"those of {len(dropped)} parameters are dropped, {dropped[0]} among them",
            stacklevel=5,
        )


def _optimizer_items(program: ProgramState) -> dict[str, dict[str, Any]]:
    """Items of the optimizer's state that this rank has, by parameter and key."""
    store, compressed = program.store, program.store.compressed_optimizer
    if compressed is not None:
        states = parameter_states(compressed)
        return {p.name: states.get(p.leaf, {}) for p in store.trainable() if p.leaf is not None}
    return {} if program.updates is None else local_items(program.updates)


def _restore_optimizer(
    program: ProgramState, manifest: Manifest, states: dict[str, Tensor]
) -> None:
    """Give the optimizer its states and the options of its groups."""
    saved: dict[str, dict[str, Any]] = {}
    for full, tensor in states.items():
        _, key, name = full.split("/", 2)
        saved.setdefault(name, {})[key] = tensor
    for full, number in manifest.numbers.items():
        key, _, name = full.partition("/")
        saved.setdefault(name, {})[key] = number
    compressed = program.store.compressed_optimizer
    if program.updates is not None:
        groups = manifest.groups or tuple(
            StoredGroup(manifest.options, names) for names in program.updates.group_names
        )
        restore(program.updates, saved, groups)
    elif compressed is not None:
        for group in compressed.param_groups:
            restore_options(group, manifest.options)
        load_parameter_states(
            compressed,
            {
                p.leaf: saved.get(p.name, {})
                for p in program.store.trainable()
                if p.leaf is not None
            },
        )
