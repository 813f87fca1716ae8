"""Numbers of whole widths in a module's code, where a rank has a share of them.

Some code says `view(batch, -1, self.num_heads, self.head_dim)`: with heads split over tensor ranks,
`num_heads` must be those of the rank. Which attributes those are is not in the plan: integers of the
modules that own split layers. Dividing the right ones lets every layer compute what it did before the
split; so one after the other, then pairs, are tried until a forward pass says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations

from torch import nn

MOST_TRIED = 24  # forward passes for one kind of module
Check = Callable[[], str | None]  # the first layer that computes something else, if any


def fit_widths(module: nn.Module, split: Sequence[str], degree: int, check: Check) -> str | None:
    """Divide attributes of the modules that own the `split` layers until no layer computes something
    else; returns the first that still does, its attributes as they were."""
    wrong, refused = check(), set[type[nn.Module]]()
    owners = {
        path.rpartition(".")[0]: module.get_submodule(path.rpartition(".")[0]) for path in split
    }
    while wrong is not None:
        near = [m for path, m in owners.items() if path == wrong or path.startswith(f"{wrong}.")]
        kinds = [kind for kind in dict.fromkeys(map(type, near)) if kind not in refused]
        if not kinds:
            return wrong
        of_kind = [m for m in owners.values() if type(m) is kinds[0]]
        later = _fit(of_kind, degree, wrong, check)
        if later == wrong:
            refused.add(kinds[0])
        wrong = later
    return None


def _fit(of_kind: Sequence[nn.Module], degree: int, wrong: str, check: Check) -> str | None:
    """Divide attributes of equal modules until another layer than `wrong` is the first that differs, or
    none; leaves them as they were where no attributes do that."""
    for tried, names in enumerate(_choices(of_kind[0], degree)):
        if tried == MOST_TRIED:
            break
        before = [{name: getattr(m, name) for name in names} for m in of_kind]
        for owner in of_kind:
            for name in names:
                setattr(owner, name, getattr(owner, name) // degree)
        later = check()
        if later != wrong:
            return later
        for owner, values in zip(of_kind, before, strict=True):
            for name, value in values.items():
                setattr(owner, name, value)
    return wrong


def _choices(owner: nn.Module, degree: int) -> Iterator[tuple[str, ...]]:
    """Integers of a module that a degree divides: one of them, then two."""
    names = [
        name
        for name, value in vars(owner).items()
        if type(value) is int and value > 1 and value % degree == 0
    ]
    return chain(combinations(names, 1), combinations(names, 2))
