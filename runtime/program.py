"""A compiled program running on this rank: parameters, optimizer, training steps, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ..ir.errors import MismatchError, NonFiniteError, UsageError
from ..ir.plan.interleave import build_rows
from ..ir.plan.program import PLACED_SCHEDULE, ProgramTable, chunk_function
from ..ir.plan.strategy import ROLES
from .comm.mesh_collectives import Comm
from .comm.process_group import GroupPool
from .comm.program_groups import MeshGroups
from .comm.slicing import take_slice
from .comm.watchdog import watch
from .compression.transports import (
    Transports,
    compressed_all_reduces,
    load_codec,
    stage_transfer_codec,
)
from .execution.batch import Batch, local_batch
from .execution.calls import Run
from .execution.guard import Guard
from .execution.pipeline import ModelChunk, PipelineRunner
from .execution.placed_rank import PlacedRun
from .launch.program_folder import import_stage, read_table
from .launch.session import default_device
from .state import optimizer as optimizers
from .state import program_state, unsharded
from .state.gradients import LossScale, clip_grad_norm, non_finite_names, separate_gradients
from .state.initial_agreement import agree
from .state.initialization import InitialValues
from .state.parameters import ParameterStore

NonFinite = Literal["stop", "skip", "keep"]


class Program:
    """A compiled program on this rank; every rank makes the same calls in the same order."""

    def __init__(
        self,
        folder: Path,
        table: ProgramTable,
        groups: MeshGroups,
        module: nn.Module,
        optimizer: optimizers.OptimizerRequest,
        device: torch.device,
        seed: int,
    ) -> None:
        """Build the program of `folder`; users call `open`, which checks that all belong together."""
        from ..ir.capture.operators.elementary import call_key  # registers the operators as well

        placed = table.schedule == PLACED_SCHEDULE
        self.stage = import_stage(folder, groups.stage, "rank" if placed else "stage")
        self.table, self.groups, self.device = table, groups, device
        self.seed, self.steps, self.batches = seed, 0, 0
        self.nonfinite: NonFinite = "keep"
        self.loss_scale = LossScale() if table.scales_loss else None
        self.gradients_used = False  # the next batch begins new ones
        self.guard: Guard | None = None
        native = device.type == "cpu"
        comms = [
            Comm(
                mesh,
                table.micro_batches,
                groups.rank,
                along,
                groups.sent_bytes,
                compressed_all_reduces(table, number, groups, folder, native),
            )
            for number, (mesh, along) in enumerate(zip(table.meshes, groups.roles, strict=True))
        ]
        grid = Comm(table.mesh, table.micro_batches, groups.rank, groups.axes, groups.sent_bytes)
        initial = InitialValues(module, seed)
        specs = {name: spec for spec in table.state_tensors for name in spec.names()}
        agree(initial, specs, groups.stage, device)
        transports = Transports(table, groups, folder, native)
        self.store = ParameterStore(table, groups, comms, initial, device, transports)
        self.updates: optimizers.LocalOptimizer | None = None
        self.optimizer = self.make_optimizer(optimizer, initial, folder)
        self.run: Run | PlacedRun
        if placed:
            self.run = PlacedRun(self.store, groups.down, call_key, seed)
        else:
            self.run = Run(table, self.store, comms, grid, call_key, seed)
            order = build_rows(
                table.schedule, table.stages, table.micro_batches, table.chunks_per_stage
            )
            links = groups.down, groups.up, device, stage_transfer_codec(table, folder, native)
            self.pipeline = PipelineRunner(order, table.stage_transfers, *links)
        self.names = names_of(module, table)
        self.dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
        self.untraced = {
            n: initial.tensor(n).cpu().clone()
            for n in self.names
            if self.names[n] not in self.store.specs
        }

    def make_optimizer(
        self, request: optimizers.OptimizerRequest, initial: InitialValues, folder: Path
    ) -> torch.optim.Optimizer | None:
        """The user's optimizer, or the compressed one that the plan names.

        Raises UsageError where the plan names one and the user gives another.
        """
        axis = next((axis for axis in self.table.compression if axis.optimizer), None)
        if axis is None:
            self.updates = optimizers.make(request, initial, self.store, self.groups)
            return None if self.updates is None else self.updates.optimizer
        if request.factory is not None or request.param_groups is not None:
            raise UsageError(
                f"the plan leaves sums of gradients to {axis.optimizer}: leave the optimizer and its "
                f"groups out, and give its arguments, or plan with another --optimizer"
            )
        levels = self.groups.hierarchies[axis.mesh, axis.role]
        compressed = optimizers.make_compressed(
            axis,
            request.args,
            self.store,
            levels,
            load_codec(axis, folder, self.device.type == "cpu"),
        )
        self.store.compressed_optimizer = compressed
        return compressed

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
    ) -> Program:
        """Open a program's folder and shard `module` as its plan says; the module is not changed.

        `optimizer` is a torch optimizer class or factory, AdamW by default, or an optimizer of the
        module's parameters, which is taken over; a plan that names a compressed optimizer, such as
        1-bit Adam, decides it instead. `param_groups` gets the module's named parameters and gives the
        groups for the optimizer. `nonfinite` says what `optimizer_step` does where a gradient is NaN or
        infinite: "stop" (NonFiniteError), "skip" the update, or "keep" them, as torch does.

        Needs a process group of as many ranks as the plan has devices (see `session`). Programs that are
        opened one after the other can share the process groups of a `pool`, which also decides how long
        a collective may take. Raises MismatchError when the folder, the module and the ranks do not
        belong together, or no rank sees what the optimizer must see.
        """
        table = read_table(Path(folder))
        world = dist.get_world_size() if dist.is_initialized() else 0
        if world != table.mesh.size:
            raise MismatchError(
                f"{folder} is a program for {table.mesh.size} ranks ({table.mesh}), "
                f"{f'{world} are running' if world else 'no process group is set up'}: start it "
                f"with torchrun --nproc-per-node {table.mesh.size}"
            )
        groups = MeshGroups(table, pool or GroupPool(dist.get_rank()))
        request = optimizers.OptimizerRequest(optimizer, optimizer_args or {}, param_groups)
        place = default_device() if device is None else torch.device(device)
        program = cls(Path(folder), table, groups, module, request, place, seed)
        program.nonfinite = nonfinite
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
        if self.guard is not None:
            self.guard.check()
        if self.gradients_used:
            self.zero_grad()
        inputs = local_batch(batch, self.table, self.groups.rank, self.stage.BATCH, self.device)
        self.run.start(self.batches)
        if isinstance(self.run, PlacedRun):
            loss = self.stage.step(self.run, *inputs)
            losses = [] if loss is None else [loss]
        else:
            losses = self.micro_batches(self.run, inputs)
        self.run.finish()
        self.store.synchronize(1.0 if self.loss_scale is None else self.loss_scale.value)
        separate_gradients(self.store)
        self.batches += 1
        return self.total_loss(losses)

    def zero_grad(self) -> None:
        """Drop the gradients at hand."""
        self.store.zero_gradients()
        self.gradients_used = False

    def clip_grad_norm(
        self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> Tensor:
        """Scale the gradients so that their norm over all ranks and stages is at most `max_norm`.

        Gives the norm before, in float64: as `torch.nn.utils.clip_grad_norm_` does in one process.
        Raises UsageError where a compressed optimizer sums the gradients itself.
        """
        return clip_grad_norm(
            self.store, self.groups, max_norm, norm_type, error_if_nonfinite=error_if_nonfinite
        )

    def micro_batches(self, run: Run, inputs: list[Tensor]) -> list[Tensor]:
        """Run all micro-batches through the pipeline; gives their losses, on the last stage."""
        batch_only = self.stage.batch_only(run, *inputs)
        losses: list[Tensor] = []
        self.pipeline.run(
            [
                self.model_chunk(run, c, batch_only, losses)
                for c in range(self.table.chunks_per_stage)
            ]
        )
        return losses

    def model_chunk(
        self, run: Run, chunk: int, batch_only: tuple[Tensor, ...], losses: list[Tensor]
    ) -> ModelChunk:
        """Forward and backward of one model chunk; the model's last one appends to `losses`."""
        run_forward, run_backward = (
            getattr(self.stage, chunk_function(direction, chunk, self.table.chunks_per_stage))
            for direction in ("forward", "backward")
        )
        last = self.pipeline.last(chunk)

        def forward(number: int, received: list[Tensor]) -> tuple[Tensor, ...]:
            run.micro_batch(number)
            results: tuple[Tensor, ...] = run_forward(
                run, *self.micro_batch_values(batch_only, number), *received
            )
            losses.extend(results if last else ())
            return results

        def backward(number: int, tangents: list[Tensor]) -> tuple[Tensor | None, ...]:
            run.micro_batch(number)
            scale = 1.0 if self.loss_scale is None else self.loss_scale.value
            gradients: tuple[Tensor | None, ...] = run_backward(
                run, *([torch.full_like(losses[0], scale)] if last else tangents)
            )
            return gradients

        return ModelChunk(forward, backward)

    def micro_batch_values(self, batch_only: tuple[Tensor, ...], number: int) -> list[Tensor]:
        """Slices of one micro-batch from the results of `batch_only`."""
        count = self.table.micro_batches
        return [
            value if dim is None else take_slice(value, count, number, *dim)
            for value, dim in zip(batch_only, self.stage.MICRO_BATCH_DIMS, strict=True)
        ]

    def total_loss(self, losses: list[Tensor]) -> Tensor:
        """The loss of the global batch: partial over micro-batches and data axes, replicated over tp."""
        mesh = self.table.meshes[self.table.loss_mesh]
        place = mesh.coordinate(self.groups.rank)
        contributes = all(
            index == 0 or ROLES[axis.name].splits_data or ROLES[axis.name].stages
            for index, axis in zip(place, mesh.axes, strict=True)
        )
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if contributes:
            for loss in losses:
                total += loss.detach()
        if mesh.size > 1:
            with watch(self.groups.rank, "all_reduce of the loss over all ranks"):
                dist.all_reduce(total)
        return total

    @torch.no_grad()
    def optimizer_step(self) -> bool:
        """Update the parameters by the gradients at hand and distribute the new values.

        Gives whether it did: with `nonfinite="skip"`, not where a gradient is NaN or infinite.
        Raises NonFiniteError there with `nonfinite="stop"`. In float16 such a step is always skipped,
        and the loss scale is lowered.
        """
        self.gradients_used = True
        checked = self.nonfinite != "keep" or self.loss_scale is not None
        names = non_finite_names(self.store, self.groups) if checked else []
        if self.loss_scale is not None:
            self.loss_scale.update(finite=not names)
        if names:
            if self.nonfinite == "stop" and self.loss_scale is None:
                raise NonFiniteError(
                    f"step {self.steps}: the gradients of {len(names)} parameters are NaN or infinite, "
                    f"{names[0]} among them; the parameters are those of the step before"
                )
            return False
        if self.updates is not None:
            self.updates.step()
        elif self.optimizer is not None:
            self.optimizer.step()
        self.store.gather_updated()
        self.steps += 1
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Full tensors on the CPU under the names and in the types of the module's own `state_dict`.

        All ranks call this together, and each gets everything.
        """
        tensors = unsharded.values(self.store, self.groups) | self.untraced
        return {n: tensors[first].to(self.dtypes[n]) for n, first in self.names.items()}

    def full_gradients(self) -> dict[str, Tensor]:
        """Full gradients of the last `forward_backward`, by the program's names; all ranks together."""
        return unsharded.gradients(self.store, self.groups)

    def save(self, folder: str | Path, *, scheduler: LRScheduler | None = None) -> Path:
        """Write a checkpoint of tensors, optimizer, step count and `scheduler`; all ranks together.

        Atomic: a process killed at any instant leaves this generation or the one before. Gives its
        directory.
        """
        return program_state.save(self, Path(folder), scheduler)

    def load_checkpoint(
        self,
        folder: str | Path,
        generation: int | None = None,
        *,
        scheduler: LRScheduler | None = None,
    ) -> None:
        """Load a checkpoint, saved under this or any other plan of the model; all ranks together.

        Takes the newest complete generation by default. Warns when this plan has no place for some
        residuals (error feedback) of compressed gradients. Raises FileError for a damaged one,
        MismatchError when it is of another model.
        """
        program_state.load_checkpoint(self, Path(folder), generation, scheduler)

    load = load_checkpoint  # the public name of docs and interface


def names_of(module: nn.Module, table: ProgramTable) -> dict[str, str]:
    """The module's state_dict names, each with the name that the program gives the tensor."""
    first = {
        alias: name
        for spec in table.state_tensors
        for name in spec.names()
        for alias in spec.aliases
    }
    return {name: first.get(name, name) for name in module.state_dict()}
