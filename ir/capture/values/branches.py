"""Answers to code that asks a tensor for its values while a model is recorded.

By rules, where they decide: of constants, of guards against infinities. Whole numbers of the batch that
was given may be constants that every step checks. Other numbers stay tensors, and branches on them are
taken on one side and noted (`explore`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.fx.traceback
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...errors import TraceError
from ..locate import current_line, current_user_line
from ..operators.branch import OPS
from ..replaced.sparse import call_with_sparse, is_sparse, sparse_matrix
from ..torch_private import outside_modes, tree_leaves, tree_map
from .known import SIZED, KnownValues
from .losses import ctc_loss, multi_margin_loss
from .numbers import Number, as_tensors, spans
from .parts import Parts
from .rewritten import Frozen, rewritten
from .scattered import masked_scatter
from .selected import Selections

SHAPED = {"view", "reshape", "expand", "repeat", "narrow", "new_zeros", "new_ones", "unflatten"}
PLACES = {"where", "nonzero", "argwhere"}
WRITE = "__setitem__"
LITERALS = {"tensor": 0, "new_tensor": 1, "as_tensor": 0, WRITE: 2}  # where numbers stand
READS = {"__bool__", "item", "tolist", "__int__", "__float__", "__index__", "numpy"}
NUMBERS = {"item", "tolist", "__int__", "__float__", "__index__"}
EXACT = {"__int__", "__float__", "__index__"}


class Branch(NamedTuple):
    """A question whether a value is true: of a line, numbered in the step, with the side taken.

    `of_mask`: it asks whether a mask is true anywhere.
    """

    line: str
    number: int
    side: bool
    of_mask: bool


class Branches(TorchFunctionMode):
    """Answers the code that asks a recorded tensor for values.

    `sides`: of branches by line; those that no rule decides are added. `flipped`: the number of a
    branch that takes the other side. `answering`: code of the model runs. `converting`: its `int(x)` and
    `float(x)` of what nobody knows are numbers of it, and buffers that no step changes decide.
    """

    def __init__(self, sides: dict[str, bool] | None = None, flipped: int | None = None) -> None:
        super().__init__()
        self.sides, self.flipped = dict(sides or {}), flipped
        self.asked: list[Branch] = []
        self.answering = self.converting = False
        self.known = KnownValues()
        self.selections = Selections(self.known)
        self.parts = Parts(self.selections)
        self.frozen = Frozen()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call, whose operators are noted with the line of the model's code."""
        if not self.answering:
            return func(*args, **(kwargs or {}))
        with torch.fx.traceback.annotate({"line": current_line()}):
            return self.call(func, as_tensors(args), dict(as_tensors(kwargs or {})))

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if any(map(is_sparse, args)):
            return call_with_sparse(name, func, args, kwargs)
        if name in READS and args and isinstance(args[0], Tensor):
            return self.read(name, func, args, kwargs)
        if name == "requires_grad_" and isinstance(args[0], torch.nn.Parameter):
            return self.frozen.change(args[0], *args[1:] or (kwargs.get("requires_grad", True),))
        if name not in ("__get__", "__set__"):
            args, kwargs = self.frozen.detached((args, kwargs))
        if name == "equal":
            return self.equal(*args)
        result = rewritten(func, args, kwargs)
        if result is not None:
            return result
        if name == "sparse_coo_tensor":
            return sparse_matrix(args, kwargs)
        if name == "ctc_loss":
            return ctc_loss(self.selections, args, kwargs)
        if name == "multi_margin_loss":
            return multi_margin_loss(args, kwargs)
        if name == "masked_scatter" and not any(map(self.selections.mask, args)):
            written = masked_scatter(*args, **kwargs)
            return func(*args, **kwargs) if written is None else written
        if name == "masked_select" and self.known.value(args[1]) is None:
            return self.selections.select(*torch.broadcast_tensors(*args))
        if name == "unbind" and (hits := self.selections.in_turn(args)) is not None:
            return [self.constant(n) for n, hit in hits if self.decide(hit)]
        if (parts := self.parts.call(name, args, kwargs)) is not None:
            return parts
        if self.selections.among((args, kwargs)):
            return self.selections.call(name, func, args, kwargs)
        if name in PLACES and self.asks_places(name, args):
            return self.selections.places_of(
                args[0], name == "where" or kwargs.get("as_tuple", False)
            )
        if name in ("__getitem__", WRITE):
            args = (args[0], spans(*args[:2]), *args[2:])
        if name == "__getitem__":
            args = self.indexed(*args)
            if isinstance(args, Tensor):
                return args
        if name in SHAPED:
            args = (args[0], *tree_map(self.told, args[1:]))
        if name in SIZED and self.all_known(args, kwargs) and (name != "where" or len(args) == 1):
            return self.constant(self.known.run(func, args, kwargs))
        if name == WRITE and (exact := literal_in_double(name, args, args[0])) is not None:
            args = (*args[:2], exact.to(args[0].dtype))
        result = func(*args, **kwargs)
        exact = None if name == WRITE else literal_in_double(name, args, result)
        if exact is not None:
            return exact.to(result.dtype)
        if name not in ("__get__", "__set__"):
            self.known.follow(name, func, args, kwargs, result)
            self.selections.note(name, args, kwargs, result)
        return result

    def asks_places(self, name: str, args: Any) -> bool:
        """Whether a call asks where a mask is true, whose values nobody knows."""
        return (name != "where" or len(args) == 1) and self.known.value(args[0]) is None

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
        parts = tuple(self.bounds(p) if isinstance(p, slice) else self.number_of(p) for p in parts)
        index = parts if isinstance(index, tuple) else parts[0]
        scalar = [n for n, p in enumerate(parts) if _is_scalar_index(p)]
        if scalar and all(p is None or isinstance(p, slice | Tensor) for p in parts):
            return _by_scalars(x, parts, scalar)
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

    def number_of(self, part: Any) -> Any:
        """The number that an index of no dimension is, where it is known."""
        whole = isinstance(part, Tensor) and part.dim() == 0 and part.dtype == torch.int64
        value = self.known.value(part) if whole else None
        return part if value is None else int(value)

    def told(self, part: Any) -> Any:
        """A size: the number that it is, or that the batch or a buffer says it is."""
        part = self.number_of(part)
        whole = isinstance(part, Tensor) and part.dim() == 0 and part.dtype == torch.int64
        value = self.known.given(part, current_user_line()) if whole else None
        return part if value is None else int(value)

    def bounds(self, part: slice) -> slice:
        return slice(self.told(part.start), self.told(part.stop), self.told(part.step))

    def read(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """The value that the code asks for; by `func` where nothing says it, which raises."""
        tensor = args[0]
        value = self.known.value(tensor)
        if value is None and self.is_told(name, tensor):
            value = self.known.given(tensor, current_user_line())
        if value is not None:
            with outside_modes():
                return getattr(value, name)(*args[1:], **kwargs)
        if name == "tolist" and tensor.dim() == 1 and tensor.dtype == torch.int64:
            return [Number(n, self) for n in tensor.unbind(0)]
        if name == "numpy":
            raise TraceError(
                f"{current_user_line()}: numpy reads values of tensors which a compiled program cannot "
                "know in advance: use the functions of torch, or compute it outside the model"
            )
        if tensor.numel() != 1 or name not in ("__bool__", "item"):
            return func(*args, **kwargs)
        if name == "__bool__" or tensor.dtype == torch.bool:
            return self.decide(tensor)
        return Number(tensor, self)

    def is_told(self, name: str, tensor: Tensor) -> bool:
        """Whether code that asks like this gets a number of Python: of a buffer, which may change, only
        where nothing else will do."""
        if tensor.dtype == torch.bool or name not in NUMBERS:
            return False
        of_buffer = bool(self.known.buffers.get(id(tensor)))
        return not of_buffer or name in EXACT or (name == "tolist" and tensor.dim() != 1)

    def equal(self, x: Tensor, y: Tensor) -> bool:
        """`torch.equal`: by shapes, by values that are known, else a branch."""
        if x.shape != y.shape:
            return False
        if self.all_known((x, y), {}):
            with outside_modes():
                return torch.equal(self.known.value(x), self.known.value(y))  # type: ignore[arg-type]
        return self.decide((x == y).all())

    def decide(self, tensor: Tensor) -> bool:
        """Whether a tensor of one element is true: by a rule, else the side of this branch."""
        truth = self.known.truth(tensor)
        if truth is not None:
            return truth
        if self.converting and self.known.buffers.get(id(tensor)):
            value = self.known.given(tensor, current_user_line())
            if value is not None:
                with outside_modes():
                    return bool(value)
        line, number = current_user_line(), len(self.asked)
        of_mask = self.selections.asks_any(tensor)
        side = self.sides.setdefault(line, of_mask)
        side = side != (number == self.flipped)
        self.asked.append(Branch(line, number, side, of_mask))
        boolean = tensor if tensor.dtype == torch.bool else tensor != 0
        OPS.branch(boolean.detach().reshape(()), number)
        return side


def literal_in_double(name: str, args: Any, result: Any) -> Tensor | None:
    """Numbers of Python in float64, where those of the tensor that was made of them are rounded: a trace
    that is lifted to float64 has them as they are written."""
    place = LITERALS.get(name, len(args))
    numbers = args[place] if len(args) > place else None
    if (
        numbers is None
        or not result.is_floating_point()
        or any(isinstance(n, Tensor) for n in tree_leaves(numbers))
    ):
        return None
    with outside_modes():
        try:
            exact = torch.tensor(numbers, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            return None  # numbers of numpy, or what else torch takes
        rounded = exact.to(result.dtype).double()
        written = torch.where(exact.isfinite(), exact, rounded)
        return None if torch.equal(rounded.nan_to_num(), written.nan_to_num()) else exact


def _is_scalar_index(part: Any) -> bool:
    """Whether an index is a whole number that nobody knows."""
    whole = isinstance(part, Tensor) and part.dim() == 0
    return whole and part.dtype in (torch.int64, torch.int32)


def _by_scalars(x: Tensor, parts: tuple[Any, ...], scalars: list[int]) -> Tensor:
    """`x[…, i, …]` where i is a tensor of no dimension."""
    axis, places = 0, list[int]()
    for number, part in enumerate(parts):
        if number in scalars:
            x, places = x.index_select(axis, part.reshape(1)), [*places, axis]
        axis += part is not None
    rest = tuple(slice(None) if n in scalars else p for n, p in enumerate(parts))
    before = [sum(p is None for p in parts[:n]) for n in scalars]
    axes = [axis + more for axis, more in zip(places, before, strict=True)]
    return x[rest].squeeze(axes)
