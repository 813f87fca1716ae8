"""Rows that travel level by level arrive as those that every rank sends to every other."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch

from plait.ir.model.mesh import Axis, Mesh
from plait.runtime.comm.group_hierarchy import DirectRoute, GroupHierarchy, NodeRoute
from plait.tests.ir.lowering.lockstep import Meeting, Rank


class Along:
    """One rank's group along an axis of a mesh, or of all ranks."""

    def __init__(self, meeting: Meeting, rank: int, axis: str) -> None:
        self.rank, self.axis = Rank(meeting, rank), axis
        self.size, self.index = self.rank.sizes[axis], self.rank.coordinates[axis]

    def exchange_rows(self, x, sent, received):
        return self.rank.exchange_rows(x, self.axis, sent, received)


@pytest.mark.parametrize("places", [(2, 2), (3, 2), (2, 3), (1, 4), (4, 1)])
def test_both_ways_give_the_same_rows_in_the_same_order(places) -> None:
    nodes, near = places
    ranks = nodes * near
    whole = Meeting(Mesh((Axis("all", ranks),)))
    levels = Meeting(Mesh((Axis("outer", nodes), Axis("inner", near))))
    counts = torch.randint(0, 4, (ranks, ranks), generator=torch.Generator().manual_seed(ranks))

    def run(rank: int) -> None:
        rows = torch.arange(int(counts[rank].sum())) + 1000 * rank
        groups: list[Any] = [
            Along(meeting, rank, axis)
            for meeting, axis in ((whole, "all"), (levels, "inner"), (levels, "outer"))
        ]
        everyone = groups[0]
        direct = DirectRoute(everyone.exchange_rows, counts[rank])
        by_node = NodeRoute(GroupHierarchy(*groups), counts[rank])
        arrived = direct.there(rows)
        assert torch.equal(by_node.there(rows), arrived)
        assert torch.equal(by_node.back(arrived), rows)

    with ThreadPoolExecutor(ranks) as threads:
        for done in [threads.submit(partial(run, rank)) for rank in range(ranks)]:
            done.result(60)
