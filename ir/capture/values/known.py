"""Values that are known while a model is recorded: of constants, of guards against infinities.

A tensor made of Python numbers alone is computed beside the recording, so that masks that nobody gave,
positions and sizes have values. Numbers of the training are taken to be finite: the runtime refuses
gradients that are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..torch_private import constant_of, outside_modes, tree_leaves, tree_map

MAXIMUM_ELEMENTS = 1 << 16
MAXIMUM_GIVEN = 256  # whole numbers of an input: lengths and grids, never tokens or labels
# fmt: off
LIKE = {"ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full", "new_tensor"}
UNKNOWN = {
    "empty", "empty_strided", "empty_permuted", "empty_like", "new_empty", "randperm", "multinomial",
    "bernoulli", "normal",
}
# gives a tensor whose size depends on values
SIZED = {"nonzero", "where", "masked_select", "unique", "unique_consecutive", "argwhere"}
FINITE = {"isnan": False, "isinf": False, "isfinite": True, "isposinf": False, "isneginf": False}
NEGATIONS = {"logical_not", "bitwise_not", "__invert__"}
EITHER = {"logical_or", "bitwise_or", "__or__", "__ror__", "__ior__"}
BOTH = {"logical_and", "bitwise_and", "__and__", "__rand__", "__iand__"}
# comparisons of a number in [0, 1) with a bound: what a bound of 0, and one of 1, gives
UNIT: dict[str, tuple[bool, bool]] = {
    "__lt__": (False, True), "lt": (False, True), "__le__": (False, True), "le": (False, True),
    "__gt__": (True, False), "gt": (True, False), "__ge__": (True, False), "ge": (True, False),
}
# fmt: on


class ToldValue(NamedTuple):
    """A tensor that has this value at every step, as code at a line was told."""

    tensor: Tensor
    value: Tensor
    line: str


class KnownValues:
    """Values by tensor: whole ones of constants, and booleans that are equal everywhere."""

    def __init__(self) -> None:
        self.values: dict[int, tuple[Tensor, Tensor]] = {}
        self.truths: dict[int, tuple[Tensor, bool]] = {}
        self.units: dict[int, Tensor] = {}  # random numbers in [0, 1)
        self.of_batch: dict[int, tuple[Tensor, Tensor]] = {}
        self.buffers: dict[int, frozenset[str]] = {}  # that a tensor is computed from
        self.changed: set[str] = set()
        self.untold: frozenset[str] = frozenset()  # buffers whose values are not told
        self.guards: dict[int, ToldValue] = {}

    def value(self, tensor: Any) -> Tensor | None:
        """The value of a constant."""
        pair = self.values.get(id(tensor))
        return None if pair is None else pair[1]

    def take(self, tensor: Tensor, given: Tensor, buffer: str = "") -> None:
        """Note the value of an input of the batch, of which few whole numbers are given, or of a
        `buffer` of few numbers."""
        small = given.numel() <= MAXIMUM_GIVEN and (buffer or not given.is_floating_point())
        value = constant_of(given) if small and not given.is_meta else None
        if value is not None and not given.is_complex() and given.shape == tensor.shape:
            self.of_batch[id(tensor)] = tensor, value.detach().cpu().clone()
            if buffer:
                self.buffers[id(tensor)] = frozenset([buffer])

    def assumed(self, tensor: Any) -> Tensor | None:
        """The value of a constant, or of what is computed from the batch that was given."""
        value, pair = self.value(tensor), self.of_batch.get(id(tensor))
        return value if value is not None or pair is None else pair[1]

    def given(self, tensor: Tensor, line: str) -> Tensor | None:
        """The value that the batch or buffers give to a tensor, which every step is to check."""
        pair = self.of_batch.get(id(tensor))
        if pair is None or self.buffers.get(id(tensor), frozenset()) & self.untold:
            return None
        self.guards.setdefault(id(tensor), ToldValue(*pair, line))
        return pair[1]

    def same(self, tensor: Tensor, other: Tensor) -> Tensor:
        """`tensor`, which has the value of another one."""
        if id(other) in self.of_batch:
            with outside_modes():
                value = self.of_batch[id(other)][1].reshape(tensor.shape)
            self.of_batch[id(tensor)] = tensor, value
            self.buffers[id(tensor)] = self.buffers.get(id(other), frozenset())
        return tensor

    def truth(self, tensor: Any) -> bool | None:
        """Whether a boolean is true, where a rule says so."""
        pair, value = self.truths.get(id(tensor)), self.value(tensor)
        if value is not None and value.numel() == 1:
            with outside_modes():
                return bool(value)
        return None if pair is None else pair[1]

    def note(self, tensor: Tensor, value: Tensor) -> None:
        if value.numel() <= MAXIMUM_ELEMENTS:
            self.values[id(tensor)] = tensor, value

    def follow(
        self, name: str, func: Callable[..., Any], args: Any, kwargs: Any, result: Any
    ) -> None:
        """Note what a call's result is, where its arguments say it."""
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        known = [self.value(t) for t in tensors]
        if _writes(name, kwargs):
            self.changed |= self.buffers.get(id(tensors[0]), frozenset()) if tensors else set()
            self.written(func, args, kwargs, known, tensors)
        elif (
            name in LIKE
            or (not tensors and isinstance(result, Tensor))
            or (tensors and None not in known)
        ):
            if name not in UNKNOWN and not name.startswith("rand"):
                self.computed(func, args, kwargs, result, self.values)
        elif tensors and all(self.assumed(t) is not None for t in tensors) and name not in UNKNOWN:
            self.computed(func, args, kwargs, result, self.of_batch)
        elif isinstance(result, Tensor):
            self.judge(name, args, result)

    def computed(
        self,
        func: Callable[..., Any],
        args: Any,
        kwargs: Any,
        result: Any,
        values_of: dict[int, tuple[Tensor, Tensor]],
    ) -> None:
        """Run a call on the values of its arguments, and note those of its results."""
        leaves = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not leaves or sum(t.numel() for t in leaves) > MAXIMUM_ELEMENTS:
            return
        try:
            values = tree_leaves(self.run(func, args, kwargs))
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return  # what cannot be computed beside the recording has no value
        read = [self.buffers.get(id(t)) for t in tree_leaves((args, kwargs))]
        buffers = frozenset[str]().union(*filter(None, read))
        for tensor, value in zip(leaves, values, strict=False):
            if isinstance(value, Tensor) and value.shape == tensor.shape:
                values_of[id(tensor)] = tensor, value
                if buffers:
                    self.buffers[id(tensor)] = buffers

    def run(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call on real tensors; those without values are empty ones, which only lend their shape."""

        def real(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            value = self.assumed(leaf)
            return torch.zeros(leaf.shape, dtype=leaf.dtype) if value is None else value

        with outside_modes():
            args, kwargs = tree_map(real, (args, kwargs))
            return func(*args, **{k: v for k, v in kwargs.items() if k != "device"})

    def written(
        self,
        func: Callable[..., Any],
        args: Any,
        kwargs: Any,
        known: list[Tensor | None],
        tensors: list[Tensor],
    ) -> None:
        """A write by values that are known changes the value, any other forgets it."""
        if not tensors or known[0] is None:
            return
        if None not in known:
            self.run(func, args, kwargs)
            return
        storage = known[0].untyped_storage().data_ptr()
        self.values = {
            key: pair
            for key, pair in self.values.items()
            if pair[1].untyped_storage().data_ptr() != storage
        }

    def judge(self, name: str, args: Any, result: Tensor) -> None:
        """Follow truths through logic, from guards against infinities and bounds of random numbers."""
        truth: bool | None = None
        truths = [self.truth(a) for a in args if isinstance(a, Tensor)]
        if name in ("rand", "rand_like"):
            self.units[id(result)] = result
        elif name in FINITE and truths and args[0].is_floating_point():
            truth = FINITE[name]
        elif name in ("any", "all", "max", "min") and truths:
            truth = truths[0]
        elif name in NEGATIONS and truths and truths[0] is not None:
            truth = not truths[0]
        elif name in EITHER:
            truth = _joined(truths, True)
        elif name in BOTH:
            truth = _joined(truths, False)
        elif (
            name in UNIT
            and len(args) == 2
            and id(args[0]) in self.units
            and isinstance(args[1], int | float)
        ):
            at_zero, at_one = UNIT[name]
            truth = at_zero if args[1] <= 0 else at_one if args[1] >= 1 else None
        if truth is not None:
            self.truths[id(result)] = result, truth


def _joined(truths: list[bool | None], strong: bool) -> bool | None:
    """Of two truths one is enough where it is `strong`, else both are needed."""
    if strong in truths:
        return strong
    return None if None in truths or len(truths) < 2 else not strong


def _writes(name: str, kwargs: Any) -> bool:
    in_place = name.endswith("_") and not name.startswith("__")
    return in_place or name == "__setitem__" or kwargs.get("out") is not None
