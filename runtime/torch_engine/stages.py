"""Pipeline stages of a user's module by torch.distributed.pipelining, split where the plan's begin.

`pipeline` exports the module as one micro-batch runs it, up to its loss; each rank keeps its own model
chunks. Inputs of the batch reach every stage as keywords, so that labels need not travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
    pipe_split,
    pipeline,
)

from ...ir.errors import UsageError
from ...ir.plan.plan import Plan
from ...ir.plan.schedules.chunk_map import ChunkMap
from ...ir.plan.schedules.registry import chunk_map
from .shared_gradients import SharedParameters
from .stage_values import ChunkValues, chunk_values
from .stand_ins import put_back, standing_in

ONE_CHUNK = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
SCHEDULES: dict[str, Any] = {
    **ONE_CHUNK,
    "interleaved": ScheduleInterleaved1F1B,
    "zb-h1": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}
LossFn = Callable[[Any, Any], Tensor] | None
Shared = list[dict[int, str]]  # of parameters that several stages use: name by stage


class ChunkModule(nn.Module):
    """A model chunk: values of the chunks before it are positions, inputs of the batch keywords.

    Values that arrive may leave again unchanged, on their way to a later chunk.
    """

    def __init__(self, program: nn.Module, values: ChunkValues) -> None:
        super().__init__()
        self.program: nn.Module = program
        self.values: ChunkValues = values

    def forward(self, *arriving: Tensor, **batch: Tensor) -> Any:
        known = batch | dict(zip(self.values.arriving, arriving, strict=True))
        given: Any = self.program(*(known[name] for name in self.values.arguments))
        results: Sequence[Tensor] = given if isinstance(given, list | tuple) else [given]
        known |= dict(zip(self.values.results, results, strict=True))
        leaving: tuple[Tensor, ...] = tuple(
            known[name].contiguous() for name in self.values.leaving
        )
        return leaving[0] if len(leaving) == 1 else leaving


class PipelinedModule(nn.Module):
    """The stages of this rank, under the names that parameters have in the user's module.

    `step(**batch)` or `step(*batch)` runs forward and backward of all micro-batches of this rank's
    samples and returns their mean loss on every stage; gradients are those of that mean.
    """

    schedule: Any
    micro_batches: int
    shared: SharedParameters | None

    def __init__(self, chunks: list[ChunkModule], mesh: DeviceMesh) -> None:
        super().__init__()
        self.mesh, self.schedule, self.shared = mesh, None, None
        _merge(self, [chunk.program for chunk in chunks])

    def step(self, *arguments: Tensor, **batch: Tensor) -> Tensor:
        given = batch | {_argument(i): x for i, x in enumerate(arguments)}
        losses: list[Tensor] = []
        target = torch.zeros(self.micro_batches)
        self.schedule.step(target=target, losses=losses, return_outputs=False, **given)
        if self.shared is not None:
            self.shared.sum_gradients(self)
        like = next(iter(self.parameters()))
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        loss = torch.stack(losses).mean().detach() if losses else zero
        dist.all_reduce(loss, group=self.mesh.get_group())
        return loss


def _merge(into: nn.Module, modules: list[nn.Module]) -> None:
    """Give a module the parameters and children of others; children of one name become one."""
    children: dict[str, list[nn.Module]] = {}
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            into.register_parameter(name, parameter)
        for name, child in module.named_children():
            children.setdefault(name, []).append(child)
    for name, several in children.items():
        into.add_module(name, several[0] if len(several) == 1 else nn.Module())
        if len(several) > 1:
            _merge(into.get_submodule(name), several)


def _argument(place: int) -> str:
    return f"batch_{place}"


BEFORE, AFTER = "before", "after"


def split_points(module: nn.Module, plan: Plan) -> dict[str, set[str]]:
    """Before or after which modules the plan's model chunks begin; raises UsageError where none is."""
    points: dict[str, set[str]] = {}
    paths = {path for path, _ in module.named_modules()}
    for first, _ in plan.model_chunks[1:]:
        begins, ends = plan.calls[first], plan.calls[first - 1]
        if begins in paths:
            points.setdefault(begins, set()).add(BEFORE)
        elif ends in paths:
            points.setdefault(ends, set()).add(AFTER)
        else:
            raise UsageError(
                f"a stage begins between {ends} and {begins}, which are no modules: PyTorch's "
                "engine splits before and after modules; plan with another --roles or fewer stages"
            )
    return points


@contextmanager
def _splitting(module: nn.Module, points: Mapping[str, set[str]]) -> Iterator[None]:
    """Let modules say where a stage begins when they are exported."""
    forwards = {path: module.get_submodule(path).forward for path in points}

    def said(forward: Callable[..., Any], places: set[str]) -> Callable[..., Any]:
        def splitting(*args: Any, **kwargs: Any) -> Any:
            if BEFORE in places:
                pipe_split()
            output = forward(*args, **kwargs)
            if AFTER in places:
                pipe_split()
            return output

        return splitting

    for path, places in points.items():
        module.get_submodule(path).forward = said(forwards[path], places)
    try:
        yield
    finally:
        for path, forward in forwards.items():
            module.get_submodule(path).forward = forward


def split(
    module: nn.Module,
    plan: Plan,
    batch: Mapping[str, Tensor] | tuple[Tensor, ...],
    loss_fn: LossFn,
    places: Mapping[str, nn.Module],
) -> tuple[list[ChunkModule], Shared]:
    """The plan's model chunks, in the order of the model, with the module's parameters, and the names
    of those that several stages use. `batch`: samples of one micro-batch; `places`: stand-ins of layers
    that tensor ranks split."""
    keywords = dict(batch) if isinstance(batch, Mapping) else None
    named = keywords or {_argument(i): x for i, x in enumerate(batch)}
    points = split_points(module, plan)
    standing, to_loss = (
        standing_in(module, places),
        _forward_to_loss(module, keywords is not None, loss_fn),
    )
    with standing, _splitting(module, points), to_loss:
        pipe = pipeline(module, (), dict(named))
    if pipe.num_stages != len(plan.model_chunks):
        raise UsageError(
            f"the module runs in {pipe.num_stages} parts, the plan has {len(plan.model_chunks)}"
        )
    values = chunk_values(pipe.split_gm.graph)
    programs = [pipe.get_stage_module(i) for i in range(pipe.num_stages)]
    once: set[str] = set()
    for program in programs:
        layers = put_back(program, module, places)
        if once & layers:
            raise UsageError(
                f"{min(once & layers)} is called by two stages: no pp beside tp for it"
            )
        once |= layers
    chunks = [ChunkModule(*row) for row in zip(programs, values, strict=True)]
    return chunks, _take_parameters(module, chunks, plan)


@contextmanager
def _forward_to_loss(module: nn.Module, keywords: bool, loss_fn: LossFn) -> Iterator[None]:
    """Let a module's forward take a batch by keywords and give its loss as one element."""
    forward: Callable[..., Any] = module.forward

    def to_loss(**batch: Tensor) -> Tensor:
        output = forward(**batch) if keywords else forward(*batch.values())
        loss = loss_fn(output, batch if keywords else tuple(batch.values())) if loss_fn else output
        return getattr(loss, "loss", loss).reshape(1)

    module.forward = to_loss
    try:
        yield
    finally:
        module.forward = forward


def chunk_places(plan: Plan) -> ChunkMap:
    """Which stage runs which model chunk of a plan."""
    stages = len(plan.stages)
    return chunk_map(plan.schedule, stages, len(plan.model_chunks) // stages)


def _take_parameters(module: nn.Module, chunks: list[ChunkModule], plan: Plan) -> Shared:
    """Put the module's own parameters into its chunks; later stages get copies of shared ones."""
    places = chunk_places(plan)
    known = dict(module.named_parameters(remove_duplicate=False))
    names: dict[nn.Parameter, dict[int, str]] = {}
    copies: dict[tuple[nn.Parameter, int], nn.Parameter] = {}
    for number, chunk in enumerate(chunks):
        stage = places.place(number).stage
        for name, _ in list(chunk.program.named_parameters(remove_duplicate=False)):
            parameter = known[name]
            uses = names.setdefault(parameter, {stage: name})
            if uses.setdefault(stage, name) and stage != next(iter(uses)):
                copy = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                parameter = copies.setdefault((parameter, stage), copy)
            owner, _, leaf = name.rpartition(".")
            setattr(chunk.program.get_submodule(owner), leaf, parameter)
    return [uses for uses in names.values() if len(uses) > 1]


def schedule_stages(
    applied: PipelinedModule, chunks: dict[int, nn.Module], plan: Plan, device: torch.device
) -> None:
    """Give a rank's chunks, by their place in the model, the plan's schedule."""
    group = applied.mesh.get_group()
    stages = [
        PipelineStage(chunk, place, len(plan.model_chunks), device, group=group)
        for place, chunk in chunks.items()
    ]
    # with few micro-batches 1F1B is GPipe, and torch wants that name
    few = plan.schedule == "1f1b" and plan.micro_batches < len(plan.stages)
    kind: Any = ScheduleGPipe if few else SCHEDULES[plan.schedule]
    applied.micro_batches = plan.micro_batches
    applied.schedule = kind(
        stages[0] if plan.schedule in ONE_CHUNK else stages,
        plan.micro_batches,
        loss_fn=lambda output, _: output.mean(),
    )
