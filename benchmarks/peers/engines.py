"""One training step of a model on this rank, by Plait or by an engine of torch.

Each function gives a step: a call that trains on the whole global batch and returns its loss (of the
last stage's ranks, 0 elsewhere). Optimizer: AdamW of torch with its defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from plait.benchmarks.peers.models import Decoder, build, loss_of
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.program import Program

Step = Callable[[], float]
LEARNING_RATE = 1e-4
MICRO_BATCHES = 4  # of a pipeline
COLUMN = ("query", "key", "value", "up", "gate")
ROW = ("out", "down")


class Job(NamedTuple):
    """One comparison: the strategy of ours (`dp=2`), its peer, and whether both are compiled."""

    model: str
    ranks: int
    strategy: str
    peer: str
    compiled: bool
    folder: str


def plait_step(job: Job, pool: GroupPool) -> Step:
    """Of a program that was planned and compiled before."""
    model, batch = build(job.model)
    arguments = {"lr": LEARNING_RATE}
    program = Program.open(job.folder, model, torch.optim.AdamW, arguments, pool=pool)
    del model
    return lambda: float(program.step(batch))


def trained(model: nn.Module, tokens: Tensor, labels: Tensor) -> Step:
    """Steps of a module that synchronizes its gradients itself."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(tokens, labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def samples_of(batch: dict[str, Tensor]) -> list[Tensor]:
    """This rank's part of the global batch."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return [tensor.chunk(ranks)[rank].clone() for tensor in (batch["tokens"], batch["labels"])]


def eager_step(job: Job) -> Step:
    model, batch = build(job.model)
    if job.compiled:
        model.compile()
    return trained(model, batch["tokens"], batch["labels"])


def ddp_step(job: Job) -> Step:
    model, batch = build(job.model)
    if job.compiled:
        model.compile()
    return trained(DistributedDataParallel(model), *samples_of(batch))


def fsdp_step(job: Job) -> Step:
    """Blocks and the rest of the model are units of FSDP2, as its documentation advises."""
    model, batch = build(job.model)
    reshard = job.strategy.startswith("zero3")
    for block in model.blocks:
        if job.compiled:
            block.compile()
        fully_shard(block, reshard_after_forward=reshard)
    fully_shard(model, reshard_after_forward=reshard)
    return trained(model, *samples_of(batch))


def dtensor_step(job: Job) -> Step:
    """Megatron's columns and rows, by DTensor; the head's classes are not split, as the loss of
    DTensor gathers them otherwise."""
    model, batch = build(job.model)
    mesh = init_device_mesh("cpu", (job.ranks,))
    for block in model.blocks:
        styles = {name: ColwiseParallel() for name in COLUMN if hasattr(block, name)}
        parallelize_module(block, mesh, {**styles, **{name: RowwiseParallel() for name in ROW}})
    if job.compiled:
        model.compile()
    return trained(model, batch["tokens"], batch["labels"])


def pipelining_step(job: Job) -> Step:
    model, batch = build(job.model)
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    part = model.stage(rank, job.ranks)
    if job.compiled:
        part.compile()
    stage = PipelineStage(part, rank, job.ranks, torch.device("cpu"))
    schedule = Schedule1F1B(stage, MICRO_BATCHES, loss_fn=loss_of)
    optimizer = torch.optim.AdamW(part.parameters(), lr=LEARNING_RATE)
    inputs = [batch["tokens"]] if rank == 0 else []
    target = batch["labels"] if rank == last else None
    del model

    def step() -> float:
        optimizer.zero_grad()
        losses: list[Tensor] = []
        schedule.step(*inputs, target=target, losses=losses)
        optimizer.step()
        return float(torch.stack(losses).mean().detach()) if losses else 0.0

    return step


PEERS: dict[str, Callable[[Job], Step]] = {
    "eager": eager_step,
    "DDP": ddp_step,
    "FSDP2": fsdp_step,
    "DTensor": dtensor_step,
    "pipelining": pipelining_step,
}
PEER_OF = {"dp": "DDP", "zero1": "FSDP2", "zero2": "FSDP2", "zero3": "FSDP2", "tp": "DTensor",
           "pp": "pipelining"}  # fmt: skip

__all__ = ["MICRO_BATCHES", "PEERS", "PEER_OF", "Decoder", "Job", "Step", "plait_step"]
