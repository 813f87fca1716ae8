"""Run by torchrun: every collective of `Comm` against the same on whole tensors."""

import itertools

import torch

from plait.ir.model.layout import local_factors
from plait.ir.model.mesh import Axis, Mesh
from plait.runtime.comm.mesh_collectives import Comm
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.slicing import local_shard
from plait.runtime.launch.session import session

FACTORS = ((4,), (3, 4, 2), (8, 4))


def comm_of(mesh: Mesh, rank: int) -> Comm:
    pool = GroupPool(rank)
    groups = {a.name: pool.group(a.name, mesh.groups((i,))) for i, a in enumerate(mesh.axes)}
    return Comm(mesh, 2, rank, groups, pool.sent_bytes)


def outer(layout, mesh, shard):
    dim, part = shard
    size = 1
    for factor in local_factors(FACTORS, layout, mesh)[dim][:part]:
        size *= factor
    return dim, size


def check(comm: Comm, mesh: Mesh, rank: int, axis: int, dtype: torch.dtype) -> None:
    """From and to every cut along one axis, the other axis cut as well or not."""
    place = mesh.coordinate(rank)
    name, degree = mesh.axes[axis].name, mesh.axes[axis].size
    shape = tuple(torch.Size(f).numel() for f in FACTORS)
    generator = torch.Generator().manual_seed(7)
    top = 2 if dtype == torch.bool else 100
    whole = torch.randint(0, top, shape, generator=generator).to(dtype)
    shards = [(d, p) for d, f in enumerate(FACTORS) for p in range(len(f)) if f[p] % degree == 0]

    def local(state, value=whole, other="R"):
        layout = tuple(state if i == axis else other for i in range(len(mesh.axes)))
        return layout, local_shard(value, FACTORS, layout, mesh, place)

    def same(made, expected):
        assert made.is_contiguous()
        torch.testing.assert_close(made, expected, rtol=0, atol=0)

    for other in ("R", (2, 1)):
        other = other if len(mesh.axes) > 1 else "R"
        for one in shards:
            if one == other:
                continue
            layout, x = local(one, other=other)
            x_strided = x.transpose(0, -1).contiguous().transpose(0, -1)
            _, r = local("R", other=other)
            same(comm.all_gather(x, name, *outer(layout, mesh, one)), r)
            same(comm.all_gather(x_strided, name, *outer(layout, mesh, one)), r)
            same(comm.slice(r, name, *outer(layout, mesh, one)), x)
            for two in shards:
                if two in (one, other):
                    continue
                target, y = local(two, other=other)
                layouts = (*outer(layout, mesh, one), *outer(target, mesh, two))
                same(comm.all_to_all(x_strided, name, *layouts), y)
            if dtype != torch.bool:
                share = (r * (place[axis] + 1)).contiguous()
                total = x * (degree * (degree + 1) // 2)
                same(comm.reduce_scatter(share, name, *outer(layout, mesh, one)), total)
                before = share.clone()
                same(comm.all_reduce(share, name), r * (degree * (degree + 1) // 2))
                same(share, before)


def main() -> None:
    with session() as rank:
        world = torch.distributed.get_world_size()
        meshes = {2: [(2,)], 4: [(4,), (2, 2)]}[world]
        for sizes in meshes:
            mesh = Mesh(tuple(Axis(f"a{i}", size) for i, size in enumerate(sizes)))
            comm = comm_of(mesh, rank)
            for axis, dtype in itertools.product(
                range(len(sizes)), (torch.float64, torch.float32, torch.int64, torch.bool)
            ):
                check(comm, mesh, rank, axis, dtype)
            for number in (0, 1):
                comm.micro_batch(number)
                rows = comm.slice(torch.arange(8.0), "micro", 0)
                assert rows.tolist() == [4.0 * number + i for i in range(4)]
            assert float(comm.scale(torch.ones(()), "a0")) == 1 / sizes[0]
            comm.sent_bytes.clear()
            comm.all_gather(torch.zeros(10), "a0", 0)
            assert comm.sent_bytes == {"all_gather": 40 * (sizes[0] - 1)}
    print("done", rank)


if __name__ == "__main__":
    main()
