"""A compiled program at work on this rank: its tensors, its optimizer, one step at a time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ir.errors import MismatchError, UsageError
from ..ir.plan.interleave import rows
from ..ir.plan.strategy import ROLES
from ..ir.program import PLACED, Table, piece_function
from .comm.mesh_collectives import Comm
from .comm.process_group import Pool
from .comm.program_groups import MeshGroups
from .comm.slicing import block
from .comm.transport import Wires, kernels, passing, summing
from .comm.watchdog import TIMEOUT, watch
from .execution.batch import Batch, local_batch
from .execution.calls import Run
from .execution.pipeline import Piece, Pipeline
from .execution.placed_rank import PlacedRun
from .launch.program_folder import import_stage, read_table
from .launch.session import default_device
from .state import optimizer as optimizers
from .state import program_state, unsharded
from .state.initialization import Initial
from .state.parameters import Store


class _Load:
    """`Program.load(folder, module)` opens a program, `program.load(folder)` a checkpoint."""

    def __get__(self, program: Program | None, kind: type[Program]) -> Any:
        return kind.open if program is None else program.restore


class Program:
    """A compiled program on this rank; every rank makes the same calls in the same order."""

    load = _Load()

    def __init__(
        self,
        table: Table,
        stage: ModuleType,
        module: nn.Module,
        groups: MeshGroups,
        *,
        optimizer: optimizers.Factory | None,
        optimizer_args: Mapping[str, Any],
        device: torch.device,
        seed: int,
        folder: Path,
    ) -> None:
        from ..ir.capture.operators.elementary import call_key  # registers the operators as well

        self.table, self.stage, self.groups, self.device = table, stage, groups, device
        self.seed, self.steps = seed, 0
        native = device.type == "cpu"
        comms = [
            Comm(
                mesh,
                table.micro_batches,
                groups.rank,
                along,
                groups.sent,
                summing(table, number, groups, folder, native),
            )
            for number, (mesh, along) in enumerate(zip(table.meshes, groups.roles, strict=True))
        ]
        grid = Comm(table.mesh, table.micro_batches, groups.rank, groups.axes, groups.sent)
        initial = Initial(module, seed)
        wires = Wires(table, groups, folder, native)
        self.store = Store(table, groups, comms, initial, device, wires)
        self.optimizer = self.make_optimizer(optimizer, optimizer_args, folder)
        self.run: Run | PlacedRun
        if table.schedule == PLACED:
            self.run = PlacedRun(self.store, groups.down, call_key, seed)
        else:
            self.run = Run(table, self.store, comms, grid, call_key, seed)
            order = rows(table.schedule, table.stages, table.micro_batches, table.chunks)
            ways = groups.down, groups.up, device, passing(table, folder, native)
            self.pipeline = Pipeline(order, table.crossing, *ways)
        self.names = names_of(module, table)
        self.unused = {
            n: initial.tensor(n).cpu().clone()
            for n in self.names
            if self.names[n] not in self.store.everything
        }

    def make_optimizer(
        self, factory: optimizers.Factory | None, args: Mapping[str, Any], folder: Path
    ) -> torch.optim.Optimizer | None:
        """What the user asks for, or what the plan leaves sums to."""
        axis = next((axis for axis in self.table.compression if axis.optimizer), None)
        if axis is None:
            return optimizers.make(factory or torch.optim.AdamW, args, self.store.trained())
        if factory is not None:
            raise UsageError(
                f"the plan leaves sums of gradients to {axis.optimizer}: leave the optimizer out, and "
                f"give its arguments, or plan with another --optimizer"
            )
        levels = self.groups.compressed[axis.mesh, axis.role]
        made = optimizers.lead(
            axis, args, self.store, levels, kernels(axis, folder, self.device.type == "cpu")
        )
        self.store.leader = made
        return made

    @classmethod
    def open(
        cls,
        folder: str | Path,
        module: nn.Module,
        optimizer: optimizers.Factory | None = None,
        optimizer_args: Mapping[str, Any] | None = None,
        *,
        device: torch.device | str | None = None,
        seed: int = 0,
        timeout: timedelta = TIMEOUT,
        pool: Pool | None = None,
    ) -> Program:
        """Load a program's folder and shard `module` as its plan says; the module is not changed.

        `optimizer` is a torch optimizer class, AdamW if none is given; a program whose plan leaves sums
        to an optimizer such as 1-bit Adam has that one. Needs a process group of as many ranks as the
        plan has devices (see `session`). Programs that are opened one after the other can share the
        process groups of a `pool`. Raises MismatchError when the folder, the module and the ranks do
        not belong together.
        """
        table = read_table(Path(folder))
        world = dist.get_world_size() if dist.is_initialized() else 0
        if world != table.mesh.size:
            raise MismatchError(
                f"{folder} is a program for {table.mesh.size} ranks ({table.mesh}), "
                f"{f'{world} are running' if world else 'no process group is set up'}: start it "
                f"with torchrun --nproc-per-node {table.mesh.size}"
            )
        groups = MeshGroups(table, pool or Pool(dist.get_rank(), timeout))
        return cls(
            table,
            import_stage(
                Path(folder), groups.stage, "rank" if table.schedule == PLACED else "stage"
            ),
            module,
            groups,
            optimizer=optimizer,
            optimizer_args=optimizer_args or {},
            device=default_device() if device is None else torch.device(device),
            seed=seed,
            folder=Path(folder),
        )

    def step(self, batch: Batch) -> Tensor:
        """Train on one GLOBAL batch; gives its loss (a float64 scalar, the same on every rank)."""
        loss = self.forward_backward(batch)
        self.optimizer_step()
        return loss

    @torch.no_grad()
    def forward_backward(self, batch: Batch) -> Tensor:
        """Loss of one global batch; the gradients are ready for `optimizer_step` afterwards."""
        self.store.zero_gradients()
        pieces = local_batch(batch, self.table, self.groups.rank, self.stage.BATCH, self.device)
        self.run.start(self.steps)
        if isinstance(self.run, PlacedRun):
            loss = self.stage.step(self.run, *pieces)
            losses = [] if loss is None else [loss]
        else:
            losses = self.micro_batches(self.run, pieces)
        self.run.finish()
        self.store.synchronize()
        return self.total(losses)

    def micro_batches(self, run: Run, pieces: list[Tensor]) -> list[Tensor]:
        """All micro-batches through the pipeline; their losses on the last stage."""
        early = self.stage.data(run, *pieces)
        losses: list[Tensor] = []
        self.pipeline.run([self.piece(run, c, early, losses) for c in range(self.table.chunks)])
        return losses

    def piece(self, run: Run, chunk: int, early: tuple[Tensor, ...], losses: list[Tensor]) -> Piece:
        """A piece of this stage on the values of the batch; the model's last one adds `losses`."""
        ahead, back = (
            getattr(self.stage, piece_function(direction, chunk, self.table.chunks))
            for direction in ("forward", "backward")
        )
        last = self.pipeline.last(chunk)

        def forward(number: int, received: list[Tensor]) -> tuple[Tensor, ...]:
            run.micro_batch(number)
            results: tuple[Tensor, ...] = ahead(run, *self.cut(early, number), *received)
            losses.extend(results if last else ())
            return results

        def backward(number: int, tangents: list[Tensor]) -> tuple[Tensor | None, ...]:
            run.micro_batch(number)
            gradients: tuple[Tensor | None, ...] = back(
                run, *([torch.ones_like(losses[0])] if last else tangents)
            )
            return gradients

        return Piece(forward, backward)

    def cut(self, early: tuple[Tensor, ...], number: int) -> list[Tensor]:
        """One micro-batch of what `data` made."""
        ways = self.table.micro_batches
        return [
            value if where is None else block(value, ways, number, *where)
            for value, where in zip(early, self.stage.CUT, strict=True)
        ]

    def total(self, losses: list[Tensor]) -> Tensor:
        """The loss: losses are parts of sums over micro-batches and axes of data, whole over tp."""
        mesh = self.table.meshes[self.table.loss]
        place = mesh.coordinate(self.groups.rank)
        counts = all(
            index == 0 or ROLES[axis.name].sums or ROLES[axis.name].stages
            for index, axis in zip(place, mesh.axes, strict=True)
        )
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if counts:
            for loss in losses:
                total += loss.detach()
        if mesh.size > 1:
            with watch(self.groups.rank, "all_reduce of the loss over all ranks"):
                dist.all_reduce(total)
        return total

    @torch.no_grad()
    def optimizer_step(self) -> None:
        """Update the parameters by the gradients at hand, and give every rank its new values."""
        if self.optimizer is not None:
            self.optimizer.step()
        self.store.publish()
        self.steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Whole tensors on the CPU under the names of the module's own `state_dict`.

        All ranks call this together, and each gets everything.
        """
        found = unsharded.values(self.store, self.groups) | self.unused
        return {name: found[first] for name, first in self.names.items()}

    def full_gradients(self) -> dict[str, Tensor]:
        """Whole gradients of the last `forward_backward`, by first names; all ranks together."""
        return unsharded.gradients(self.store, self.groups)

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint of tensors, optimizer and step count; all ranks together.

        A kill at any instant leaves this generation or the one before. Gives its directory.
        """
        return program_state.save(self, Path(folder))

    def restore(self, folder: str | Path, generation: int | None = None) -> None:
        """Load a checkpoint, made under this or any other plan of the model; all ranks together.

        Takes the newest complete generation unless told otherwise. Warns when this plan cannot carry
        on errors of compressed gradients. Raises FileError for a damaged one, MismatchError when it
        is of another model.
        """
        program_state.restore(self, Path(folder), generation)


def names_of(module: nn.Module, table: Table) -> dict[str, str]:
    """The module's state_dict names, each with the name under which the program holds it."""
    first = {alias: name for held in table.held for name in held.names() for alias in held.aliases}
    return {name: first.get(name, name) for name in module.state_dict()}
