"""Labels that another label of the same choice replaces at no more cost, whatever the others do.

Changing one label changes each flow around it by no more than the worst case over the other ends.
When the sum of the worst cases is paid for by the label's own seconds, the label can go (dead-end
elimination); of two that replace each other the later goes.
"""

from __future__ import annotations

import numpy as np

from .labels import Ints
from .moves import Floats
from .network import Flow, Network
from .restrict import restrict


def prune(network: Network, cells: int) -> tuple[Network, list[Ints]]:
    """The network without dominated labels, and per choice the labels that stayed.

    Worst cases are formed for choices that need at most `cells` sums; in larger ones a label is
    only dominated by one with the same layouts everywhere.
    """
    around: list[list[tuple[Flow, int]]] = [[] for _ in network.seconds]
    for flow in network.flows:
        for number, end in enumerate(flow.ends):
            around[end.choice].append((flow, number))
    kept = []
    for choice, seconds in enumerate(network.seconds):
        kept.append(_undominated(network, choice, around[choice], np.arange(len(seconds)), cells))
    return restrict(network, kept), kept


def _undominated(
    network: Network, choice: int, around: list[tuple[Flow, int]], labels: Ints, cells: int
) -> Ints:
    seconds, used = network.seconds[choice][labels], network.bytes[choice][labels]
    sums = sum(len(labels) ** 2 * max(flow.seconds.shape) for flow, _ in around)
    if len(labels) == 1:
        return labels
    if sums > cells:
        return labels[_first_of_equal(seconds, used, [f.ends[n].place[labels] for f, n in around])]
    # worse[x, y]: what taking y in place of x costs at most
    worse = seconds[None, :] - seconds[:, None]
    for flow, number in around:
        worse = worse + _worst(flow, number, labels)
    replaces = (worse <= 0) & (used[None, :] <= used[:, None])
    stays = np.ones(len(labels), dtype=bool)
    for label in reversed(range(len(labels))):
        others = replaces[label] & stays
        others[label] = False
        stays[label] = not others.any()
    return labels[stays]


def _first_of_equal(seconds: Floats, used: Floats, places: list[Ints]) -> Ints:
    """Of labels with the same layouts everywhere, the cheapest."""
    rows = np.stack([*places, used.astype(np.int64)], axis=1)
    order = np.lexsort((seconds, *rows.T))
    ordered = rows[order]
    new = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)]
    return np.sort(order[new])


def _worst(flow: Flow, number: int, labels: Ints) -> Floats:
    """The most that a flow's price grows when one end turns from label x to y: [x, y]."""
    place = flow.ends[number].place[labels]
    if number == 0:
        rows = flow.seconds[place]
        growth = (rows[None, :, :] - rows[:, None, :]).max(axis=2)
        return growth if len(flow.users) == 1 else np.maximum(growth, 0.0) * len(flow.users)
    columns = flow.seconds[:, place]
    if len(flow.users) == 1:
        return (columns[:, None, :] - columns[:, :, None]).max(axis=0)
    # the copy that was made may still be wanted, and the new one must be made
    return np.where(place[:, None] == place[None, :], 0.0, columns.max(axis=0)[None, :])
