"""Event simulation of a placement: operators without preemption, transfers as early as possible.

A transfer starts when its tensor is ready and its ports are free, first come first served: no ports
(`PARALLEL`), one to send and one to receive per device (`DUPLEX`), or one for both (`HALF_DUPLEX`).
A state holds everything known at one instant, so that a run can be resumed from a copy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...ir.plan.placement import LinkModel
from ..compiled import compiled, inner
from .arrays import Floats, GraphArrays, Ints, Record, Records, sorts_before, transfer_us

PARALLEL, DUPLEX, HALF_DUPLEX = 0, 1, 2
MODES: dict[LinkModel, int] = {"parallel": PARALLEL, "duplex": DUPLEX, "half-duplex": HALF_DUPLEX}
END_EVENT, READY_EVENT = 0, 1

# Inputs still missing, when the last known one is there, the operator whose end or data let this one
# start (or -1), and its times.
TIMES = np.dtype(
    [
        ("waiting", np.int64),
        ("ready", np.float64),
        ("cause", np.int64),
        ("start", np.float64),
        ("end", np.float64),
    ]
)
# A tensor's transfer to a device; `arrive` is negative before it is known.
SLOT = np.dtype([("send", np.float64), ("arrive", np.float64)])
# Operators that could start, operators started, the last of them, whether one runs, whether something
# happened now, and when the ports are free.
LANE = np.dtype(
    [
        ("queued", np.int64),
        ("begun", np.int64),
        ("last", np.int64),
        ("busy", np.int64),
        ("touched", np.int64),
        ("out_us", np.float64),
        ("in_us", np.float64),
    ]
)
EVENT = np.dtype([("when", np.float64), ("code", np.int64)])
# Events in the heap and ever pushed, operators done, and the last instant whose events are done.
CLOCK = np.dtype(
    [("events", np.int64), ("pushed", np.int64), ("done", np.int64), ("now", np.float64)]
)


class SimulationState(NamedTuple):
    """State of a simulation at one instant."""

    times: Records  # n
    slots: Records  # t, k
    lanes: Records  # k
    queue: Ints  # k, n: heaps of operators that could start, by key
    events: Records  # 2 n: a heap
    clock: Records  # 1


class PlacedOperators(NamedTuple):
    """Operators on devices, each device starting the ready one with the least key.

    `strict`: keys are places in the device's order, and it waits for the next one.
    """

    device: Ints  # n
    key: Floats  # n
    strict: bool


class Until(NamedTuple):
    """When a run may stop: at an instant, or once it cannot end by a limit with a tail after it."""

    tail: Floats  # n
    limit: float
    instant: float


def new_state(work: GraphArrays) -> SimulationState:
    """Allocate the state of one simulation."""
    n, k = work.duration_us.shape
    return SimulationState(
        np.zeros(n, TIMES),
        np.zeros((work.tensors, k), SLOT),
        np.zeros(k, LANE),
        np.zeros((k, n), np.int64),
        np.zeros(2 * n, EVENT),
        np.zeros(1, CLOCK),
    )


def new_states(work: GraphArrays, count: int) -> SimulationState:
    """Allocate `count` states of one simulation: each array with their number before its axes."""
    return SimulationState(*(np.stack([array] * count) for array in new_state(work)))


@inner
def state_at(states: SimulationState, number: int) -> SimulationState:
    """One of several states, as views of their arrays."""
    return SimulationState(
        states.times[number],
        states.slots[number],
        states.lanes[number],
        states.queue[number],
        states.events[number],
        states.clock[number],
    )


@compiled
def begin(work: GraphArrays, state: SimulationState) -> None:
    """Set a state to time zero."""
    operators, (times, slots, lanes, _, events, clock) = work.operators, state
    clock[0].events = clock[0].pushed = clock[0].done = 0
    clock[0].now = -1.0
    for d in range(len(lanes)):
        lanes[d].queued = lanes[d].begun = lanes[d].busy = lanes[d].touched = 0
        lanes[d].last = -1
        lanes[d].out_us = lanes[d].in_us = 0.0
        for i in range(len(slots)):
            slots[i, d].arrive = -1.0
    for v in range(len(times)):
        times[v].waiting = operators[v].read_after - operators[v].read
        times[v].ready = 0.0
        times[v].cause = -1
        if times[v].waiting == 0:
            _push_event(events, clock, len(times), 0.0, v, READY_EVENT)


@inner
def copy_state(source: SimulationState, into: SimulationState) -> None:
    """Copy a state; of its heaps only the used parts."""
    for v in range(len(source.times)):
        into.times[v] = source.times[v]
    for d in range(len(source.lanes)):
        into.lanes[d] = source.lanes[d]
        for i in range(source.lanes[d].queued):
            into.queue[d, i] = source.queue[d, i]
    for i in range(len(source.slots)):
        for d in range(len(source.lanes)):
            into.slots[i, d] = source.slots[i, d]
    into.clock[0] = source.clock[0]
    for i in range(source.clock[0].events):
        into.events[i] = source.events[i]


@inner
def run(
    work: GraphArrays, placed: PlacedOperators, mode: int, state: SimulationState, stop: Until
) -> float:
    """Advance a state to the end, or to the first instant not before `stop.instant`.

    Returns the makespan; infinity as soon as an operator that starts cannot end, with its tail after
    it, by the limit; -1 where it stopped at the instant.
    """
    device, key, strict = placed
    tail, limit, until = stop
    operators, edges, duration_us = work.operators, work.edges, work.duration_us
    times, _, lanes, queue, events, clock = state
    while clock[0].events > 0:
        now = events[0].when
        if now >= until:
            return -1.0
        clock[0].now = now
        while clock[0].events > 0 and events[0].when == now:
            code = _pop_event(events, clock) % (2 * len(device))
            v = code // 2
            lanes[device[v]].touched = 1
            if code % 2 == READY_EVENT:
                _push_queue(queue[device[v]], lanes[device[v]], key, v)
            else:
                lanes[device[v]].busy = 0
                clock[0].done += 1
                for e in range(operators[v].first, operators[v].after):
                    _deliver(edges[e], work, device, mode, state)
        for d in range(len(lanes)):
            if lanes[d].touched:
                lanes[d].touched = 0
                if lanes[d].busy == 0 and lanes[d].queued > 0:
                    v = queue[d, 0]
                    if not strict or key[v] == lanes[d].begun:
                        _pop_queue(queue[d], lanes[d], key)
                        end = _start(times, lanes[d], v, now, duration_us[v, d])
                        if end + tail[v] > limit:
                            return np.inf
                        _push_event(events, clock, len(times), end, v, END_EVENT)
    return _makespan(times) if clock[0].done == len(times) else np.inf


@compiled
def run_to_end(
    work: GraphArrays, placed: PlacedOperators, mode: int, state: SimulationState
) -> float:
    """Simulate from time zero; returns the makespan, infinity where devices wait for ever."""
    begin(work, state)
    any_tail = placed.key  # nothing ends after an infinite limit
    return run(work, placed, mode, state, Until(any_tail, np.inf, np.inf))


@inner
def _start(times: Records, lane: Record, v: int, now: float, spent: float) -> float:
    """A device starts an operator; returns its end."""
    if times[v].ready < now:
        times[v].cause = lane.last
    lane.busy, lane.last = 1, v
    lane.begun += 1
    times[v].start, times[v].end = now, now + spent
    return now + spent


@inner
def _deliver(
    edge: Record, work: GraphArrays, device: Ints, mode: int, state: SimulationState
) -> None:
    """Send a finished tensor to the device of one reader, unless already sent, and update the
    reader."""
    times, slots, lanes, _, events, clock = state
    now: float = clock[0].now
    v: int = edge.source
    w: int = edge.target
    home: int = device[v]
    away: int = device[w]
    there = now
    if away != home:
        slot = slots[edge.tensor, away]
        if slot.arrive < 0.0:
            spent = transfer_us(edge, work.links, home, away)
            slot.send = now
            if spent > 0.0 and mode != PARALLEL:
                slot.send = _through_ports(mode, lanes[home], lanes[away], now, spent)
            slot.arrive = slot.send + spent
        there = slot.arrive
    if there >= times[w].ready:
        times[w].ready, times[w].cause = there, v
    times[w].waiting -= 1
    if times[w].waiting == 0:
        _push_event(events, clock, len(times), times[w].ready, w, READY_EVENT)


@inner
def _through_ports(mode: int, sender: Record, receiver: Record, now: float, spent: float) -> float:
    """Start time of a transfer, which occupies its ports until it ends."""
    if mode == DUPLEX:
        first = max(now, sender.out_us, receiver.in_us)
        sender.out_us = receiver.in_us = first + spent
    else:
        first = max(now, sender.out_us, receiver.out_us)
        sender.out_us = receiver.out_us = first + spent
    return first


@inner
def _makespan(times: Records) -> float:
    makespan = 0.0
    for v in range(len(times)):
        makespan = max(makespan, times[v].end)
    return makespan


@inner
def _push_event(
    events: Records, clock: Records, operators: int, when: float, v: int, kind: int
) -> None:
    """Add an event to the heap; events of one instant pop in the order of their pushes."""
    code = clock[0].pushed * 2 * operators + 2 * v + kind
    clock[0].pushed += 1
    at = clock[0].events
    clock[0].events += 1
    while at > 0:
        up = (at - 1) // 2
        if events[up].when <= when:  # what is in the heap was pushed before
            break
        events[at] = events[up]
        at = up
    events[at].when, events[at].code = when, code


@inner
def _pop_event(events: Records, clock: Records) -> int:
    """Pop the first event; its code holds its sequence number, its operator and its kind."""
    first = events[0].code
    clock[0].events -= 1
    count = clock[0].events
    when, code = events[count].when, events[count].code
    at, low = 0, 1
    while low < count:
        if low + 1 < count and _earlier(events[low + 1], events[low].when, events[low].code):
            low += 1
        if not _earlier(events[low], when, code):
            break
        events[at] = events[low]
        at, low = low, 2 * low + 1
    events[at].when, events[at].code = when, code
    return first


@inner
def _earlier(event: Record, when: float, code: int) -> bool:
    return event.when < when or (event.when == when and event.code < code)


@inner
def _push_queue(queue: Ints, lane: Record, key: Floats, v: int) -> None:
    at: int = lane.queued
    lane.queued += 1
    while at > 0:
        up = (at - 1) // 2
        if sorts_before(key, queue[up], v):
            break
        queue[at] = queue[up]
        at = up
    queue[at] = v


@inner
def _pop_queue(queue: Ints, lane: Record, key: Floats) -> None:
    """Pop the first operator of a device's heap."""
    lane.queued -= 1
    count: int = lane.queued
    moved: int = queue[count]
    at, low = 0, 1
    while low < count:
        if low + 1 < count and sorts_before(key, queue[low + 1], queue[low]):
            low += 1
        if sorts_before(key, moved, queue[low]):
            break
        queue[at] = queue[low]
        at, low = low, 2 * low + 1
    queue[at] = moved
