"""Mixed clusters: mixtures beat every part alone, equal parts are one cluster, memory is kept."""

import random
from itertools import combinations
from math import inf

import pytest
from msgspec.structs import replace

from plait.cost_model.explain.step_terms import step_term
from plait.cost_model.hardware import load_any_cluster
from plait.cost_model.what_if import Conditions, simulate_step
from plait.ir.capture import trace
from plait.ir.devices.mixed import as_uniform, mixed_cluster, sub_cluster
from plait.ir.errors import FileError, UsageError
from plait.ir.plan.verify import verify_plan
from plait.ir.text.plan import parse_plan, print_plan
from plait.planner import PlanOptions, plan
from plait.planner.heterogeneous.group_prices import GroupPrices, GroupType
from plait.planner.heterogeneous.layer_split import LayerSplit
from plait.planner.heterogeneous.search import MixedSearch, SharedPipelines
from plait.planner.heterogeneous.shapes import near_parts, shapes
from plait.planner.question.pins import parse_pin, pin_all
from plait.planner.question.training import optimizer_states
from plait.tests import zoo
from plait.tests.sampling import some


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

    return mixed_cluster(cluster.name, [*map(slower, cluster.parts)], cluster.levels[0])


@pytest.mark.parametrize("spec", some(["1xh100+1xa100-40", "3xh100+5xa100-80"], 2))
def test_a_mixture_beats_every_part_alone_and_all_as_the_slowest(model, spec):
    answer = plan(model, slow(load_any_cluster(spec)), PlanOptions())
    assert answer.groups
    assert answer.fits
    verify_plan(answer)
    step = answer.prediction.step_seconds
    alone = [a for a in answer.alternatives if "alone" in a.name or "slowest" in a.name]
    assert len(alone) == 3
    assert all(step < a.step_seconds for a in alone)
    assert {"DDP", "FSDP", *(f"{part.name} alone" for part in answer.cluster.parts)} <= {
        a.family for a in answer.alternatives
    }
    assert all(sum(s for _, s in a.seconds) == pytest.approx(a.step_seconds) for a in alone)
    assert step_term(answer).value == pytest.approx(step)
    assert simulate_step(answer, Conditions()).step_seconds == pytest.approx(step)
    slowed = simulate_step(answer, Conditions(slow=((0, 3.0),)))
    assert slowed.step_seconds > step
    assert answer.gap < 0.1
    assert parse_plan(print_plan(answer)) == answer


@pytest.mark.long
def test_a_pin_is_the_strategy_of_the_groups_that_have_its_layers(model):
    cluster = slow(load_any_cluster("2xh100+2xa100-80"))
    free = plan(model, cluster, PlanOptions()).prediction.step_seconds
    whole = plan(model, cluster, PlanOptions(pins=pin_all("tp=2")))
    assert {str(s) for s in whole.strategies} == {"tp=2"}
    some = plan(model, cluster, PlanOptions(pins=(parse_pin("transformer.h.[0-1]:tp=2"),)))
    pinned = {call for call, path in enumerate(some.calls) if path in H}
    for layers in some.layers:
        if pinned & {*range(layers.first, layers.last)}:
            assert str(some.strategy_of(layers)) == "tp=2"
    for answer in (whole, some):
        verify_plan(answer)
        assert answer.groups
        assert answer.fits
        assert answer.prediction.step_seconds >= free
    every = plan(model, cluster, PlanOptions(pins=pin_all("dp=2,tp=2")))
    assert not every.groups
    assert str(every.strategies[0]) == "dp=2,tp=2"


H = {"transformer.h.0", "transformer.h.1"}


@pytest.mark.parametrize(
    ("pin", "reason"),
    [
        ("pp=2,dp=1", "stages are the search's"),
        ("dp=3", "the largest part of the cluster has 2"),
        ("nowhere:tp=2", "matches no layer"),
    ],
)
def test_pins_that_no_device_group_can_have_are_refused(model, pin, reason):
    cluster = load_any_cluster("2xh100+2xa100-80")
    with pytest.raises(UsageError, match=reason):
        plan(model, cluster, PlanOptions(pins=(parse_pin(pin),)))


def test_equal_parts_are_one_cluster(model):
    cluster = load_any_cluster("2xh100+2xh100")
    answer = plan(model, cluster, PlanOptions())
    assert not answer.groups
    assert answer.prediction == plan(model, as_uniform(cluster), PlanOptions()).prediction


@pytest.mark.parametrize(
    "spec", some(["1xh100+2xa100-40", "2xh100+2xa100-80", "3xh100+1xa100-40"], 3)
)
def test_bounds_are_below_every_plan(model, spec):
    """However the calls are split and the micro-batches dealt out."""
    draw, search = (
        random.Random(spec),
        MixedSearch(model, slow(load_any_cluster(spec)), PlanOptions()),
    )
    drawn = draw.sample([s for s in search.shapes_by_bound() if s.samples in (4, 8, 32)], 8)
    for bound, shape, samples in drawn:
        floor, used, replicas = search.bound_of_splits(shape, samples), [0, 0], []
        assert bound <= floor * (1 + 1e-9)
        for row in shape:
            inner = draw.sample(range(1, len(model.calls)), len(row) - 1)
            split = LayerSplit(search.group_prices, row, samples)
            bounds = [0, *sorted(inner), len(model.calls)]
            if split.choices(bounds) is None:  # a stage of data alone
                bounds = search.fastest_bounds(row, samples)
            replicas.append(tuple(search.place_stages(split, bounds, used)))
        counts = [1] * len(shape)
        for _ in range(model.batch // samples - len(shape)):
            counts[draw.randrange(len(shape))] += 1
        at_random = SharedPipelines(0.0, tuple(replicas), tuple(counts), samples)
        for made in (search.shared_pipelines(shape, samples), at_random):
            assert floor <= search.plan_of(made).prediction.step_seconds


def test_groups_that_no_strategy_suits_bound_nothing(model, monkeypatch):
    search = MixedSearch(model, load_any_cluster("1xh100+1xa100-40"), PlanOptions())
    monkeypatch.setattr(search.group_prices, "least_seconds", lambda *_: inf)
    assert search.bounds.seconds(((GroupType(0, 1), GroupType(1, 1)),), 8) == inf


def test_memory_of_every_part_is_kept(model):
    cluster = slow(load_any_cluster("1xh100+1xa100-80"))
    free = plan(model, cluster, PlanOptions())
    hurried = plan(model, cluster, PlanOptions(time_limit_seconds=1e-9))
    assert (hurried.fits, hurried.complete) == (True, False)
    least = min(stage.peak_bytes for stage in free.stages)
    small = replace(cluster.parts[1].device, memory_bytes=least * 2 // 3)
    parts = (cluster.parts[0], replace(cluster.parts[1], device=small))
    answer = plan(model, mixed_cluster("tight", parts, cluster.levels[0]), PlanOptions())
    assert answer.fits
    assert answer.prediction.step_seconds >= free.prediction.step_seconds


def test_cuts_of_a_line_are_as_even_as_can_be(model):
    cluster = slow(load_any_cluster("1xh100+2xa100-80"))
    optimizer = optimizer_states(PlanOptions(), 4)
    prices = GroupPrices(model, cluster, optimizer, ("dp",), None)
    kinds, samples = [GroupType(0, 1), GroupType(1, 1), GroupType(1, 1)], 8
    split, calls = LayerSplit(prices, kinds, samples), len(model.calls)
    best = split.slowest(split.fastest_bounds())
    tried = ((0, *inner, calls) for inner in combinations(range(1, calls), 2))
    assert best <= min(split.slowest(b) for b in tried if split.choices(b)) * 1.001


def test_shapes_use_every_device_once():
    cluster = load_any_cluster("3xh100+5xa100-80")
    found = list(shapes(cluster, near_parts(cluster), (2.0, 1.0)))
    assert len(found) == len(set(found)) > 10
    for shape in found:
        for number, part in enumerate(cluster.parts):
            used = sum(kind.width for row in shape for kind in row if kind.part == number)
            assert part.devices - 3 <= used <= part.devices


MIXED = """
[link]
gb_per_s = 5
latency_us = 20
[[part_link]]
parts = [0, 2]
gb_per_s = 1
latency_us = 500
[[part]]
kind = "h100"
zone = "east"
rates = { dollars_per_hour = 2.5, watts = 700, dollars_per_gb_out = 0.02 }
level = [{ size = 3, gb_per_s = 300, latency_us = 3 }]
[[part]]
kind = "a100-80"
level = [{ size = 5, gb_per_s = 200, latency_us = 3 }]
[[part]]
kind = "a100-80"
level = [{ size = 2, gb_per_s = 200, latency_us = 3 }]
"""


def test_mixed_clusters_from_files(tmp_path):
    file = tmp_path / "mixed.toml"
    file.write_text(MIXED)
    cluster = load_any_cluster(str(file))
    assert [part.devices for part in cluster.parts] == [3, 5, 2]
    assert cluster.devices == 10
    assert cluster.first_ranks == (0, 3, 8)
    assert sub_cluster(cluster.parts[1], 2).devices == 2
    assert cluster.link_of_parts(2, 0).bandwidth_bytes_per_second == 1e9
    assert cluster.link_of_parts(1, 0).bandwidth_bytes_per_second == 5e9
    assert cluster.parts[0].zone == "east"
    assert cluster.parts[0].rates.dollars_per_hour == 2.5


@pytest.mark.parametrize(
    ("text", "other", "where"),
    [
        ("gb_per_s = 5\n", "", r"link\.gb_per_s"),
        ("2.5", "-1", "dollars_per_hour"),
        ("watts = 700", "watts = 7, idle_watts = 9", "idle_watts"),
        ("[0, 2]", "[0, 3]", "part_links"),
        ("[0, 2]", "[1, 1]", "part_links"),
    ],
)
def test_wrong_keys_of_a_mixed_cluster_are_named(tmp_path, text, other, where):
    file = tmp_path / "mixed.toml"
    file.write_text(MIXED.replace(text, other, 1))
    with pytest.raises(FileError, match=where):
        load_any_cluster(str(file))
