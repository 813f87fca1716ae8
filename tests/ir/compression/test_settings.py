"""Settings in the names of algorithms: what they change, what is refused, and that prices follow."""

import pytest

from plait.cost_model.communication.collective import CommGroup
from plait.cost_model.communication.compressed_collective import price_optimizer
from plait.cost_model.hardware import load_cluster
from plait.ir.compression.lower import lower
from plait.ir.compression.program import ExchangeSchedule
from plait.ir.compression.registry import ALGORITHMS, COMPRESSED_OPTIMIZERS, PROGRAMS, algorithm
from plait.ir.compression.stage import Reduce, Select
from plait.ir.errors import UsageError
from plait.planner.question.options import OPTIMIZERS, PlanOptions

ELEMENTS = 2**22


def ratios(name):
    return [s.ratio for p in algorithm(name).programs for s in p.stages if isinstance(s, Select)]


def test_rates_intervals_and_drops_are_set():
    assert ratios("random-k:rate=1000") == [1000]
    assert ratios("cser:r1=16,r2=256,every=4") == [256, 16]
    assert algorithm("cser:r1=16,r2=256,every=4").schedule.every == 4
    (program,) = algorithm("trimmed-mean:drop=3").programs
    assert [s.drop for s in program.stages if isinstance(s, Reduce)] == [3]


def test_programs_of_variants_have_names():
    for name in ("random-k:rate=1000", "cser:r1=16,every=4", "0/1-adam:doubles=100,most=8"):
        for program in algorithm(name).programs:
            assert PROGRAMS[program.name] == program
            assert program.name.startswith(f"{name}.")
    assert "cser:every=2" in COMPRESSED_OPTIMIZERS
    assert "random-k:rate=9" not in COMPRESSED_OPTIMIZERS
    assert OPTIMIZERS["cser:every=2"] == OPTIMIZERS["cser"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("random-k:rate=1", "rate cannot be 1"),
        ("random-k:rate=a", "not rate=NUMBER"),
        ("random-k:every=2", "no setting 'every'; it has rate"),
        ("sdp4bit:rate=2", "it has none"),
        ("randomk:rate=2", "random-k"),
        ("0/1-adam:every=16,doubles=3,most=8", "most is not above"),
        ("one-bit:zeros=2", "zeros cannot be 2"),
    ],
)
def test_what_is_no_setting_is_refused(name, why):
    with pytest.raises(UsageError, match=why):
        algorithm(name)
    assert name not in ALGORITHMS
    assert f"{name}.gradients" not in PROGRAMS


def test_a_planner_says_which_setting_is_wrong():
    with pytest.raises(UsageError, match="rate cannot be 1"):
        PlanOptions(optimizer="detached:rate=1").check()
    PlanOptions(optimizer="detached:rate=2").check()


def test_a_thousandth_is_a_thousandth_of_the_bytes():
    full = 2 * 3 / 4 * 4 * ELEMENTS
    sent = lower(PROGRAMS["random-k:rate=1000.gradients"], 2, 2).sent_bytes(ELEMENTS)
    assert full / sent == pytest.approx(1000, rel=0.15)  # padded to whole tiles


def test_prices_follow_rates_and_intervals():
    cluster = load_cluster("4x8xa100-80")

    def sent(name):
        return price_optimizer(algorithm(name), ELEMENTS, CommGroup(32, 1), cluster).sent_bytes

    assert sent("local-adaalter:every=16") == pytest.approx(sent("local-adaalter") / 4, rel=0.01)
    assert sent("0/1-adam:every=1,doubles=10,most=16") == pytest.approx(
        sent("0/1-adam") / 4, rel=0.01
    )
    assert sent("cser:r1=64,r2=512") < sent("cser") / 8


def exchanges_as_published(steps, doubles, most):
    """0/1 Adam's counters: an interval of one that doubles after so many steps, and no more."""
    interval, count, at = 1, 0, []
    for step in range(steps):
        if (step + 1) % interval == 0:
            at.append(step)
        count += 1
        if count == doubles:
            count, interval = 0, min(most, 2 * interval)
    return at


def test_intervals_double_as_published():
    schedule = ExchangeSchedule(doubles=32, most=8)
    exchanges = [step for step in range(400) if schedule.exchanges(step)]
    assert exchanges == exchanges_as_published(400, 32, 8)
    assert schedule.rate == 1 / 8
    assert len(exchanges) < 400 / 4
