"""Every start of ranks has a part of the store for itself, whatever earlier ones left there."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from plait.runtime.launch.start_store import StartError, start_store

RANKS = 3


def start(store) -> list:
    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(lambda rank: start_store(store, rank, RANKS, 20.0), range(RANKS)))


def test_starts_do_not_see_each_other() -> None:
    store = dist.HashStore()
    first = start(store)
    first[0].set("address", "old")
    assert all(one.get("address") == b"old" for one in first)
    second = start(store)
    assert not any(one.check(["address"]) for one in second)
    second[1].set("address", "new")
    assert second[2].get("address") == b"new"
    assert first[0].get("address") == b"old"


def test_a_rank_that_does_not_start_is_named() -> None:
    store = dist.HashStore()
    start(store)  # its names are still there
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(start_store, store, rank, RANKS, 0.5) for rank in (0, 2)]
    with pytest.raises(StartError, match="ranks 1 of 3 have not started within 0 s"):
        found[0].result()
    found[1].result()  # it joined the start of rank 0
