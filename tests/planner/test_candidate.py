"""Points that are priced: how a batch is shared out, and what different strategies have in common."""

from plait.ir.plan.memory_action import KEEP, RECOMPUTE
from plait.ir.plan.strategy import parse_strategy
from plait.planner.question.candidate import Assignment, CallPoint, Decision, RunPoint


def test_replicas_and_micro_batches_share_the_batch():
    point = RunPoint(parse_strategy("pp=2,dp=2,zero3=4,tp=2"), 64, 4)
    assert point.divides
    assert (point.samples_per_replica, point.samples_per_device) == (8, 2)
    assert not RunPoint(point.strategy, 64, 3).divides


def test_roles_of_batch_axes_do_not_matter_to_a_replica():
    strategies = map(parse_strategy, ("dp=8,tp=2", "dp=2,zero3=4,tp=2"))
    points = [RunPoint(strategy, 64, 4, RECOMPUTE, 2) for strategy in strategies]
    assert points[0].replica == points[1].replica
    assert points[0].replica.call_point() == CallPoint((("tp", 2),), 2, RECOMPUTE)
    assert points[0].replica.call_point(per_step=True).samples == 8


def test_an_assignment_has_a_point_for_each_decision():
    strategy = parse_strategy("dp=4")
    assignment = Assignment(
        (Decision(0, 2, strategy, KEEP), Decision(2, 3, strategy, RECOMPUTE)), 16, 2
    )
    assert assignment.at(2).memory == RECOMPUTE
    assert assignment.first_point == RunPoint(strategy, 16, 2)
    assert assignment.point(assignment.at(2)).memory == RECOMPUTE
    assert Assignment.uniform(assignment.first_point, 3).decisions == (
        Decision(0, 3, strategy, KEEP),
    )
