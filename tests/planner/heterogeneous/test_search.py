"""Mixtures beat every part alone, equal parts are one cluster, no group is over its memory."""

from itertools import combinations

import pytest
from msgspec.structs import replace

from plait.cost_model.hardware import load_any_cluster
from plait.ir.capture import trace
from plait.ir.devices.heterogeneous import HeterogeneousCluster, sub_cluster
from plait.ir.errors import FileError
from plait.ir.plan.heterogeneous import HeterogeneousPlan
from plait.ir.plan.plan import Plan
from plait.planner import PlanOptions
from plait.planner import plan as plan_cluster
from plait.planner.heterogeneous.group_prices import GroupPrices, GroupType
from plait.planner.heterogeneous.judge import check
from plait.planner.heterogeneous.layer_split import LayerSplit
from plait.planner.heterogeneous.pipeline_times import simulated_seconds
from plait.planner.heterogeneous.search import plan
from plait.planner.heterogeneous.shapes import shapes
from plait.tests import zoo


@pytest.fixture(scope="module")
def model():
    module, batch = zoo.gpt2(6, batch=64, seq=16)
    return trace(module, batch)


def slow(cluster):
    """The cluster with devices so slow that small models are work for them."""

    def slower(part):
        device = part.device
        rates = {dtype: rate / 1e5 for dtype, rate in device.peak_flops.items()}
        return replace(
            part,
            device=replace(
                device,
                peak_flops=rates,
                launch_overhead_seconds=0.0,
                runtime_overhead_bytes=0,
                memory_bandwidth_bytes_per_second=device.memory_bandwidth_bytes_per_second / 1e3,
            ),
        )

    return replace(cluster, parts=tuple(map(slower, cluster.parts)))


@pytest.mark.parametrize("spec", ["1xh100+1xa100-40", "3xh100+5xa100-80"])
def test_a_mixture_beats_every_part_alone_and_all_as_the_slowest(model, spec):
    answer = plan(model, slow(load_any_cluster(spec)), PlanOptions())
    assert isinstance(answer, HeterogeneousPlan)
    check(answer)
    assert len(answer.single_part_seconds) == 3
    assert all(
        seconds is None or answer.step_seconds < seconds for seconds in answer.single_part_seconds
    )
    longest = max(simulated_seconds(answer.cluster, pipeline) for pipeline in answer.replicas)
    assert answer.step_seconds == pytest.approx(longest + answer.sync_seconds)
    assert answer.lower_bound_seconds <= answer.step_seconds


def test_equal_parts_are_one_cluster(model):
    cluster = load_any_cluster("2xh100+2xh100")
    answer = plan(model, cluster, PlanOptions())
    assert isinstance(answer, Plan)
    same = cluster.as_homogeneous()
    assert answer.prediction == plan_cluster(model, same, PlanOptions()).prediction


def test_memory_of_every_part_is_kept(model):
    cluster = slow(load_any_cluster("1xh100+1xa100-80"))
    free = plan(model, cluster, PlanOptions())
    least = min(
        group.stage.peak_bytes for pipeline in free.replicas for group in pipeline.device_groups
    )
    small = replace(cluster.parts[1].device, memory_bytes=least * 2 // 3)
    tight = replace(cluster, parts=(cluster.parts[0], replace(cluster.parts[1], device=small)))
    answer = plan(model, tight, PlanOptions())
    if isinstance(answer, HeterogeneousPlan):
        check(answer)
        assert answer.step_seconds >= free.step_seconds


def test_cuts_of_a_line_are_as_even_as_can_be(model):
    cluster = slow(load_any_cluster("1xh100+2xa100-80"))
    optimizer = plan_cluster(model, cluster.parts[0], PlanOptions()).optimizer
    prices = GroupPrices(model, cluster, optimizer, ("dp",), None)
    kinds, samples = [GroupType(0, 1), GroupType(1, 1), GroupType(1, 1)], 8
    split, calls = LayerSplit(prices, kinds, samples), len(model.calls)
    best = split.slowest(split.fastest_bounds())
    tried = ((0, *inner, calls) for inner in combinations(range(1, calls), 2))
    assert best <= min(split.slowest(b) for b in tried if split.choices(b)) * 1.001


def test_shapes_use_every_device_once():
    cluster = load_any_cluster("3xh100+5xa100-80")
    found = list(shapes(cluster, (2.0, 1.0)))
    assert len(found) == len(set(found)) > 10
    for shape in found:
        for part, one in enumerate(cluster.parts):
            used = sum(kind.width for row in shape for kind in row if kind.part == part)
            assert one.devices - 3 <= used <= one.devices


def test_a_broken_plan_is_told(model):
    answer = plan(model, slow(load_any_cluster("1xh100+1xa100-40")), PlanOptions())
    first, *rest = answer.replicas
    for broken, where in (
        (
            replace(
                answer, replicas=(replace(first, micro_batches=first.micro_batches + 1), *rest)
            ),
            "replicas",
        ),
        (replace(answer, replicas=(first, first)), r"replicas\[1\]|samples"),
        (replace(answer, memory_limit_bytes=10), "memory"),
    ):
        with pytest.raises(FileError, match=where):
            check(broken)


def test_mixed_clusters_from_files(tmp_path):
    file = tmp_path / "mixed.toml"
    file.write_text(
        "[link]\ngb_per_s = 5\nlatency_us = 20\n"
        '[[part]]\nkind = "h100"\n'
        '[[part.level]]\nname = "a"\nsize = 3\ngb_per_s = 300\nlatency_us = 3\n'
        '[[part]]\nkind = "a100-80"\n'
        '[[part.level]]\nname = "b"\nsize = 5\ngb_per_s = 200\nlatency_us = 3\n'
    )
    cluster = load_any_cluster(str(file))
    assert isinstance(cluster, HeterogeneousCluster)
    assert [part.devices for part in cluster.parts] == [3, 5]
    assert cluster.first_ranks == (0, 3)
    assert sub_cluster(cluster.parts[1], 2).devices == 2
    file.write_text(file.read_text().replace("gb_per_s = 5\n", ""))
    with pytest.raises(FileError, match=r"link\.gb_per_s"):
        load_any_cluster(str(file))
