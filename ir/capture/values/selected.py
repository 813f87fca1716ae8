"""Rows that a boolean mask selects, as all rows with the mask: what is done to each needs no size.

`x[mask]` and, by `where(mask)`, `x[i, j]` are all rows, of which those outside of the mask are computed
for nothing; sums, means and losses leave them out, and so does writing rows back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import TraceError
from ..locate import current_user_line
from ..torch_private import outside_modes, tree_leaves, tree_map
from .coordinates import Places, read_rows, rows_of_each, write_rows
from .known import KnownValues
from .rows import apart

IGNORED = -100
# reductions that rows of this number do not change
NEUTRAL = {"logsumexp": -inf, "max": -inf, "amax": -inf, "min": inf, "amin": inf}
LOSSES = {
    "binary_cross_entropy_with_logits", "binary_cross_entropy", "mse_loss", "l1_loss",
    "smooth_l1_loss", "huber_loss",
}  # fmt: skip
SAME_VALUES = {"squeeze", "view", "reshape", "flatten", "unsqueeze", "to", "long", "contiguous"}
WRITES = {"index_add", "index_add_", "index_copy", "index_copy_", "index_put", "index_put_"}


@dataclass(frozen=True)
class Selection:
    """What the rows of a tensor are: those along dimensions `dims` of a mask, merged in order.

    `place`: the tensor is the coordinate along this dimension of the mask; with `table`, the
    coordinates along all of them are the columns.
    """

    mask: Tensor
    dims: tuple[int, ...]
    place: int | None = None
    table: bool = False

    @property
    def whole(self) -> bool:
        return len(self.dims) == self.mask.dim()


class RowCall(NamedTuple):
    """The arguments of a call, whose rows are all those of one selection."""

    selection: Selection
    args: Any
    kwargs: Any


class Selections:
    """Selections by the tensor that stands for the rows."""

    def __init__(self, known: KnownValues) -> None:
        self.known = known
        self.selections: dict[int, tuple[Tensor, Selection]] = {}
        self.expressions: dict[int, tuple[Tensor, object]] = {}

    def note(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """Note how integers and booleans are computed, so that equal masks are known to be equal."""
        if isinstance(result, Tensor) and not result.is_floating_point():
            parts = tuple(self.expression(a) for a in (*args, *kwargs.items()))
            self.expressions[id(result)] = result, (name, parts)

    def expression(self, value: Any) -> object:
        if not isinstance(value, Tensor):
            return repr(value)
        return self.expressions.get(id(value), (value, id(value)))[1]

    def asks_any(self, tensor: Tensor) -> bool:
        """Whether a boolean says that a mask is true anywhere."""
        expression = self.expression(tensor)
        if not isinstance(expression, tuple) or not isinstance(expression[0], str):
            return False
        name, parts = expression
        counted = name in ("gt", "__gt__", "ne", "__ne__") and parts[1:] == ("0",)
        total = counted and isinstance(parts[0], tuple) and parts[0][0] == "sum"
        return name == "any" or total

    def selection(self, tensor: Any) -> Selection | None:
        pair = self.selections.get(id(tensor)) if isinstance(tensor, Tensor) else None
        return None if pair is None else pair[1]

    def mask(self, tensor: Any) -> Tensor | None:
        """The mask of rows that are all those of a mask."""
        selection = self.selection(tensor)
        return selection.mask if selection is not None and selection.whole else None

    def among(self, values: Any) -> bool:
        """Whether rows that are selected are among arguments."""
        return bool(self.selections) and any(self.selection(v) for v in tree_leaves(values))

    def marked(self, tensor: Tensor, selection: Selection) -> Tensor:
        self.selections[id(tensor)] = tensor, selection
        return tensor

    def select(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x[mask]`: the same rows, merged, with the mask that counts them."""
        rows = x.reshape(mask.numel(), *x.shape[mask.dim() :]).clone()  # no view, as in torch
        return self.marked(_filled(rows, mask), Selection(mask, tuple(range(mask.dim()))))

    def count_of_each(self, mask: Tensor) -> int | None:
        """How many rows of each sample a mask of the given batch selects, where they are as many."""
        value = self.known.assumed(mask)
        if value is None or mask.dim() < 2:
            return None
        with outside_modes():
            counts = value.flatten(1).sum(1).unique().tolist()
        return counts[0] if len(counts) == 1 else None

    def places(self, mask: Tensor) -> tuple[Tensor, ...]:
        """`where(mask)`: the coordinates of every place along each dimension of the mask."""
        return tuple(
            self.marked(torch.arange(size), Selection(mask, (dim,), dim))
            for dim, size in enumerate(mask.shape)
        )

    def places_of(self, mask: Tensor, apart: bool) -> Tensor | tuple[Tensor, ...]:
        """The places of a mask, `apart` by dimension or as the columns of a table."""
        mask = mask if mask.dtype == torch.bool else mask != 0
        if apart:
            return self.places(mask)
        table = torch.cartesian_prod(*map(torch.arange, mask.shape)).reshape(-1, mask.dim())
        place = 0 if mask.dim() == 1 else None
        return self.marked(table, Selection(mask, tuple(range(mask.dim())), place, True))

    def call(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call on selected rows. Raises TraceError where it does not compute rows apart."""
        if name == "__getitem__" and self.selection(args[0]) is None:
            return self.read(*args)
        if name == "index_select" and self.selection(args[0]) is None and args[1] == 0:
            return self.read(args[0], args[2])
        if name == "__setitem__" and self.selection(args[0]) is None:
            return self.write(*args, add=False)
        if name in WRITES and self.selection(args[0]) is None:
            return self.write_by_name(name, args, kwargs)
        column = self.column(name, args)
        column = self.dealt(name, args) if column is None else column
        if column is not None:
            return column
        selection, args, kwargs = self.aligned(args, kwargs)
        reduced = self.reductions(name, func, selection, args, kwargs)
        if reduced is not None:
            return reduced
        rows = {id(t) for t in tree_leaves((args, kwargs)) if self.selection(t) is not None}
        if not apart(name, func, args, kwargs, rows):
            raise _refused(name)
        result = func(*args, **kwargs)
        if name in SAME_VALUES and (place := self.selection(args[0])) is not None:
            selection = Selection(selection.mask, selection.dims, place.place)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.marked(leaf, selection)
        return result

    def column(self, name: str, args: Any) -> Any:
        """A column of a table of places, or all; None for another call."""
        selection = self.selection(args[0])
        if selection is None or not selection.table:
            return None
        if name == "unbind" and args[1:] in ((1,), (-1,)):
            return self.places(selection.mask)
        whole = name == "__getitem__" and isinstance(args[1], tuple) and len(args[1]) == 2
        if whole and args[1][0] == slice(None) and isinstance(args[1][1], int):
            return self.places(selection.mask)[args[1][1]]
        return None

    def dealt(self, name: str, args: Any) -> Tensor | None:
        """Rows as `[samples, rows of each, …]`, where the mask of the batch that was given has as many
        for each sample, which every step checks; None for another call."""
        selection, sizes = self.selection(args[0]), args[1:]
        sizes = sizes[0] if sizes and isinstance(sizes[0], list | tuple) else sizes
        if name not in ("view", "reshape") or selection is None or not selection.whole:
            return None
        count = self.count_of_each(selection.mask)
        samples = selection.mask.shape[0]
        if (
            count is None
            or len(sizes) < 2
            or tuple(sizes[:2]) not in ((samples, -1), (samples, count))
        ):
            return None
        return rows_of_each(args[0], selection.mask, count).reshape(samples, count, *sizes[2:])

    def in_turn(self, args: Any) -> list[tuple[Tensor, Tensor]] | None:
        """The places of a mask of one dimension, of which a loop takes those that are true one after the
        other: the row of each, and whether it is."""
        selection = self.selection(args[0])
        if selection is None or not selection.table or selection.place is None or args[1:] != (0,):
            return None
        with outside_modes():
            rows = [torch.tensor([number]) for number in range(selection.mask.shape[0])]
        return list(zip(rows, selection.mask.unbind(0), strict=True))

    def aligned(self, args: Any, kwargs: Any) -> RowCall:
        """The selection of a call's rows, which may be along all dimensions of the mask, and the
        arguments with all their rows along these."""
        selections = [
            s for v in tree_leaves((args, kwargs)) if (s := self.selection(v)) is not None
        ]
        first = selections[0]
        if any(self.expression(s.mask) != self.expression(first.mask) for s in selections):
            raise TraceError(
                f"{current_user_line()}: rows that one mask selects meet rows that another one selects"
            )
        if all(s.dims == first.dims for s in selections):
            return RowCall(Selection(first.mask, first.dims), args, kwargs)
        args, kwargs = tree_map(
            lambda v: self.widened(v) if self.selection(v) else v, (args, kwargs)
        )
        return RowCall(Selection(first.mask, tuple(range(first.mask.dim()))), args, kwargs)

    def widened(self, rows: Tensor) -> Tensor:
        """Rows along all dimensions of the mask."""
        selection = self.selection(rows)
        assert selection is not None
        if selection.whole:
            return rows
        places = Places(selection.mask, selection.dims)
        whole = Selection(selection.mask, tuple(range(selection.mask.dim())))
        return self.marked(places.expanded(rows), whole)

    # reads and writes by place

    def read(self, x: Tensor, index: Any) -> Tensor:
        """`x[i, j, …]` where these are coordinates, or other integers of selected rows."""
        parts = index if isinstance(index, tuple) else (index,)
        parts = parts[1:] if parts[0] is None else parts  # `x[None, i]`: read as rows all the same
        chosen = [p for p in parts if self.selection(p) is not None]
        rest = parts[len(chosen) :]
        if any(a is not b for a, b in zip(parts, chosen, strict=False)) or any(
            isinstance(p, Tensor) for p in rest
        ):
            raise _refused("indexing")
        selections = [s for p in chosen if (s := self.selection(p)) is not None]
        if len(chosen) == 1 and chosen[0].dtype == torch.bool:
            raise _refused("indexing by a mask")
        dims = [s.place for s in selections]
        if None in dims or len(set(dims)) < len(dims):
            selection, chosen, _ = self.aligned(tuple(chosen), {})
            rows = x[chosen]
        else:
            selection = Selection(
                selections[0].mask, tuple(sorted(d for d in dims if d is not None))
            )
            rows = read_rows(x, selections[0].mask, tuple(d for d in dims if d is not None))
        rows = rows[(slice(None), *rest)] if rest else rows
        return self.marked(_filled(rows, selection.mask) if selection.whole else rows, selection)

    def write(self, x: Tensor, index: Any, rows: Any, *, add: bool) -> None:
        """`x[i, j, …] = rows` or, with `add`, `+=` by place; `x[mask] = rows`."""
        x.copy_(self.written(x, index, rows, add))

    def written(self, x: Tensor, index: Any, rows: Any, add: bool) -> Tensor:
        parts = index if isinstance(index, tuple | list) else (index,)
        selections = [self.selection(p) for p in parts]
        by_mask = len(parts) == 1 and isinstance(parts[0], Tensor) and parts[0].dtype == torch.bool
        if _is_row_and_column(x, parts, selections):
            return self.written_columns(x, parts, rows, add)
        if by_mask and selections[0] is None:
            mask, dims = parts[0], tuple(range(parts[0].dim()))
        elif any(s is None or s.place is None for s in selections):
            raise _refused("writing")
        else:
            mask = next(s.mask for s in selections if s is not None)
            dims = tuple(s.place for s in selections if s is not None and s.place is not None)
        if self.selection(rows) is not None:
            selection, (rows,), _ = self.aligned((rows,), {})
            if self.expression(selection.mask) != self.expression(mask):
                raise _refused("writing of rows that another mask selects")
            rows = self.widened(rows)
        return write_rows(x, Places(mask, dims), rows, add)

    def written_columns(self, x: Tensor, parts: Any, rows: Any, add: bool) -> Tensor:
        """x [n c] with one column of every row of a mask set to a number, or added to."""
        selection, (_, column, value), _ = self.aligned((*parts, rows), {})
        mask = selection.mask
        place = torch.where(mask, column, 0)[:, None]
        before = x.gather(1, place)[:, 0]
        after = before + value if add else torch.as_tensor(value, dtype=x.dtype)
        return x.scatter(1, place, torch.where(mask, after, before)[:, None])

    def write_by_name(self, name: str, args: Any, kwargs: Any) -> Tensor:
        x = args[0]
        if name.startswith("index_put"):
            index, rows, *flag = args[1:]
            add = bool(flag[0] if flag else kwargs.get("accumulate", False))
        else:
            named = dict(zip(("dim", "index", "source"), args[1:], strict=False)) | kwargs
            if named["dim"] != 0:
                raise _refused(name)
            index, add = named["index"], "add" in name
            rows = named["source"] * named["alpha"] if "alpha" in named else named["source"]
        result = self.written(x, index, rows, add)
        return x.copy_(result) if name.endswith("_") else result

    # sums, means and losses

    def reductions(
        self, name: str, func: Callable[..., Any], selection: Selection, args: Any, kwargs: Any
    ) -> Tensor | None:
        """A sum, mean or loss over the rows; None for another call."""
        if name == "cross_entropy":
            args = tree_map(lambda v: self.widened(v) if self.selection(v) else v, args)
            losses = self.cross_entropy(selection.mask, args, kwargs)
            whole = Selection(selection.mask, tuple(range(selection.mask.dim())))
            return losses if losses.dim() == 0 else self.marked(losses, whole)
        if name in LOSSES and kwargs.get("reduction", "mean") in ("mean", "sum"):
            reduction = kwargs.pop("reduction", "mean")
            losses = self.call(name, func, args, {**kwargs, "reduction": "none"})
            return self.reduced(losses, reduction, None)
        if name in ("mean", "sum", "any", "all"):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if dim in (None, 0, (0,), [0]) and set(kwargs) <= {"dim"}:
                return self.reduced(args[0], name, None if dim is None else 0)
        if name in NEUTRAL and args[0].is_floating_point():
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            flat = args[0].dim() == 1 and dim in (-1, (-1,), [-1])
            everything = dim is None and name in ("max", "min", "amax", "amin")
            if flat or everything or (dim in (0, (0,), [0]) and name not in ("max", "min")):
                return func(self.filled(args[0], NEUTRAL[name]), *args[1:], **kwargs)
        return None

    def filled(self, x: Tensor, number: float) -> Tensor:
        """The rows of the mask, and this number in others."""
        x = self.widened(x)
        selection = self.selection(x)
        assert selection is not None
        return torch.where(selection.mask.reshape(-1, *(1,) * (x.dim() - 1)), x, number)

    def reduced(self, x: Tensor, reduction: str, dim: int | None) -> Tensor:
        """The sum or mean over the rows of the mask, and over all else or not."""
        x = self.widened(x)
        selection = self.selection(x)
        assert selection is not None
        mask = selection.mask
        column = mask.reshape(-1, *(1,) * (x.dim() - 1))
        if reduction in ("any", "all"):
            within = x & column if reduction == "any" else x | ~column
            return getattr(within, reduction)() if dim is None else getattr(within, reduction)(0)
        counted = torch.where(column, x, 0)
        total = counted.sum() if dim is None else counted.sum(0)
        if reduction == "sum":
            return total
        each = x.numel() // max(1, x.shape[0]) if dim is None else 1
        return total / (mask.sum() * each)

    def cross_entropy(self, mask: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Labels of other rows are ignored."""
        logits, labels, *rest = args if len(args) > 1 else (*args, kwargs.pop("target"))
        ignored = kwargs.get("ignore_index", IGNORED)
        labels = torch.where(mask.reshape(-1), labels, ignored)
        return functional.cross_entropy(logits, labels, *rest, **kwargs)


def _is_row_and_column(x: Tensor, parts: Any, selections: list[Selection | None]) -> bool:
    """Whether `x[i, j]` has the rows of a mask of one dimension, and a column of each."""
    if x.dim() != 2 or len(parts) != 2 or None in selections:
        return False
    row, column = (s for s in selections if s is not None)
    rows_of_x = row.whole and row.mask.dim() == 1 and row.mask.shape[0] == x.shape[0]
    return (
        rows_of_x and row.place == 0 and column.place is None and not parts[1].is_floating_point()
    )


def _filled(rows: Tensor, mask: Tensor) -> Tensor:
    """Rows with ones outside of the mask: what is computed there for nothing, say the logarithm of a
    depth that nobody measured, is a number, and its gradient ends here."""
    if not rows.is_floating_point():
        return rows
    return torch.where(mask.reshape(-1, *(1,) * (rows.dim() - 1)), rows, 1)


def _refused(name: str) -> TraceError:
    return TraceError(
        f"{current_user_line()}: {name} of rows that a mask selects: their number is not known in "
        "advance. What is computed for each of them is, and sums, means and losses of them are; else "
        "multiply by the mask, or use torch.where"
    )
