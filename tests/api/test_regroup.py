"""Ranks leave a run, or its module changes, and it goes on as one process with the same batches."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from plait.api.parallel.rank_cluster import devices_left
from plait.api.plans.plan_object import with_methods
from plait.cost_model.hardware import load_any_cluster, load_cluster
from plait.ir.capture import trace
from plait.ir.devices.mixed import remaining
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.checkpoint.generations import Manifest, StoredTensor
from plait.runtime.checkpoint.live import Offer, newest_whole
from plait.runtime.launch.launch import LaunchError
from plait.tests.api import regroup_worker, replan_worker
from plait.tests.codegen.device_groups import SHAPES, grouped_plan
from plait.tests.ranks import launch


@pytest.fixture(scope="module")
def model():
    return trace(regroup_worker.model(), regroup_worker.batches()[0], regroup_worker.loss_fn)


def trained(folder: Path, model, strategy: str, *arguments: str) -> list[list[str]]:
    """What the ranks that stay print."""
    chosen = (
        grouped_plan(model, SHAPES[strategy])
        if strategy in SHAPES
        else plan(model, load_cluster("local:4"), PlanOptions(pins=pin_all(strategy)))
    )
    with_methods(chosen).save(folder / "plan.json")
    target = [regroup_worker.__file__, str(folder / "plan.json"), *arguments]
    return [printed.split() for printed in launch(4, target, timeout_seconds=150) if printed]


@pytest.mark.long
@pytest.mark.ranks
@pytest.mark.parametrize(
    ("strategy", "leaving", "went_on"),
    [
        ("dp=4", ["0@2"], ["3@2"]),
        ("dp=2,tp=2", ["2@3+", "3@3"], ["2@3"]),
        ("two replicas feed one", ["0@3"], ["3@3"]),
    ],
)
def test_what_survives_in_memory_goes_on_from_there(tmp_path, model, strategy, leaving, went_on):
    rows = trained(tmp_path, model, strategy, *leaving)
    assert len(rows) == 4 - len(leaving)
    for difference, *places in rows:
        assert float(difference) < 1e-9
        assert [place.partition(":")[0] for place in places] == went_on


@pytest.mark.long
@pytest.mark.ranks
@pytest.mark.parametrize(
    ("strategy", "leaving"), [("zero3=4", "3@4"), ("two replicas feed one", "3@4")]
)
def test_what_is_lost_comes_from_the_checkpoint(tmp_path, model, strategy, leaving):
    rows = trained(tmp_path, model, strategy, leaving, f"checkpoint={tmp_path}/checkpoint")
    assert len(rows) == 3
    for difference, place in rows:
        assert float(difference) < 1e-9
        assert place.startswith("3@2:")  # the step after the checkpoint
    with pytest.raises(LaunchError, match="no checkpoint was named"):
        trained(tmp_path, model, strategy, leaving)


@pytest.mark.long
@pytest.mark.ranks
@pytest.mark.parametrize("pin", ["zero3=2", "tp=2", "pp=2"])
def test_a_gate_that_grows_sparse_between_steps_is_planned_anew(pin):
    for printed in launch(2, [replan_worker.__file__, pin], timeout_seconds=120):
        difference, *plans = printed.split()
        assert float(difference) < 1e-9
        assert plans == [pin, pin]


def offer(steps: int, **boxes: tuple[int, int]) -> Offer:
    """Of vectors of 8 elements."""
    tensors = tuple(StoredTensor(name, (8,), "float64") for name in boxes)
    manifest = Manifest("net", steps, 0, "AdamW", {}, {}, tensors)
    return Offer(manifest, {name: (((span,),),) for name, span in boxes.items()}, (), ())


def test_the_newest_state_that_is_whole_is_taken():
    rows = [offer(3, w=(0, 4)), offer(3, w=(4, 8)), offer(4, w=(0, 4)), None]
    assert newest_whole(rows, {"w"}) == [0, 1]  # step 4 has one half
    assert newest_whole([*rows, offer(4, w=(4, 8))], {"w"}) == [2, 4]
    assert newest_whole(rows[:1], {"w"}) == []
    assert newest_whole(rows, {"w", "other"}) == []
    assert newest_whole([None], {"w"}) == []
    states = [offer(3, w=(0, 8), m=(0, 4)), offer(3, w=(0, 8), m=(4, 8))]
    assert newest_whole(states, {"w"}) == [0, 1]
    assert newest_whole(states[:1], {"w"}) == []  # half of the state has gone
    whole = [offer(3, w=(0, 8))._replace(stepped_whole=("w",))]
    assert newest_whole(whole, {"w"}) == []  # its owner, who steps it, has gone
    assert newest_whole([whole[0]._replace(owned=("w",))], {"w"}) == [0]


def test_devices_that_are_left_are_those_of_the_ranks(model):
    grouped = grouped_plan(model, SHAPES["two replicas feed one"])  # ranks on parts 0, 1, 0, 0
    assert [part.devices for part in devices_left(grouped, [1, 2, 3]).parts] == [2, 1]
    assert devices_left(grouped, [0, 2, 3]).device.kind == grouped.cluster.parts[0].device.kind
    nodes = load_any_cluster("4x8xh100")
    assert [level.size for level in remaining(nodes, [24]).levels] == [3, 8]
    flat = remaining(nodes, [30])
    assert [level.size for level in flat.levels] == [30]
    assert flat.levels[0].bandwidth_bytes_per_second == nodes.levels[0].bandwidth_bytes_per_second
    assert devices_left(replace(grouped, groups=()), [0, 1, 2, 3]).devices == 4
