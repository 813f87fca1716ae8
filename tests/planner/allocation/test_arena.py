"""Packings against trying everything, against known perfect ones, and before the judge."""

from itertools import permutations
from random import Random

import pytest
from msgspec.structs import replace

from plait.ir.plan.allocation import Buffer
from plait.planner.allocation.arena import branch, pack
from plait.planner.allocation.arena.constraint import solve_constrained
from plait.planner.allocation.arena.greedy import first_fit, orders
from plait.planner.allocation.arena.judge import height
from plait.planner.allocation.arena.portfolio import Switches
from plait.planner.allocation.arena.sections import sections
from plait.tests.planner.allocation.draw import beyond_live_bytes, guillotine, small

PLAIN = Switches(
    bounded=False, splitting=False, by_failures=False, constrained=False, rules=(branch.LOWEST,)
)
SWITCHES = [
    PLAIN,
    replace(PLAIN, bounded=True),
    replace(PLAIN, splitting=True),
    *(Switches(rules=(rule,), constrained=False) for rule in range(6)),
]


def least_peak(buffers: list[Buffer]) -> int:
    """The least peak: every order, each buffer as low as what came before lets it be."""
    best = sum(b.size for b in buffers)
    for order in permutations(buffers):
        placed: list[tuple[Buffer, int]] = []
        for b in order:
            meets = [(o, o + p.size) for p, o in placed if p.lower < b.upper and b.lower < p.upper]
            at = max((top for _, top in meets), default=0)
            placed.append((b, at))
            if at + b.size >= best:
                break
        else:
            best = max(o + b.size for b, o in placed)
    return best


@pytest.mark.parametrize("start", range(0, 320, 40))
def test_small_problems_reach_the_least_peak(start):
    for seed in range(start, start + 40):
        buffers = small(Random(seed))
        made = pack(buffers, time_limit_seconds=20)
        assert made.status == "optimal"
        assert height(buffers, made.offsets) == made.peak_bytes == least_peak(buffers)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_every_switch_gives_the_same_peak(switches):
    for seed in range(1000, 1040):
        buffers = small(Random(seed), 8)
        usual, other = pack(buffers), pack(buffers, switches=switches)
        assert other.status == usual.status == "optimal"
        assert height(buffers, other.offsets) == usual.peak_bytes


@pytest.mark.parametrize("switches", [Switches(), *SWITCHES], ids=str)
def test_bounds_above_live_bytes_are_proved(switches):
    for buffers in beyond_live_bytes()[: None if switches.bounded else 2]:
        packing = pack(buffers, switches=switches)
        assert packing.status == "optimal"
        assert packing.lower_bound_bytes == sections(buffers).bound() + 1
        assert height(buffers, packing.offsets) == packing.peak_bytes
        assert pack(buffers, packing.peak_bytes - 1, switches=switches).status == "infeasible"


def test_trying_everything_needs_more_than_live_bytes_too():
    buffers = beyond_live_bytes()[0]
    assert least_peak(buffers) == pack(buffers).peak_bytes == sections(buffers).bound() + 1


@pytest.mark.parametrize("seed", range(6))
def test_perfect_packings_are_found(seed):
    random = Random(seed)
    buffers = guillotine(random, 60 + 20 * seed, 200, 10_000)
    made = pack(buffers, 10_000, time_limit_seconds=60)
    assert made.status == "optimal"
    assert height(buffers, made.offsets) == 10_000


def test_constraint_solver_agrees():
    for buffers in [*beyond_live_bytes(), *(small(Random(seed)) for seed in range(2000, 2020))]:
        parts, peak = sections(buffers), pack(buffers).peak_bytes
        hint = first_fit(parts.size, parts.first, parts.last, orders(parts)[0])
        state, offsets = solve_constrained(parts, peak, 1, hint, 10.0)
        assert state == branch.FOUND
        assert height(buffers, offsets.tolist()) <= peak
        assert solve_constrained(parts, peak - 1, 1, hint, 10.0)[0] == branch.NONE


def test_same_input_same_packing():
    buffers = guillotine(Random(9), 80, 100, 1000)
    assert pack(buffers, 1000) == pack(buffers, 1000)


def test_no_time_gives_first_fit_and_says_so():
    buffers = guillotine(Random(11), 150, 200, 10_000)
    made = pack(buffers, 10_000, time_limit_seconds=0.0)
    assert height(buffers, made.offsets) == made.peak_bytes > 10_000
    assert made.status == "unknown"


def test_nothing_and_no_bytes():
    assert pack([]).status == "optimal"
    assert pack([Buffer("a", 0, 1, 0)]).offsets == (0,)


def test_sections_keep_every_meeting_and_the_bound():
    for seed in range(200):
        buffers = small(Random(seed), 9)
        parts = sections(buffers)
        for i, a in enumerate(buffers):
            for j, b in enumerate(buffers):
                meets = a.lower < b.upper and b.lower < a.upper
                assert meets == bool(
                    parts.first[i] < parts.last[j] and parts.first[j] < parts.last[i]
                )
        times = range(max(b.upper for b in buffers))
        live = max(sum(b.size for b in buffers if b.lower <= t < b.upper) for t in times)
        assert parts.bound() == live


@pytest.mark.parametrize("offsets", [(0, 0), (0, 3), (-1, 4), (0,)])
def test_the_judge_refuses(offsets):
    with pytest.raises(ValueError, match=r"buffer|offsets"):
        height([Buffer("a", 0, 4, 4), Buffer("b", 3, 5, 2)], offsets)
