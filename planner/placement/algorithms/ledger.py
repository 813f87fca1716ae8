"""What constructive algorithms keep while they place: bytes per device, and when links are free.

The bytes are those of the `train` rule, which no execution exceeds: outputs and received copies stay,
the largest temporary comes on top. Operators of one unit are reserved together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ....cost_model.placement.arrays import Floats, Ints, Records, Work, transfer_us
from ....cost_model.placement.simulate import DUPLEX, PARALLEL

UNIT = np.dtype([("device", np.int64), ("bytes", np.float64), ("temporary", np.float64)])


class Ledger(NamedTuple):
    """`used` and `largest` (k) bytes, `arrive` (t, k) times of copies (negative: none), units (u),
    ports (2, k), when operators end (n) and devices are free (k), and the device of each operator."""

    used: Floats
    largest: Floats
    arrive: Floats
    units: Records
    ports: Floats
    end: Floats
    free: Floats
    device: Ints


def new_ledger(work: Work) -> Ledger:
    """Nothing placed yet."""
    n, k = work.duration_us.shape
    own = work.operators["unit"]
    units = np.zeros(int(own.max()) + 1, UNIT)
    units["device"] = -1
    np.add.at(units["bytes"], own, work.operators["persistent"] + work.operators["output"])
    np.maximum.at(units["temporary"], own, work.operators["temporary"])
    return Ledger(
        np.zeros(k),
        np.zeros(k),
        np.full((work.tensors, k), -1.0),
        units,
        np.zeros((2, k)),
        np.zeros(n),
        np.zeros(k),
        np.full(n, -1, np.int64),
    )


@njit(cache=True)
def excess(work, ledger, v, d):
    """Bytes that device `d` would lack if it took operator `v`, negative where some are left; infinity
    where the unit of `v` is elsewhere. The inputs of `v` must be placed."""
    operators, edges, reads = work.operators, work.edges, work.reads
    unit = ledger.units[operators[v].unit]
    if unit.device >= 0 and unit.device != d:
        return np.inf
    need = ledger.used[d]
    top = ledger.largest[d]
    if unit.device < 0:
        need += unit.bytes
        top = max(top, unit.temporary)
    for i in range(operators[v].read, operators[v].read_after):
        edge = edges[reads[i]]
        if ledger.device[edge.source] != d and ledger.arrive[edge.tensor, d] < 0.0:
            need += edge.bytes
    return need + top - work.capacity[d]


@njit(cache=True)
def inputs_ready(work, ledger, v, d, mode, commit):
    """When the inputs of `v` are on `d`, transfers queueing behind those already on their ports;
    `commit` makes the transfers so. The send and the receive side each wait for their own port."""
    operators, edges, reads, links = work.operators, work.edges, work.reads, work.links
    out, arrive = ledger.ports[0], ledger.arrive
    inward = ledger.ports[1 if mode == DUPLEX else 0]
    ready, received = 0.0, inward[d]
    for i in range(operators[v].read, operators[v].read_after):
        edge = edges[reads[i]]
        home, there = ledger.device[edge.source], ledger.end[edge.source]
        if home != d:
            if arrive[edge.tensor, d] >= 0.0:
                there = arrive[edge.tensor, d]
            else:
                spent = transfer_us(edge, links, home, d)
                if mode != PARALLEL and spent > 0.0:
                    sent = max(there, out[home])
                    there = max(sent, received)
                    received = there + spent
                    if commit:
                        out[home] = sent + spent
                        inward[d] = received
                there += spent
                if commit:
                    arrive[edge.tensor, d] = there
                    ledger.used[d] += edge.bytes
        ready = max(ready, there)
    return ready


@njit(cache=True)
def place(work, ledger, v, d, mode, now):
    """Put operator `v` on device `d`, not before `now`; returns its end."""
    unit = ledger.units[work.operators[v].unit]
    begin = max(inputs_ready(work, ledger, v, d, mode, True), max(ledger.free[d], now))
    if unit.device < 0:
        unit.device = d
        ledger.used[d] += unit.bytes
        ledger.largest[d] = max(ledger.largest[d], unit.temporary)
    ledger.device[v] = d
    ledger.end[v] = ledger.free[d] = begin + work.duration_us[v, d]
    return ledger.end[v]
