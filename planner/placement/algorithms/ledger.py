"""State of a partial placement in constructive algorithms: bytes per device and times of ports.

Bytes follow the `train` rule, an upper bound for every execution: outputs and received copies stay,
and the largest temporary is added. Operators of one unit are reserved together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ....cost_model.compiled import inner
from ....cost_model.placement.arrays import Floats, GraphArrays, Ints, Records, transfer_us
from ....cost_model.placement.simulate import DUPLEX, PARALLEL

UNIT = np.dtype([("device", np.int64), ("bytes", np.float64), ("temporary", np.float64)])


class Ledger(NamedTuple):
    """`used` and `largest` (k) bytes, `arrive` (t, k) times of copies (negative: none), units (u),
    ports (2, k), when operators end (n) and devices are free (k), and the device of each
    operator.
    """

    used: Floats
    largest: Floats
    arrive: Floats
    units: Records
    ports: Floats
    end: Floats
    free: Floats
    device: Ints


def new_ledger(work: GraphArrays) -> Ledger:
    """Ledger of an empty placement."""
    n, k = work.duration_us.shape
    unit_of = work.operators["unit"]
    units = np.zeros(int(unit_of.max()) + 1, UNIT)
    units["device"] = -1
    np.add.at(units["bytes"], unit_of, work.operators["persistent"] + work.operators["output"])
    np.maximum.at(units["temporary"], unit_of, work.operators["temporary"])
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


@inner
def excess(work: GraphArrays, ledger: Ledger, v: int, d: int) -> float:
    """Shortage in bytes if device `d` took operator `v` (negative: free bytes); infinite where the
    unit of `v` is on another device. The inputs of `v` must be placed.
    """
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


@inner
def inputs_ready(
    work: GraphArrays, ledger: Ledger, v: int, d: int, mode: int, commit: bool
) -> float:
    """Time (us) at which the inputs of `v` are on `d`; transfers queue behind those already on
    their ports, separately on the send and the receive side. `commit` records the transfers.
    """
    operators, edges, reads, links = work.operators, work.edges, work.reads, work.links
    out, arrive = ledger.ports[0], ledger.arrive
    inward = ledger.ports[1 if mode == DUPLEX else 0]
    ready, received = 0.0, float(inward[d])
    for i in range(operators[v].read, operators[v].read_after):
        edge = edges[reads[i]]
        home, there = int(ledger.device[edge.source]), float(ledger.end[edge.source])
        if home != d:
            if arrive[edge.tensor, d] >= 0.0:
                there = float(arrive[edge.tensor, d])
            else:
                spent = transfer_us(edge, links, home, d)
                if mode != PARALLEL and spent > 0.0:
                    sent = max(there, float(out[home]))
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


@inner
def place(work: GraphArrays, ledger: Ledger, v: int, d: int, mode: int, now: float) -> float:
    """Place operator `v` on device `d`, not before `now`; returns its end (us)."""
    unit = ledger.units[work.operators[v].unit]
    begin = max(inputs_ready(work, ledger, v, d, mode, True), max(ledger.free[d], now))
    if unit.device < 0:
        unit.device = d
        ledger.used[d] += unit.bytes
        ledger.largest[d] = max(ledger.largest[d], unit.temporary)
    ledger.device[v] = d
    ledger.end[v] = ledger.free[d] = begin + work.duration_us[v, d]
    return ledger.end[v]
