"""Programs of one module for other batch shapes and for evaluation, made once and kept.

All of them work on the tensors of the first, which trains (`state/borrowed`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from ...ir.capture.batch import leaves
from ...ir.capture.outputs import ForwardOutputs
from ...ir.errors import MismatchError, UsageError
from ...ir.plan.program import PLACED_SCHEDULE, ProgramTable
from ..comm.mesh_collectives import Comm
from ..comm.program_groups import MeshGroups
from ..compression.transports import Transports
from ..state.borrowed.store import BorrowedStore, Version
from .batch import Batch, find
from .calls import Run
from .compiled_step import CompiledStep

Mode = Literal["train", "evaluate", "outputs"]


class Variant(NamedTuple):
    """A program for one shape of batch; `outputs` is what the model gives its caller."""

    step: CompiledStep
    outputs: ForwardOutputs | None = None


Open = Callable[[Path, ProgramTable], CompiledStep]
Compile = Callable[[Mode, Batch, Open], Variant]  # all ranks together


class Variants:
    """The programs beside `first`; `compile` makes one, and is set where the module is at hand."""

    def __init__(self, first: CompiledStep, seed: int) -> None:
        self.first, self.seed = first, seed
        self.compile: Compile | None = None
        self.known: dict[Hashable, Variant] = {}
        self.evaluations = 0

    def training(self, batch: Batch) -> CompiledStep:
        """The program that trains on a batch of this shape; the first one for a wrong batch, which
        refuses it."""
        if self.compile is None or not differs_in_size(batch, self.first.table):
            return self.first
        if self.first.table.compression:
            raise MismatchError(
                f"the batch is {shapes(batch)}; a program that compresses gradients trains on batches "
                "of one shape: leave out the last small batch, or plan without compression"
            )
        return self.of("train", batch).step

    def must_compare(self, mode: Mode, batch: Batch, every: int) -> bool:
        """Whether ranks must compare a batch before they use it: one of a new shape, and every
        `every`-th of an evaluation (those of training are compared with the loss)."""
        self.evaluations += mode != "train"
        due = mode != "train" and every > 0 and self.evaluations % every == 0
        return due or not self.knows(mode, batch)

    def knows(self, mode: Mode, batch: Batch) -> bool:
        """Whether nothing must be made for a batch."""
        if mode == "train" and not differs_in_size(batch, self.first.table):
            return True
        return (mode, shapes(batch)) in self.known

    def of(self, mode: Mode, batch: Batch) -> Variant:
        """The program for a batch; made when its shape is new, all ranks together."""
        key = (mode, shapes(batch))
        if key not in self.known:
            if self.first.groups.devices is not None:
                raise UsageError(
                    "a program of device groups trains on batches of one shape and does not evaluate: "
                    "load its weights into the module (program.load_into) and evaluate that"
                )
            if self.compile is None:
                raise UsageError(self.why_alone())
            self.known[key] = self.compile(mode, batch, self.open)
        return self.known[key]

    def why_alone(self) -> str:
        """Why there are no programs beside the first one, and what to do."""
        if self.first.table.schedule == PLACED_SCHEDULE:
            return (
                "a placed program only trains, on one shape of batch: copy its weights into the module "
                "with program.load_into(module), and evaluate that"
            )
        return (
            "this program has no module to trace for evaluation, outputs or batches of another shape: "
            "open its folder with plait.open_program(folder, module, loss_fn=...); one that was "
            "compiled by an earlier version is compiled again first"
        )

    def open(self, folder: Path, table: ProgramTable) -> CompiledStep:
        """The program of a folder, on the tensors of the first."""
        lender = self.first.store
        groups = MeshGroups(table, self.first.groups.pool)

        def make_store(comms: Sequence[Comm], transports: Transports) -> BorrowedStore:
            return BorrowedStore(lender, table, groups, comms, transports)

        first = self.first
        return CompiledStep(
            folder, table, groups, make_store, first.device, self.seed, first.compiler
        )

    def reset(self, seed: int) -> None:
        """Give all programs the seed of a checkpoint; copies of its tensors are out of date."""
        self.seed = seed
        self.first.store.replicas.expire()
        for step in (self.first, *(variant.step for variant in self.known.values())):
            step.run.seed = seed
            if isinstance(step.store, BorrowedStore):
                step.store.version = None


def refresh(step: CompiledStep, version: Version) -> None:
    """Bring the tensors of a borrowing program up to date."""
    if isinstance(step.store, BorrowedStore):
        step.store.refresh(version)


def give_back(step: CompiledStep) -> None:
    """Bring what a borrowing program's step has changed to the lender."""
    if isinstance(step.store, BorrowedStore):
        step.store.return_gradients()
        step.store.return_buffers(updated_buffers(step))


def updated_buffers(step: CompiledStep) -> list[str]:
    """Names of the buffers that a program's steps replace, on any stage."""
    if not isinstance(step.run, Run):
        return []
    return [
        run.name(names, call)
        for run in step.table.calls
        for call in range(run.first, run.last)
        for _, names in run.updates
    ]


def differs_in_size(batch: Batch, table: ProgramTable) -> bool:
    """Whether a batch has the tensors of a program, of as many dimensions, in other sizes."""
    pairs = [(find(batch, t.path), t.type) for t in table.batch]
    fits = all(isinstance(v, Tensor) and v.dim() == len(t.shape) for v, t in pairs)
    return fits and any(tuple(v.shape) != t.shape for v, t in pairs)


def shapes(batch: Batch) -> tuple[tuple[object, ...], ...]:
    """Path, shape and element type of every tensor of a batch."""
    return tuple((path, tuple(t.shape), str(t.dtype)) for path, t in leaves(batch))
