"""One compiled program over a store of parameters: runs batches forward and backward, or forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...ir.errors import UsageError
from ...ir.plan.program import PLACED_SCHEDULE, ProgramTable, chunk_function
from ...ir.plan.schedules.chunk_map import ScheduleRows
from ...ir.plan.schedules.registry import build_rows, chunk_map, splits_backward
from ...ir.plan.strategy import ROLES
from ..comm.mesh_collectives import Comm
from ..comm.program_groups import MeshGroups
from ..compression.transports import Transports, mesh_comms, stage_transfer_codec
from ..inductor.kernels import Compiler
from ..launch.program_folder import import_stage
from ..state.parameters import ParameterStore
from .batch import Batch, local_batch, micro_batch_values
from .calls import Run
from .device_groups.gradient_totals import GradientTotals
from .device_groups.pipeline import GroupPipeline
from .outputs import gather_outputs
from .pipeline import FORWARD, ModelChunk, PipelineRunner
from .placed_rank import PlacedRun

SPLIT, WHOLE = ("backward_inputs", "backward_weights"), ("backward", "backward")
StoreFactory = Callable[[Sequence[Comm], Transports], ParameterStore]


class CompiledStep:
    """What one rank runs of a program's folder. `make_store` gives it parameters, on the collectives
    of its meshes; `compiler` compiles its functions, also where the table does not say so."""

    def __init__(
        self,
        folder: Path,
        table: ProgramTable,
        groups: MeshGroups,
        make_store: StoreFactory,
        device: torch.device,
        seed: int,
        compiler: Compiler | None = None,
    ) -> None:
        from ...ir.capture.operators.elementary import call_key
        from ..operators import native as _native  # noqa: F401  (and their compiled kernels)

        placed = table.schedule == PLACED_SCHEDULE
        self.stage = import_stage(folder, groups.stage, "rank" if placed else "stage")
        self.table, self.groups, self.device = table, groups, device
        self.compiler = compiler or (Compiler() if table.kernels == "inductor" else None)
        if self.compiler is not None:
            self.compiler.compile_stage(self.stage)
        self.loss_scale = 1.0
        comms = mesh_comms(table, groups, folder, device)
        self.store = make_store(comms, Transports(table, groups, folder, device))
        self.run: Run | PlacedRun
        self.totals: GradientTotals | None = None
        if placed:
            self.run = PlacedRun(self.store, groups.down, call_key, seed)
            return
        grid = Comm(table.mesh, table.micro_batches, groups.rank, groups.axes, groups.sent_bytes)
        self.run = Run(table, self.store, comms, grid, call_key, seed)
        self.pipeline: PipelineRunner | GroupPipeline
        self.forward_pipeline: PipelineRunner | GroupPipeline
        if groups.devices is not None:
            self.totals = GradientTotals(self.store, groups, groups.devices)
            self.pipeline = GroupPipeline(groups, device, forward_only=False)
            self.forward_pipeline = GroupPipeline(groups, device, forward_only=True)
            return
        rows = build_rows(table.schedule, table.stages, table.micro_batches, table.chunks_per_stage)
        chunks = chunk_map(table.schedule, table.stages, table.chunks_per_stage)
        links = groups, device, stage_transfer_codec(table, folder, device)
        self.pipeline = PipelineRunner(rows, chunks, table.stage_transfers, *links)
        self.forward_pipeline = PipelineRunner(
            forward_rows(rows), chunks, table.stage_transfers, *links
        )

    def forward_backward(self, batch: Batch, number: int, loss_scale: float = 1.0) -> Tensor:
        """This rank's term of the loss of one global batch, the `number`-th; its gradients are added to
        the store's. Backward starts at `loss_scale`, by which they are divided."""
        self.loss_scale = loss_scale
        inputs = self.local_batch(batch)
        self.run.start(number)
        if isinstance(self.run, PlacedRun):
            loss = self.stage.step(self.run, *inputs)
            losses = [] if loss is None else [loss]
        else:
            losses = self.micro_batches(self.run, self.pipeline, inputs)
        self.run.finish()
        if self.totals is not None:
            self.totals.run()
        self.store.synchronize(loss_scale)
        return self.local_loss(losses)

    def forward(self, batch: Batch, number: int) -> Tensor:
        """This rank's term of the loss of one global batch, without gradients; raises UsageError for
        a placement."""
        if isinstance(self.run, PlacedRun):
            raise UsageError("a placement has forward and backward in one list: it cannot evaluate")
        inputs = self.local_batch(batch)
        self.run.start(number, training=False)
        losses = self.micro_batches(self.run, self.forward_pipeline, inputs)
        self.run.finish()
        return self.local_loss(losses)

    def outputs(self, batch: Batch, number: int, *, whole: bool) -> list[Tensor]:
        """The tensors of the table's outputs: of the global batch, or of this rank's samples."""
        self.forward(batch, number)
        assert isinstance(self.run, Run)
        return gather_outputs(self.run, self.groups, batch, whole=whole)

    def local_batch(self, batch: Batch) -> list[Tensor]:
        """This rank's shards of the tensors that its stage reads."""
        return local_batch(batch, self.table, self.groups.rank, self.stage.BATCH, self.device)

    def micro_batches(
        self, run: Run, pipeline: PipelineRunner | GroupPipeline, inputs: list[Tensor]
    ) -> list[Tensor]:
        """Run all micro-batches through the pipeline; gives their losses, on the last stage."""
        batch_only = self.stage.batch_only(run, *inputs)
        losses: list[Tensor] = []
        chunks = range(self.table.chunks_per_stage)
        pipeline.run([self.model_chunk(run, c, batch_only, losses) for c in chunks])
        return losses

    def model_chunk(
        self, run: Run, chunk: int, batch_only: tuple[Tensor, ...], losses: list[Tensor]
    ) -> ModelChunk:
        """Forward and backward of one model chunk; the model's last one appends to `losses`."""
        splits = splits_backward(self.table.schedule)
        run_forward, run_backward, run_weights = (
            getattr(self.stage, chunk_function(part, chunk, self.table.chunks_per_stage))
            for part in ("forward", *(SPLIT if splits else WHOLE))
        )
        last = self.pipeline.last(chunk)

        def forward(number: int, received: list[Tensor]) -> tuple[Tensor, ...]:
            run.micro_batch(number)
            results: tuple[Tensor, ...] = run_forward(
                run, *micro_batch_values(batch_only, self.stage, self.table, number), *received
            )
            losses.extend(results if last else ())
            return results

        def backward(number: int, tangents: list[Tensor]) -> tuple[Tensor | None, ...]:
            run.micro_batch(number)
            gradients: tuple[Tensor | None, ...] = run_backward(
                run, *([torch.full_like(losses[0], self.loss_scale)] if last else tangents)
            )
            self.store.reductions.settle()
            return gradients

        def weights(number: int) -> None:
            if splits:
                run.micro_batch(number)
                run_weights(run)
                self.store.reductions.settle()

        return ModelChunk(forward, backward, weights)

    def local_loss(self, losses: list[Tensor]) -> Tensor:
        """This rank's term of the loss: partial over micro-batches and data axes, replicated over tp."""
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
        return total


def forward_rows(rows: ScheduleRows) -> ScheduleRows:
    """A schedule's forward steps alone, in the same order."""
    return tuple(tuple(step for step in row if step[0] == FORWARD) for row in rows)
