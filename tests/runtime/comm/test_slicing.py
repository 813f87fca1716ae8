"""Pieces of whole tensors, and a store's flat cuts, for every rank at once: nothing is lost."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from plait.ir.model.mesh import Axis, Mesh
from plait.ir.model.tensor import TensorType
from plait.ir.plan.program import ParameterSpec, ProgramTable
from plait.runtime.comm.mesh_collectives import Comm
from plait.runtime.comm.process_group import Group
from plait.runtime.comm.slicing import flatten, local_shard
from plait.runtime.comm.watchdog import Watchdog
from plait.runtime.compression.transports import Transports
from plait.runtime.state.initialization import InitialValues
from plait.runtime.state.parameters import ParameterStore

MESH = Mesh((Axis("a", 2), Axis("b", 3), Axis("c", 2)))
FACTORS = ((12,), (3, 4, 2))


@pytest.mark.parametrize(
    "layout",
    [
        ("R", "R", "R"),
        ((0, 0), "R", "R"),
        ((0, 0), (0, 0), (0, 0)),
        ((1, 1), (0, 0), (1, 1)),
        ((1, 1), (1, 0), (1, 2)),
        ("R", (1, 0), (0, 0)),
    ],
)
def test_shards_are_where_the_layout_says(layout) -> None:
    whole = torch.arange(12 * 24).view(12, 24)
    expanded = whole.view(12, 3, 4, 2)
    where = {(0, 0): 0, (1, 0): 1, (1, 1): 2, (1, 2): 3}
    for rank in range(MESH.size):
        place, expected = MESH.coordinate(rank), expanded
        for axis, state in enumerate(layout):
            if state != "R":
                expected = expected.chunk(MESH.axes[axis].size, where[state])[place[axis]]
        made = local_shard(whole, FACTORS, layout, MESH, place)
        assert torch.equal(made, expected.reshape(made.shape))


def store_of(rank: int, sizes: dict[str, int], module: torch.nn.Module) -> ParameterStore:
    """The store of one rank, without a process group: groups that never have to speak."""
    mesh = Mesh(tuple(Axis(name, size) for name, size in sizes.items()))
    parameter_spec = ParameterSpec(
        "w",
        "parameter",
        TensorType((5, 4), "float32"),
        ((5,), (4,)),
        tuple((1, 0) if name == "tp" else "R" for name in sizes),
        (0,),
        True,
    )
    table = SimpleNamespace(
        mesh=mesh,
        meshes=(mesh,),
        state_tensors=(parameter_spec,),
        expert_slots=0,
        steps_on_host=False,
        micro_batches=1,
        compression=(),
        calls=(),
        in_flight_bytes=0,
        stepped_dtype=lambda spec: spec.type.dtype,
        summed_dtype=lambda spec: spec.type.dtype,
    )
    roles = {}
    for role in ("dp", "zero1", "zero2", "zero3"):
        axes = tuple(i for i, name in enumerate(sizes) if name == role)
        ranks = next(g for g in mesh.groups(axes) if rank in g)
        roles[role] = Group(role, ranks, Watchdog(rank), None, Counter())
    groups = SimpleNamespace(roles=(roles,), partial={}, stage=0, rank=rank)
    transports = Transports(table, groups, Path(), torch.device("meta"))
    comms = [Comm(mesh, 1, rank, {})]
    return ParameterStore(
        table, groups, comms, InitialValues(module), torch.device("cpu"), transports
    )


def test_optimizer_shards_of_all_ranks_make_the_whole() -> None:
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.arange(20.0).view(5, 4))
    sizes = {"dp": 2, "zero3": 2, "zero2": 2, "zero1": 2, "tp": 2}
    stores = [store_of(rank, sizes, module) for rank in range(32)]
    for first in range(0, 32, 16):  # replicas
        for tp in (0, 1):
            local = [store.parameters["w"] for store in stores[first + tp : first + 16 : 2]]
            expected = flatten(module.w.detach()[:, 2 * tp : 2 * tp + 2], 16)
            assert torch.equal(torch.cat([k.leaf.detach() for k in local]), expected)
            assert all(k.flat.numel() == 8 for k in local)  # 10 elements, padded to 16, over zero3
            assert all(k.leaf.numel() == 2 for k in local)
    whole = torch.randn(5, 4)
    for store in stores:
        store.set_value("w", whole)
        local = store.parameters["w"]
        assert torch.equal(local.leaf.detach(), store.scatter(local, whole))


def test_what_is_whole_stays_one_tensor() -> None:
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.randn(5, 4))
    store = store_of(1, {"dp": 2, "zero3": 1, "tp": 1}, module)
    local = store.parameters["w"]
    assert local.leaf.shape == (5, 4)
    with torch.no_grad():
        local.leaf.fill_(7.0)
    assert torch.equal(store.fetch(["w"])[0], torch.full((5, 4), 7.0))
    assert not torch.equal(module.w, local.leaf)  # the user's module is not touched


def test_gradients_add_up_without_writing_into_the_first() -> None:
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.zeros(5, 4))
    store = store_of(0, {"dp": 1}, module)
    first = torch.ones(5, 4)
    for gradient in (first, 2 * first, 3 * first):
        store.accumulate([("w", gradient)])
    store.reductions.sum_tied = lambda totals: None
    store.synchronize()
    assert torch.equal(store.parameters["w"].leaf.grad, torch.full((5, 4), 6.0))
    assert torch.equal(first, torch.ones(5, 4))


def test_the_stub_table_has_the_fields_of_a_real_one() -> None:
    assert {"mesh", "state_tensors", "micro_batches"} <= set(ProgramTable.__struct_fields__)
