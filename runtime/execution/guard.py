"""What a program has as constants is checked at every step: it must still be what was traced.

Attributes, variables of closures and unregistered tensors of the user's model are constants of a
compiled program. A user who changes one between steps would otherwise train on with the old value.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...ir.capture.python_state.snapshot import CONTAINERS, SCALARS, Leaf, State, is_library, look
from ...ir.capture.torch_private import post_accumulate_hooks, tensor_hooks, write_count
from ...ir.errors import MismatchError

Holder = tuple[Any, Any]  # an object, and the key under which it has another


class _Known(NamedTuple):
    """A constant: where it lies, its value when traced, how to look at it again."""

    path: str
    value: str
    now: Callable[[], str]


class Guard:
    """The constants of a model and its loss function; keeps neither of them alive.

    Paths in `steady` are not looked at: the model's forward changes them itself, and computes the
    same before and after.
    """

    def __init__(
        self, module: nn.Module, loss_fn: Any = None, steady: frozenset[str] = frozenset()
    ) -> None:
        leaves = State(module, loss_fn).leaves
        holders = {id(leaf.value): (leaf.owner, key) for (_, key), leaf in leaves.items()}
        self.known = [
            _known(leaf.path, _living(leaf.owner, holders), partial(_look, key))
            for (_, key), leaf in leaves.items()
            if leaf.path not in steady and _is_constant(leaf)
        ]
        for name, parameter in module.named_parameters():
            path = f"{name}.requires_grad and hooks"
            self.known.append(_known(path, weakref.ref(parameter), _of_parameter))

    def check(self, *, training: bool = True) -> None:
        """Raises MismatchError naming a constant that has changed, with both values.

        The modules' flag `training` may have any value where the program does not train.
        """
        for path, value, now in self.known:
            if now() != value and (training or path.rpartition(".")[2] != "training"):
                raise MismatchError(
                    f"{path} is {now()}; it was {value} when the model was traced, and the program has "
                    "that as a constant. Trace the model again, or make it a buffer that the forward "
                    "changes or a tensor of the batch"
                )


def _is_constant(leaf: Leaf) -> bool:
    owner = leaf.owner
    own = isinstance(owner, (nn.Module, *CONTAINERS, FunctionType)) or not is_library(type(owner))
    return own and isinstance(leaf.value, (*SCALARS, Tensor))


def _look(key: Any, owner: Any) -> Any:
    return look(owner, key)


def _living(owner: Any, holders: dict[int, Holder]) -> Callable[[], Any]:
    """A holder of constants, or None once nothing else keeps it alive: containers, which have no weak
    references, are reached through what holds them."""
    try:
        return weakref.ref(owner)
    except TypeError:
        pass
    above, key = holders.get(id(owner), (None, None))
    if above is None or look(above, key) is not owner:
        return lambda: owner
    kind, upper = type(owner), _living(above, holders)

    def now() -> Any:
        holder = upper()
        living = None if holder is None else look(holder, key)
        return living if holder is None or type(living) is kind else {}  # replaced: holds nothing

    return now


def _known(path: str, living: Callable[[], Any], read: Callable[[Any], Any]) -> _Known:
    value = text(read(living()))

    def now() -> str:
        owner = living()
        return value if owner is None else text(read(owner))

    return _Known(path, value, now)


def _of_parameter(parameter: Tensor) -> str:
    hooks = len(tensor_hooks(parameter)) + len(post_accumulate_hooks(parameter))
    return f"{parameter.requires_grad} and {hooks}"


def text(value: Any) -> str:
    """A constant for people and for comparison: an unregistered tensor by its version."""
    if isinstance(value, Tensor):
        return f"tensor {id(value):#x} after {write_count(value)} writes"
    return repr(value) if isinstance(value, SCALARS) else f"a {type(value).__name__}"
