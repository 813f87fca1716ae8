"""Rows that travel level by level arrive as those that every rank sends to every other."""

import pytest
import torch

from plait.runtime.comm.group_hierarchy import DirectRoute, GroupHierarchy, NodeRoute
from plait.runtime.compression.threads import run_ranks


@pytest.mark.parametrize("places", [(2, 2), (3, 2), (2, 3), (1, 4), (4, 1)])
def test_both_ways_give_the_same_rows_in_the_same_order(places) -> None:
    nodes, near = places
    ranks = nodes * near
    counts = torch.randint(0, 4, (ranks, ranks), generator=torch.Generator().manual_seed(ranks))

    def routes(groups: GroupHierarchy) -> None:
        rank = groups.all.index
        rows = torch.arange(int(counts[rank].sum())) + 1000 * rank
        direct = DirectRoute(groups.all.exchange_rows, counts[rank])
        by_node = NodeRoute(groups, counts[rank])
        arrived = direct.there(rows)
        assert torch.equal(arrived // 1000, torch.arange(ranks).repeat_interleave(counts[:, rank]))
        assert torch.equal(by_node.there(rows), arrived)
        assert torch.equal(by_node.back(arrived), rows)

    run_ranks(routes, inner=near, outer=nodes)
