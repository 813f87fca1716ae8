"""A compiled program running on this rank: parameters, optimizer, training steps, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from msgspec.structs import replace
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ..ir.capture.batch import BatchPath
from ..ir.errors import NonFiniteError
from ..ir.plan.plan import Plan
from ..ir.plan.program import ProgramTable
from .checkpoint import program_state
from .checkpoint.background import BackgroundWork
from .checkpoint.generations import KEEP, Counts, generations
from .comm.diagnosis import stragglers
from .comm.mesh_collectives import Comm
from .comm.process_group import GroupPool
from .comm.program_groups import MeshGroups, groups_of
from .comm.watchdog import WatchOptions
from .compression.transports import Transports, load_codec
from .execution.agreement import CHECK_EVERY, Agreement, NonFinite
from .execution.batch import Batch
from .execution.compiled_step import CompiledStep
from .execution.finite import first_non_finite
from .execution.guard import Guard
from .execution.metrics import StepMeter, StepMetrics
from .execution.rank_parts import check_same_batch, global_batch, refuse_autocast
from .execution.variants import Mode, Variants, give_back, refresh, updated_buffers
from .launch.program_folder import read_table
from .launch.program_text import ProgramText
from .launch.session import check_ranks, default_device
from .state import optimizer as optimizers
from .state import unsharded
from .state.experts.balance import ExpertBalance
from .state.gradients import LossScale, clip_grad_norm, non_finite_names, separate_gradients
from .state.initialization import InitialValues
from .state.module.initial_agreement import agree
from .state.module.module_match import verify_module
from .state.module.user_module import StaleWarning, fill
from .state.module.weight_files import Weights, open_weights
from .state.parameters import ParameterStore
from .state.program_optimizer import program_optimizer
from .torch_private import default_store

Reopen = Callable[[Sequence[int]], "Program"]  # on the ranks that are left


class ProgramStart(NamedTuple):
    """What training begins with: a module, the optimizer of its parameters, `weights` in place of
    the module's own, the device of all tensors, and the seed of random numbers."""

    module: nn.Module
    optimizer: optimizers.OptimizerRequest
    weights: Mapping[str, Tensor] | None
    device: torch.device
    seed: int


class Program(ProgramText):
    """A compiled program on this rank; every rank makes the same calls in the same order."""

    def __init__(
        self, folder: Path, table: ProgramTable, groups: MeshGroups, start: ProgramStart
    ) -> None:
        """Build the program of `folder`; users call `open`, which checks that all belong together."""
        module, device, seed = start.module, start.device, start.seed
        self.table, self.groups, self.device = table, groups, device
        self.seed, self.steps, self.batches, self.samples = seed, 0, 0, 0
        self.nonfinite: NonFinite = "keep"
        self.loss_scale = LossScale() if table.scales_loss else None
        self.gradients_used = False  # the next batch begins new ones
        self.guard: Guard | None = None
        self.saving: BackgroundWork | None = None
        self.whole_update: Counts | None = Counts(0, 0)  # of the last one; None inside one
        self.reopen: Reopen | None = None
        self.last: tuple[CompiledStep, Batch] | None = None  # where a search may need it
        self.loss_is_finite, self.stop_requested, self.stopping = True, False, False
        self.divided: frozenset[BatchPath] | None = None  # tensors of which each rank gives a part
        self.stale: StaleWarning | None = None
        initial = InitialValues(module, seed, start.weights)
        specs = {name: spec for spec in table.state_tensors for name in spec.names()}
        agree(initial, specs, groups, device)

        def make_store(comms: Sequence[Comm], transports: Transports) -> ParameterStore:
            return ParameterStore(table, groups, comms, initial, device, transports)

        compiled = CompiledStep(folder, table, groups, make_store, device, seed)
        self.variants = Variants(compiled, seed)
        self.stage, self.run, self.store = compiled.stage, compiled.run, compiled.store
        self.agreement = Agreement(self.store, groups)
        make_codec = partial(load_codec, folder=folder, device=device)
        self.optimizer, self.updates = program_optimizer(
            start.optimizer, initial, self.store, groups, make_codec
        )
        self.meter = StepMeter(groups, device)
        self.experts = ExpertBalance(self.run.expert_loads, self.store, self.updates)
        self.meter.experts = self.experts
        if compiled.compiler is not None:
            self.meter.compiling = compiled.compiler.total_seconds
        self.names = unsharded.names_of(module, table)
        self.dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
        untraced = (n for n in self.names if self.names[n] not in self.store.specs)
        self.untraced = {n: initial.tensor(n).cpu().clone() for n in untraced}

    @classmethod
    def open(
        cls,
        folder: str | Path,
        module: nn.Module,
        optimizer: optimizers.Factory | torch.optim.Optimizer | None = None,
        optimizer_args: Mapping[str, Any] | None = None,
        *,
        param_groups: optimizers.ParameterGroups | None = None,
        nonfinite: NonFinite = "keep",
        device: torch.device | str | None = None,
        seed: int = 0,
        pool: GroupPool | None = None,
        watch: WatchOptions | None = None,
        check_every: int = CHECK_EVERY,
        weights: Weights | None = None,
    ) -> Program:
        """Open a program's folder and shard `module` as its plan says; the module is not changed.

        `optimizer` is a torch optimizer class or factory, AdamW by default, or an optimizer of the
        module's parameters, which is taken over; a plan that names a compressed optimizer, such as
        1-bit Adam, decides it instead. `param_groups` gets the module's named parameters and gives the
        groups for the optimizer. `nonfinite` says what happens where the loss or a gradient is NaN or
        infinite: "stop" (NonFiniteError, with the layer's name), "skip" the update, or "keep" them, as
        torch does. `watch` says within how many seconds a missing or stopped rank ends all others; that
        ranks have equal batches and replicas is checked every `check_every` steps (0: never).
        `weights` are values for the module's tensors: a state_dict, a safetensors file or a folder of
        them, of which each rank reads its shards.

        Needs a process group of as many ranks as the plan has devices (see `session`). Programs that are
        opened one after the other can share the process groups of a `pool`, which has its own `watch`.
        Raises MismatchError when the folder, the module and the ranks do not
        belong together (naming what differs in the module), or no rank sees what the optimizer must see.
        """
        table = read_table(Path(folder))
        check_ranks(folder, table.mesh)
        verify_module(table, module)
        groups = groups_of(table, pool or GroupPool(dist.get_rank(), watch, default_store()))
        if groups.devices is not None:
            mine = groups.devices.program
            folder, table = Path(folder) / mine.folder, replace(mine.table, modules=table.modules)
        request = optimizers.OptimizerRequest(optimizer, optimizer_args or {}, param_groups)
        place = default_device() if device is None else torch.device(device)
        values = None if weights is None else open_weights(weights)
        start = ProgramStart(module, request, values, place, seed)
        program = cls(Path(folder), table, groups, start)
        program.agreement.every = check_every
        program.nonfinite = program.agreement.checked_policy(nonfinite)
        program.guard = Guard(module)
        return program

    def step(self, batch: Batch) -> Tensor:
        """Train on one global batch; gives its loss (a float64 scalar, the same on every rank).

        Adds to the gradients of a `forward_backward` that no `optimizer_step` has used yet.
        """
        loss = self.forward_backward(batch)
        self.optimizer_step()
        return loss

    @torch.no_grad()
    def forward_backward(self, batch: Batch) -> Tensor:
        """Loss of one global batch; the gradients are ready for `optimizer_step` afterwards.

        Until then, the gradients of further batches are added to them.
        """
        if self.gradients_used:
            self.zero_grad()
        batch = self.checked_batch(batch, "train")
        self.groups.pool.watchdog.recorder.begin_step(self.steps)
        self.meter.begin(batch)
        step = self.variants.training(batch)
        refresh(step, (self.steps, self.batches))
        self.whole_update = None if updated_buffers(step) else self.whole_update
        scale = 1.0 if self.loss_scale is None else self.loss_scale.value
        loss = step.forward_backward(batch, self.batches, scale)
        give_back(step)
        separate_gradients(self.store)
        self.agreement.note(self.steps, self.batches, batch)
        total, stop = self.agreement.sum_loss(loss, self.stop_requested)
        self.stopping = self.stopping or stop
        self.batches, self.samples = self.batches + 1, self.samples + step.table.global_batch
        self.last = (step, batch) if self.nonfinite == "stop" else None
        if self.nonfinite != "keep":
            self.loss_is_finite = self.loss_is_finite and bool(total.isfinite())
        self.meter.add_loss(total)
        return total

    def checked_batch(self, batch: Batch, mode: Mode) -> Batch:
        """The global batch. Raises MismatchError where a constant of the program has changed, or ranks
        have different batches of a new shape."""
        refuse_autocast(self.device)
        if self.guard is not None:
            self.guard.check(training=mode == "train")
        if self.divided is not None:
            return global_batch(batch, self.divided, self.groups.everyone, self.device)
        if self.variants.must_compare(mode, batch, self.agreement.every):
            check_same_batch(batch, self.groups.everyone)
        return batch

    @torch.no_grad()
    def eval(self, batch: Batch) -> Tensor:
        """Loss of one global batch, as `step` gives it, with the module as in `eval()`: dropout off,
        batch norm by its running statistics. Changes nothing. All ranks together.

        Raises UsageError for a placed program and one that has no module to trace (`Program.open`).
        """
        batch = self.checked_batch(batch, "evaluate")
        step = self.variants.of("evaluate", batch).step
        refresh(step, (self.steps, self.batches))
        loss = step.forward(batch, self.batches)
        give_back(step)
        return self.groups.everyone.all_reduce_(loss, "the loss of an evaluation")

    @torch.no_grad()
    def __call__(self, batch: Batch, *, whole: bool = True) -> Any:
        """What the module as in `eval()` gives for one global batch, without gradients.

        On every rank the outputs of the whole batch, or with `whole=False` of the samples that its
        replica works on. All ranks together; needs no labels. Raises UsageError as `eval` does.
        """
        batch = self.checked_batch(batch, "outputs")
        step, outputs = self.variants.of("outputs", batch)
        refresh(step, (self.steps, self.batches))
        values = step.outputs(batch, self.batches, whole=whole)
        give_back(step)
        assert outputs is not None
        return outputs.filled(values)

    def non_finite(self, names: list[str]) -> NonFiniteError:
        """An error that says what is not finite, gradients of `names` or the loss, and where."""
        gradients = f"the gradients of {names[0]} and {len(names) - 1} more are" if names else ""
        layer = first_non_finite(*self.last, self.batches - 1) if self.last is not None else ""
        return NonFiniteError(
            f"step {self.steps}: {gradients or 'the loss is'} NaN or infinite, the first layer that "
            f"gives such values is {layer}; the parameters are those of the step before"
        )

    def zero_grad(self) -> None:
        """Drop the gradients at hand."""
        self.store.zero_gradients()
        self.gradients_used, self.loss_is_finite = False, True

    def clip_grad_norm(
        self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> Tensor:
        """Scale the gradients so that their norm over all ranks and stages is at most `max_norm`.

        Gives the norm before, in float64: as `torch.nn.utils.clip_grad_norm_` does in one process.
        Raises UsageError where a compressed optimizer sums the gradients itself.
        """
        self.meter.norm = clip_grad_norm(
            self.store, self.groups, max_norm, norm_type, error_if_nonfinite=error_if_nonfinite
        )
        return self.meter.norm

    @torch.no_grad()
    def optimizer_step(self) -> bool:
        """Update the parameters by the gradients at hand and distribute the new values.

        Gives whether it did: with `nonfinite="skip"`, not where a gradient is NaN or infinite.
        Raises NonFiniteError there with `nonfinite="stop"`. In float16 such a step is always skipped,
        and the loss scale is lowered.
        """
        self.gradients_used = True
        self.meter.measure_norm(self.store)
        if updated := self.gradients_are_finite():
            self.update_parameters()
        self.experts.end_step()
        self.whole_update = Counts(self.batches, self.samples)
        self.meter.end(self.steps)
        return updated

    def update_parameters(self) -> None:
        self.whole_update = None
        if self.updates is not None:
            self.updates.step()
        elif self.optimizer is not None:
            self.optimizer.step()
        self.store.gather_updated()
        self.steps += 1

    def gradients_are_finite(self) -> bool:
        """Whether the loss and all gradients are finite, as far as anything depends on it; all ranks
        together. Raises NonFiniteError where they are not and `nonfinite` is "stop"."""
        checked = self.nonfinite != "keep" or self.loss_scale is not None
        names = non_finite_names(self.store, self.groups) if checked else []
        if self.loss_scale is not None:
            self.loss_scale.update(finite=not names)
        if not names and self.loss_is_finite:
            return True
        if self.nonfinite == "stop" and self.loss_scale is None:
            raise self.non_finite(names)
        return False

    def request_stop(self) -> None:
        """Ask all ranks to stop; `stopping` is true on all of them after the same step."""
        self.stop_requested = True

    def stragglers(self) -> list[str]:
        """A line per rank that clearly works longer than the others."""
        return stragglers(self.groups.pool.watchdog.states())

    @property
    def plan(self) -> Plan | None:
        """The plan that the program was made from; None for a placement and after `Program.open`."""
        return self.meter.plan

    @property
    def metrics(self) -> StepMetrics | None:
        """Numbers of the last step; None before the first."""
        return self.meter.last()

    def on_step(self, hook: Callable[[StepMetrics], None]) -> None:
        """Call `hook` with the numbers of every step from now on; every rank adds one, since the norm of
        all gradients, which is among them, is summed over ranks."""
        self.meter.hooks.append(hook)

    def state_dict(self) -> dict[str, Tensor]:
        """Full tensors on the CPU under the names and in the types of the module's own `state_dict`.

        All ranks call this together, and each gets everything.
        """
        tensors = unsharded.values(self.store, self.groups) | self.untraced
        return {n: tensors[first].to(self.dtypes[n]) for n, first in self.names.items()}

    def load_into(self, module: nn.Module) -> None:
        """Copy the trained weights and buffers into a module, all ranks together.

        The module that was parallelized keeps its first values otherwise, and warns when it is used.
        Raises MismatchError for one that is built otherwise.
        """
        fill(module, self.state_dict())
        if self.stale is not None and module is self.stale.module():
            self.stale.loaded(self.steps)

    def full_gradients(self) -> dict[str, Tensor]:
        """Full gradients of the last `forward_backward`, by the program's names; all ranks together."""
        return unsharded.gradients(self.store, self.groups)

    def save(
        self,
        folder: str | Path,
        *,
        scheduler: LRScheduler | None = None,
        keep: int = KEEP,
        wait: bool = True,
    ) -> Path:
        """Write a checkpoint of tensors, optimizer, step count and `scheduler`; all ranks together.

        Atomic: a process killed at any instant leaves this generation or the one before. The last `keep`
        generations stay. Without `wait`, training goes on while a thread writes: the checkpoint is there
        after `finish_saving`. Gives its directory.
        """
        return program_state.save(self, Path(folder), scheduler, keep, wait=wait)

    def finish_saving(self) -> None:
        """Wait for a checkpoint that was saved without waiting; raises its error. All ranks together."""
        program_state.finish_saving(self)

    def resume(
        self, folder: str | Path, *, scheduler: LRScheduler | None = None, fall_back: bool = False
    ) -> bool:
        """Load the newest checkpoint of a folder, and give whether there was one; all ranks together."""
        here = bool(generations(Path(folder)))
        there = self.groups.everyone.broadcast_object(here, "whether there is a checkpoint")
        if there:
            self.load_checkpoint(folder, scheduler=scheduler, fall_back=fall_back)
        return there

    def load_checkpoint(
        self,
        folder: str | Path,
        generation: int | None = None,
        *,
        scheduler: LRScheduler | None = None,
        fall_back: bool = False,
    ) -> None:
        """Load a checkpoint, saved under this or any other plan of the model; all ranks together.

        Takes the newest complete generation by default, with `fall_back` the newest sound one. Warns
        when this plan has no place for some residuals (error feedback) of compressed gradients. Raises
        FileError for a damaged one, MismatchError when it is of another model.
        """
        where = Path(folder), generation
        program_state.load_checkpoint(self, *where, scheduler, fall_back=fall_back)

    load = load_checkpoint  # the public name of docs and interface
