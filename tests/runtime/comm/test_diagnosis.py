"""From what ranks say of themselves it follows who is missing, and who waits for whom."""

from plait.runtime.comm.diagnosis import diagnose, stragglers, waits
from plait.runtime.comm.flight_recorder import CAPACITY, FlightRecorder, RankState

ALL = "all ranks 0,1,2,3"


def recorder(rank: int, *done: str, inside: str = "", ranks=(0, 1, 2, 3)) -> RankState:
    one = FlightRecorder(rank)
    for channel in done:
        one.finish(one.begin(f"sum over {channel}", channel, ranks))
    if inside:
        one.begin(f"sum over {inside}", inside, ranks)
    return one.state()


def test_the_rank_that_others_wait_for_is_missing() -> None:
    waiting = {rank: recorder(rank, ALL, inside=ALL) for rank in (0, 1, 3)}
    states = waiting | {2: recorder(2, ALL)}
    diagnosis = diagnose(states, (), states[2].last.end + 40)
    assert diagnosis.missing == (2,)
    assert not diagnosis.hopeless  # it is alive
    assert diagnose(states, {2}, 0.0).hopeless
    assert "rank 2 is missing: it was at step 0, outside collectives for 40 s" in diagnosis.text
    assert "after sum over all ranks 0,1,2,3 (collective 1)" in diagnosis.text
    assert [(w.rank, w.awaited) for w in waits(states)] == [(0, (2,)), (1, (2,)), (3, (2,))]


def test_waits_are_followed_to_their_end() -> None:
    """0 and 1 wait for 2 and 3, which wait for each other's pair, of which 3 is stopped."""
    states = {
        0: recorder(0, inside=ALL),
        1: recorder(1, inside=ALL),
        2: recorder(2, inside="tp 2,3", ranks=(2, 3)),
        3: recorder(3, inside="tp 2,3", ranks=(2, 3)),
    }
    report = diagnose(states, {3}, states[3].time + 50)
    assert report.missing == (3,)
    assert (
        "rank 3 is missing: no sign of life for 50 s; it was at step 0, in sum over tp"
        in report.text
    )


def test_ranks_that_never_came_and_ranks_in_a_circle() -> None:
    alone = {0: recorder(0, inside=ALL), 1: recorder(1, inside=ALL), 2: recorder(2, inside=ALL)}
    assert "rank 3 is missing: it never came" in diagnose(alone, {3}, 0.0).text
    circle = {
        0: recorder(0, inside="dp 0,1", ranks=(0, 1)),
        1: recorder(1, inside="tp 0,1", ranks=(0, 1)),
    }
    diagnosis = diagnose(circle, (), 0.0)
    text = diagnosis.text
    assert diagnosis.hopeless
    assert "ranks wait for each other: rank 0 is in sum over dp 0,1" in text
    assert "rank 1 is in sum over tp" in text


def test_a_rank_that_works_longer_is_a_straggler() -> None:
    states = [RankState(r, 1, 0.0, 5, step_seconds=1.0, busy_seconds=0.2) for r in range(3)]
    slow = RankState(3, 1, 0.0, 5, step_seconds=1.0, busy_seconds=0.9)
    (line,) = stragglers([*states, slow])
    assert line.startswith("rank 3 works 0.9 s of a step of 1 s, 4.50 times the median")
    assert stragglers(states) == []


def test_a_recorder_keeps_the_last_collectives() -> None:
    one = FlightRecorder(0)
    for _ in range(CAPACITY + 5):
        one.finish(one.begin("sum", ALL, (0, 1)))
    assert [one.records[0].number, one.records[-1].number] == [6, CAPACITY + 5]
    assert (one.state().counts, one.state().running) == ({ALL: CAPACITY + 5}, ())
