"""Independent validity check of a packing; shares no code with the solvers."""

from __future__ import annotations

from collections.abc import Sequence

from ....ir.plan.allocation import Buffer


def height(buffers: Sequence[Buffer], offsets: Sequence[int]) -> int:
    """Bytes that the arena needs; raises ValueError where two live buffers share an address.

    Sweeps over time and keeps what is live, so it looks only at pairs that meet.
    """
    if len(buffers) != len(offsets):
        raise ValueError(f"{len(buffers)} buffers, {len(offsets)} offsets")
    events = sorted(
        [(b.upper, 0, i) for i, b in enumerate(buffers)]
        + [(b.lower, 1, i) for i, b in enumerate(buffers)]
    )
    live: set[int] = set()
    for _, starts, i in events:
        if not starts:
            live.discard(i)
            continue
        low, high = offsets[i], offsets[i] + buffers[i].size
        if low < 0:
            raise ValueError(f"buffer {buffers[i].name} lies at {low}")
        for j in live:
            if low < offsets[j] + buffers[j].size and offsets[j] < high:
                raise ValueError(f"buffers {buffers[i].name} and {buffers[j].name} overlap")
        live.add(i)
    return max((o + b.size for b, o in zip(buffers, offsets, strict=True)), default=0)
