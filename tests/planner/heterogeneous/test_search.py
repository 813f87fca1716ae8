"""Fleets: mixtures beat every part alone, equal parts are one cluster, no crew is over its memory."""

from itertools import combinations

import pytest
from msgspec.structs import replace

from plait.cost_model.hardware import load_fleet
from plait.ir.capture import trace
from plait.ir.devices.heterogeneous import Fleet, FleetPlan, taken
from plait.ir.errors import FileError
from plait.ir.plan.plan import Plan
from plait.planner import PlanOptions
from plait.planner import plan as plan_cluster
from plait.planner.heterogeneous.group_prices import Crews, Kind
from plait.planner.heterogeneous.judge import check
from plait.planner.heterogeneous.layer_split import Cut
from plait.planner.heterogeneous.pipeline_times import simulated
from plait.planner.heterogeneous.search import plan
from plait.planner.heterogeneous.shapes import shapes
from plait.tests import zoo


@pytest.fixture(scope="module")
def model():
    module, batch = zoo.gpt2(6, batch=64, seq=16)
    return trace(module, batch)


def slow(fleet):
    """The fleet with devices so slow that small models are work for them."""

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

    return replace(fleet, parts=tuple(map(slower, fleet.parts)))


@pytest.mark.parametrize("spec", ["1xh100+1xa100-40", "3xh100+5xa100-80"])
def test_a_mixture_beats_every_part_alone_and_all_as_the_slowest(model, spec):
    made = plan(model, slow(load_fleet(spec)), PlanOptions())
    assert isinstance(made, FleetPlan)
    check(made)
    assert len(made.alone) == 3
    assert all(seconds is None or made.step_seconds < seconds for seconds in made.alone)
    longest = max(simulated(made.fleet, line) for line in made.lines)
    assert made.step_seconds == pytest.approx(longest + made.sync_seconds)
    assert made.bound_seconds <= made.step_seconds


def test_equal_parts_are_one_cluster(model):
    fleet = load_fleet("2xh100+2xh100")
    made = plan(model, fleet, PlanOptions())
    assert isinstance(made, Plan)
    same = fleet.same()
    assert made.prediction == plan_cluster(model, same, PlanOptions()).prediction


def test_memory_of_every_part_is_kept(model):
    fleet = slow(load_fleet("1xh100+1xa100-80"))
    free = plan(model, fleet, PlanOptions())
    least = min(crew.stage.peak_bytes for line in free.lines for crew in line.crews)
    small = replace(fleet.parts[1].device, memory_bytes=least * 2 // 3)
    tight = replace(fleet, parts=(fleet.parts[0], replace(fleet.parts[1], device=small)))
    made = plan(model, tight, PlanOptions())
    if isinstance(made, FleetPlan):
        check(made)
        assert made.step_seconds >= free.step_seconds


def test_cuts_of_a_line_are_as_even_as_can_be(model):
    fleet = slow(load_fleet("1xh100+2xa100-80"))
    optimizer = plan_cluster(model, fleet.parts[0], PlanOptions()).optimizer
    crews = Crews(model, fleet, optimizer, ("dp",), None)
    kinds, samples = [Kind(0, 1), Kind(1, 1), Kind(1, 1)], 8
    cut, calls = Cut(crews, kinds, samples), len(model.calls)
    best = cut.slowest(cut.best())
    tried = ((0, *inner, calls) for inner in combinations(range(1, calls), 2))
    assert best <= min(cut.slowest(b) for b in tried if cut.choices(b)) * 1.001


def test_shapes_use_every_device_once():
    fleet = load_fleet("3xh100+5xa100-80")
    found = list(shapes(fleet, (2.0, 1.0)))
    assert len(found) == len(set(found)) > 10
    for shape in found:
        for part, cluster in enumerate(fleet.parts):
            used = sum(kind.width for row in shape for kind in row if kind.part == part)
            assert cluster.devices - 3 <= used <= cluster.devices


def test_a_broken_plan_is_told(model):
    made = plan(model, slow(load_fleet("1xh100+1xa100-40")), PlanOptions())
    first, *rest = made.lines
    for broken, where in (
        (
            replace(made, lines=(replace(first, micro_batches=first.micro_batches + 1), *rest)),
            "lines",
        ),
        (replace(made, lines=(first, first)), r"lines\[1\]|samples"),
        (replace(made, memory_bytes=10), "memory"),
    ):
        with pytest.raises(FileError, match=where):
            check(broken)


def test_fleets_from_files(tmp_path):
    file = tmp_path / "mixed.toml"
    file.write_text(
        "[link]\ngb_per_s = 5\nlatency_us = 20\n"
        '[[part]]\nkind = "h100"\n'
        '[[part.level]]\nname = "a"\nsize = 3\ngb_per_s = 300\nlatency_us = 3\n'
        '[[part]]\nkind = "a100-80"\n'
        '[[part.level]]\nname = "b"\nsize = 5\ngb_per_s = 200\nlatency_us = 3\n'
    )
    fleet = load_fleet(str(file))
    assert isinstance(fleet, Fleet)
    assert [part.devices for part in fleet.parts] == [3, 5]
    assert fleet.first_ranks == (0, 3)
    assert taken(fleet.parts[1], 2).devices == 2
    file.write_text(file.read_text().replace("gb_per_s = 5\n", ""))
    with pytest.raises(FileError, match=r"link\.gb_per_s"):
        load_fleet(str(file))
