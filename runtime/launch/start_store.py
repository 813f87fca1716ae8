"""A part of the store for one start of all ranks: what an earlier start left there is not seen.

torchrun starts ranks again with the store that they had before, in which the addresses of the old
ranks still stand.
"""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import uuid4

import torch.distributed as dist

from ...ir.errors import PlaitError

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 600.0
LIST = "plait/start"  # where rank 0 lists the names


class StartError(PlaitError):
    """Not all ranks have started: the message names those that are missing."""

    exit_code = 1


def start_store(store: Any, rank: int, world: int, seconds: float = PATIENCE_SECONDS) -> Any:
    """The part of a torch store that this start of the ranks has for itself; all ranks together.

    Every rank says a name that nobody has used before; rank 0 lists the names until everybody has
    found his own in the list, and its name is that of the start. Raises StartError after `seconds`.
    """
    name = uuid4().hex
    store.set(_key(rank), name)
    deadline = time.monotonic() + seconds
    while True:
        names = _listed(store, world) if rank == 0 else json.loads(_text(store, LIST) or "[]")
        if rank == 0:
            store.set(LIST, json.dumps(names))
        if len(names) > rank and names[rank] == name:
            store.set(f"{_key(rank)}/joined", names[0])
            missing = _missing(store, world, name) if rank == 0 else []
            if not missing:
                prefix = f"plait/starts/{names[0]}"
                return dist.PrefixStore(prefix, store)  # pyright: ignore[reportPrivateImportUsage]
        if time.monotonic() > deadline:
            raise StartError(_reason(store, rank, world, name, seconds))
        time.sleep(POLL_SECONDS)


def _key(rank: int) -> str:
    return f"plait/start/{rank}"


def _text(store: Any, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _listed(store: Any, world: int) -> list[str]:
    return [_text(store, _key(rank)) for rank in range(world)]


def _missing(store: Any, world: int, start: str) -> list[int]:
    """Ranks that have not joined a start."""
    return [rank for rank in range(world) if _text(store, f"{_key(rank)}/joined") != start]


def _reason(store: Any, rank: int, world: int, name: str, seconds: float) -> str:
    if rank:
        return f"rank {rank}: rank 0 has not started within {seconds:.0f} s"
    missing = ", ".join(map(str, _missing(store, world, name)))
    return f"ranks {missing} of {world} have not started within {seconds:.0f} s"
