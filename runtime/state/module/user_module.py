"""The user's module beside its program: what it is wrapped in, and trained weights for it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ....ir.errors import MismatchError, UsageError
from ...torch_private import forward_pre_hooks, is_fake

WRAPPERS = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module"}
SHARDED = ("FullyShardedDataParallel", "FSDPModule", "PipelineStage", "DeepSpeedEngine")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile` and DistributedDataParallel, whose work a program does itself.

    Raises UsageError for a module whose parameters another engine has sharded.
    """
    while True:
        names = [kind.__name__ for kind in type(module).__mro__]
        if sharded := next((n for n in names if n in SHARDED), None):
            raise UsageError(
                f"the model is a {sharded}: its parameters are shards already. Give the module as it "
                "was before it was wrapped"
            )
        inner = next((WRAPPERS[n] for n in names if n in WRAPPERS), None)
        if inner is None:
            return module
        module = getattr(module, inner)


class Trained(Protocol):
    """What a module's weights go stale against."""

    steps: int


class StaleWarning:
    """A forward pre-hook that warns, once after every `load_into`, that a program has trained on since.

    Copies of the module, also pickled ones, have hooks that do nothing.
    """

    __slots__ = (
        "loaded_step",
        "module",
        "program",
        "warned",
    )  # no attributes that a trace would take for state

    def __init__(self, program: Trained, module: nn.Module) -> None:
        self.program, self.module = weakref.ref(program), weakref.ref(module)
        hooks = forward_pre_hooks(module)
        for number in [n for n, hook in hooks.items() if isinstance(hook, StaleWarning)]:
            del hooks[number]
        module.register_forward_pre_hook(self)
        self.loaded(program.steps)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, module: nn.Module, *_: Any) -> None:
        look = getattr(self, "program", None)
        program = None if look is None else look()
        if program is None or self.warned or program.steps == self.loaded_step:
            return
        if any(is_fake(parameter) for parameter in module.parameters()):
            return  # it is being traced
        self.warned = True
        warnings.warn(
            f"this {type(module).__name__} has the weights of step {self.loaded_step}, its program "
            f"is at step {program.steps}: program(batch) and program.eval(batch) use the trained "
            "ones, program.load_into(module) copies them",
            stacklevel=3,
        )

    def loaded(self, step: int) -> None:
        """Note that the module has the weights of a step."""
        self.loaded_step, self.warned = step, False


@torch.no_grad()
def fill(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy full tensors into a module by name; tensors on the meta device get memory on the CPU.

    Raises MismatchError for a name or shape that the module does not have.
    """
    tensors = dict(module.state_dict(keep_vars=True))
    wrong = sorted(
        name
        for name in tensors.keys() | values.keys()
        if name not in tensors or name not in values or tensors[name].shape != values[name].shape
    )
    if wrong:
        raise MismatchError(
            f"{wrong[0]} ({len(wrong)} tensors in all) is not the same in the module and the program: "
            "give the module that was parallelized, or one built like it"
        )
    for name, tensor in tensors.items():
        if not is_fake(tensor):
            tensor.copy_(values[name])
    if any(is_fake(tensor) for tensor in tensors.values()):
        module.load_state_dict(dict(values), assign=True)
