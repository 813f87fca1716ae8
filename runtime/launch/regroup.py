"""The ranks that are left when others have gone: who they are, and a process group of their own.

    rank 2 is gone         ranks 0, 1 and 3 drop their groups, so that whoever waits for them fails too
    each says "here"       until every rank has said so, has ended, or gives no sign of life
    the first to know      writes down who is left; they are ranks 0, 1 and 2 from then on

Nothing is asked of those that are gone, and torchrun's store outlives them.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from traceback import clear_frames
from typing import Any

import torch.distributed as dist

from ..comm.monitor import Monitor
from ..comm.process_group import GroupPool
from ..comm.watchdog import CommunicationError
from ..torch_private import default_store
from .session import TIMEOUT

SILENT_SECONDS = 10.0  # without a sign of life a rank is gone
POLL_SECONDS = 0.1


def regroup(pool: GroupPool) -> tuple[int, ...]:
    """Give the ranks that are left a process group of their own; their old numbers, in the order of
    their new ones. All that are left together.

    Raises CommunicationError where the others have given this rank up, or ranks know nothing of each
    other (no store that outlives them).
    """
    monitor, store, backend = pool.watchdog.monitor, default_store(), dist.get_backend()
    if monitor is None:
        raise CommunicationError(f"rank {pool.rank}: no store says which ranks are left")
    monitor.raised = True  # it fails by itself
    _disconnect(pool)
    try:
        left = ranks_left(monitor, store, pool.rank)
    except RuntimeError as error:
        raise CommunicationError(
            f"rank {pool.rank}: the store of the ranks is gone: {error}"
        ) from error
    monitor.close()
    if pool.rank not in left:
        raise CommunicationError(f"rank {pool.rank}: the others go on without it: {left} are left")
    part = dist.PrefixStore("plait/left", store)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(
        backend, store=part, rank=left.index(pool.rank), world_size=len(left), timeout=TIMEOUT
    )
    return left


def _disconnect(pool: GroupPool) -> None:
    """Drop all process groups, and what the error at hand still has of them: gloo ends its connections,
    so that ranks that wait fail, when nothing refers to a group any more."""
    error = sys.exc_info()[1]
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__
    pool.close()
    dist.destroy_process_group()
    gc.collect()


def ranks_left(monitor: Monitor, store: Any, rank: int) -> tuple[int, ...]:
    """The ranks that are left, as the first of them has written down."""
    store.set(_here(rank), "here")
    heard: dict[int, tuple[int, float]] = {}  # by rank: its last beat, and when that came
    while not store.check([LEFT]):
        here = [r for r in range(monitor.world) if store.check([_here(r)])]
        states, now = monitor.read(), time.monotonic()
        for other, state in states.items():
            if other not in heard or heard[other][0] != state.beat:
                heard[other] = state.beat, now
        silent = {r for r, (_, at) in heard.items() if now - at > SILENT_SECONDS}
        gone = silent | {r for r, state in states.items() if state.end}
        if {*range(monitor.world)} <= {*here, *gone}:
            store.compare_set(LEFT, "", json.dumps(here))
        else:
            time.sleep(POLL_SECONDS)
    return tuple(json.loads(store.get(LEFT)))


LEFT = "plait/left/ranks"


def _here(rank: int) -> str:
    return f"plait/left/{rank}"
