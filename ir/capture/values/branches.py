"""Branches on values: taken by rules, and where none says which, by what their two sides are.

A side that only raises is left out, with a warning; a branch whose sides record the same is none. Any
other is refused with its line.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...errors import TraceError
from ..locate import current_user_line, depends_on_data
from ..torch_private import outside_modes, tree_leaves
from .known import SIZED, KnownValues
from .losses import ctc_loss, multi_margin_loss
from .scattered import masked_scatter
from .selected import Selections

MOST_BRANCHES = 12
READS = {"__bool__", "item", "tolist", "__int__", "__float__", "__index__", "numpy"}
Recorded = TypeVar("Recorded")


class Branches(TorchFunctionMode):
    """Answers the code that asks a recorded tensor for values.

    `decided`: sides of branches by line; those that no rule decides are added, with the side False.
    """

    def __init__(self, decided: dict[str, bool]) -> None:
        super().__init__()
        self.decided = decided
        self.known, self.selections = KnownValues(), Selections()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in READS and args and isinstance(args[0], Tensor):
            return self.read(name, func, args, kwargs)
        if name == "ctc_loss":
            return ctc_loss(self.selections, args, kwargs)
        if name == "multi_margin_loss":
            return multi_margin_loss(args, kwargs)
        if name == "masked_scatter" and not any(map(self.selections.mask, args)):
            written = masked_scatter(*args, **kwargs)
            return func(*args, **kwargs) if written is None else written
        if name == "masked_select" and self.known.value(args[1]) is None:
            return self.selections.select(*torch.broadcast_tensors(*args))
        if any(self.selections.mask(a) is not None for a in (*args, *kwargs.values())):
            return self.selections.call(name, func, args, kwargs)
        if name == "__getitem__":
            args = self.indexed(*args)
            if isinstance(args, Tensor):
                return args
        if name in SIZED and self.all_known(args, kwargs) and (name != "where" or len(args) == 1):
            return self.constant(self.known.run(func, args, kwargs))
        result = func(*args, **kwargs)
        if name not in ("__get__", "__set__"):
            self.known.follow(name, func, args, kwargs, result)
            self.selections.note(name, args, kwargs, result)
        return result

    def all_known(self, args: Any, kwargs: Any) -> bool:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        return bool(tensors) and all(self.known.value(t) is not None for t in tensors)

    def constant(self, result: Any) -> Any:
        """Real tensors, which are recorded as constants and have their own values."""
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.known.note(leaf, leaf)
        return result

    def indexed(self, x: Tensor, index: Any) -> Any:
        """The arguments of `x[index]`, where masks that are known are places; or rows of a mask."""
        parts = index if isinstance(index, tuple) else (index,)
        masks = [p for p in parts if isinstance(p, Tensor) and p.dtype == torch.bool and p.dim()]
        if not masks:
            return x, index
        if len(parts) == 1 and self.known.value(masks[0]) is None:
            fits = x.shape[: masks[0].dim()] == masks[0].shape
            return self.selections.select(x, masks[0]) if fits else (x, index)
        places: list[Any] = []
        for part in parts:
            value = self.known.value(part) if part in masks else None
            with outside_modes():
                places += [part] if value is None else value.nonzero(as_tuple=True)
        return x, tuple(places)

    def read(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """The value that the code asks for; by `func` where nothing says it, which raises."""
        tensor = args[0]
        value = self.known.value(tensor)
        if value is not None:
            with outside_modes():
                return getattr(value, name)(*args[1:], **kwargs)
        asked = name == "__bool__" or (name == "item" and tensor.dtype == torch.bool)
        if not asked or tensor.numel() != 1:
            return func(*args, **kwargs)
        truth = self.known.truth(tensor)
        return self.side() if truth is None else truth

    def side(self) -> bool:
        """The side of the branch at this line."""
        line = current_user_line()
        return self.decided.setdefault(line, False)


def explored(
    attempt: Callable[[], Recorded],
    restore: Callable[[], None],
    same: Callable[[Recorded, Recorded], bool],
) -> Recorded:
    """What is recorded where every branch on values is taken by a rule.

    `restore` puts back what an attempt changed. Raises TraceError for a branch that no rule decides.
    """
    decided: dict[str, bool] = {}
    asserted: list[str] = []
    while True:
        try:
            recording = _attempt(attempt, decided)
            break
        except TraceError as error:
            last = next((n for n in reversed(decided) if not decided[n]), None)
            if last is None or not _raised(error) or len(decided) > MOST_BRANCHES:
                raise
            decided = {n: side or n == last for n, side in decided.items()}
            asserted.append(last)
            restore()
    for line in [n for n in decided if n not in asserted]:
        restore()
        other = _other_side(attempt, {**decided, line: True}, recording, same)
        if other == "raises":
            asserted.append(line)
        elif other == "differs":
            raise TraceError(
                f"{line}: the computation depends on values of tensors, and both sides of the branch "
                "compute something: a compiled program cannot know in advance which. Use torch.where, "
                "or compute it outside the model (for layers skipped at random: layerdrop 0)"
            )
    for line in asserted:
        warnings.warn(f"{line}: a check that only raises is no part of the program", stacklevel=2)
    if decided:
        restore()
        recording = _attempt(attempt, decided)
    return recording


def _attempt(attempt: Callable[[], Recorded], decided: dict[str, bool]) -> Recorded:
    with Branches(decided):
        return attempt()


def _other_side(
    attempt: Callable[[], Recorded],
    decided: dict[str, bool],
    recording: Recorded,
    same: Callable[[Recorded, Recorded], bool],
) -> str:
    """What the other side of a branch does: it `raises`, is `same` as what is recorded, or `differs`."""
    try:
        other = _attempt(attempt, decided)
    except TraceError as error:
        return "raises" if _raised(error) else "differs"
    return "same" if same(recording, other) else "differs"


def _raised(error: TraceError) -> bool:
    """Whether the user's code has raised it."""
    cause = error.__cause__
    return cause is not None and not depends_on_data(cause)
