"""The process group of a run: set up from what torchrun passes, taken down at the end."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import get_node_local_rank
from torch.distributed.rendezvous import rendezvous

from ...ir.errors import MismatchError
from ...ir.model.mesh import Mesh
from .start_store import start_store

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)  # of setting up; programs have groups with a timeout of their own


@contextmanager
def session(backend: str | None = None, timeout: timedelta = TIMEOUT) -> Iterator[int]:
    """Join the other ranks that torchrun started; yields this rank's number.

    NCCL where there are CUDA devices, gloo elsewhere. A process that torchrun did not start is a
    world of one. A process group that exists already is used and left alone.
    """
    if dist.is_initialized():
        yield dist.get_rank()
        return
    cuda = torch.cuda.is_available()
    chosen = backend or ("nccl" if cuda else "gloo")
    if cuda:
        torch.cuda.set_device(get_node_local_rank(0))
    if dist.is_torchelastic_launched():
        shared, rank, world = next(rendezvous("env://", timeout=timeout))
        store = start_store(shared, rank, world)
        dist.init_process_group(chosen, store=store, rank=rank, world_size=world, timeout=timeout)
    else:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(chosen, store=store, rank=0, world_size=1, timeout=timeout)
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def begin() -> tuple[int, int]:
    """Join the other ranks for the rest of this process; returns (rank, number of ranks)."""
    if not dist.is_initialized():
        stack = ExitStack()
        stack.enter_context(session())
        atexit.register(stack.close)
    return dist.get_rank(), dist.get_world_size()


def check_ranks(folder: str | Path, mesh: Mesh) -> None:
    """Raise MismatchError unless as many ranks run as the program of a folder has devices."""
    world = dist.get_world_size() if dist.is_initialized() else 0
    if world != mesh.size:
        raise MismatchError(
            f"{folder} is a program for {mesh.size} ranks ({mesh}), "
            f"{f'{world} are running' if world else 'no process group is set up'}: start it "
            f"with torchrun --nproc-per-node {mesh.size}"
        )


def default_device() -> torch.device:
    """Where this rank computes: its CUDA device under NCCL, else the CPU."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def on_first_rank(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, sent to every rank; what it raises there is raised on every rank.

    All ranks together. The value must be one that pickle takes.
    """
    if dist.get_world_size() == 1:
        return make()
    sent: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            sent[0] = make()
        except Exception as error:
            failure, sent[1] = error, _portable(error)
    dist.broadcast_object_list(sent)
    if failure is not None:
        raise failure
    if sent[1] is not None:
        raise sent[1]
    result: T = sent[0]
    return result


def _portable(error: Exception) -> Exception:
    """The error as other ranks raise it: of its kind where that takes a message alone."""
    try:
        copy: Exception = type(error)(str(error))
    except TypeError:
        return RuntimeError(f"rank 0: {type(error).__name__}: {error}")
    return copy
