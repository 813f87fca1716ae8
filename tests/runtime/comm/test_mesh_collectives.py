"""Comm on real gloo ranks against the same on whole tensors, and places in random masks."""

from pathlib import Path

import pytest
import torch

from plait.ir.model.mesh import Axis, Mesh
from plait.runtime.comm.mesh_collectives import Comm
from plait.runtime.comm.slicing import join, split, take_slice
from plait.tests.ranks import launch

HERE = Path(__file__).parent


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [2, 4])
def test_collectives_agree_with_whole_tensors(ranks: int) -> None:
    outputs = launch(ranks, [str(HERE / "comm_worker.py")], timeout_seconds=120)
    assert [o.split() for o in outputs] == [["done", str(rank)] for rank in range(ranks)]


@pytest.mark.parametrize(("dim", "outer", "degree"), [(0, 1, 2), (1, 3, 4), (1, 6, 2), (2, 2, 3)])
def test_split_and_join_are_inverse(dim: int, outer: int, degree: int) -> None:
    x = torch.arange(4 * 24 * 6).view(4, 24, 6)
    shards = split(x, degree, dim, outer)
    assert torch.equal(join(shards, dim, outer), x)
    for index in range(degree):
        assert torch.equal(take_slice(x, degree, index, dim, outer), shards[index])


def test_a_slice_inside_a_merged_dim_takes_every_outer_block() -> None:
    columns = torch.arange(12)  # (3 chunks, 4 heads)
    assert take_slice(columns, 2, 1, 0, 3).tolist() == [2, 3, 6, 7, 10, 11]


def test_places_nest_outermost_axis_first() -> None:
    mesh = Mesh((Axis("dp", 2), Axis("tp", 4)))
    comm = Comm(mesh, 2, mesh.rank((1, 2)), {})
    comm.micro_batch(1)
    places = [[2, 64, ["dp", "micro"]], [4, 4, ["tp"]], [4, 1, []]]
    # row block dp 1, micro 1: number 3 of blocks of 2 rows; columns block tp 2 of 4
    assert comm.shard_offsets(places) == [2, 64, 6, 4, 4, 8, 4, 1, 0]
    assert comm.with_offsets((None, places, [1, 2, 3], [])) == [
        None,
        comm.shard_offsets(places),
        [1, 2, 3],
        [],
    ]
