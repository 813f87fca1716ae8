"""First values of parameters and buffers, from the user's module.

A tensor that has values is taken as it is. One on the meta device, or fake, is made by the module
that owns it: its `reset_parameters`, then the root's `_init_weights` (the Hugging Face convention),
run on the CPU under a seed derived from the module's name. So the values depend on the seed and the
name alone, not on the plan, the number of ranks, or what else is initialised.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ...ir.errors import MismatchError, UsageError
from ...ir.program import Held


class Initial:
    """Gives whole tensors by name. Keeps those of one module at a time."""

    def __init__(self, module: nn.Module, seed: int = 0) -> None:
        self.module, self.seed = module, seed
        self.tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        self.tensors.update(module.named_buffers(remove_duplicate=False))
        self.made: tuple[str, dict[str, Tensor]] = ("", {})

    def value(self, name: str, held: Held) -> Tensor:
        """The whole tensor, of the type that the program was compiled for."""
        dtype = getattr(torch, held.type.dtype)
        if held.kind == "constant" and held.values is not None:
            return torch.tensor(held.values, dtype=dtype).reshape(held.type.shape)
        if name not in self.tensors:
            raise MismatchError(
                f"{held.kind} {name!r} of the program is not in the module "
                f"({type(self.module).__name__}): this program was compiled for another model"
            )
        tensor = self.tensor(name)
        if tuple(tensor.shape) != held.type.shape:
            raise MismatchError(
                f"{held.kind} {name!r} is {list(tensor.shape)} in the module and "
                f"{list(held.type.shape)} in the program: compile the plan again for this model"
            )
        return tensor.to(dtype)

    def tensor(self, name: str) -> Tensor:
        """The module's own tensor, made first if it has no values yet."""
        found = self.tensors[name].detach()
        if not is_empty(found):
            return found
        owner, _, leaf = name.rpartition(".")
        if not self.made[1] or self.made[0] != owner:
            self.made = (owner, self.make(owner))
        return self.made[1][leaf]

    def make(self, owner: str) -> dict[str, Tensor]:
        """All direct tensors of one module, initialised by the module's own code on the CPU."""
        module = self.module.get_submodule(owner)
        shadow = copy.copy(module)
        shadow._parameters = {
            k: v if v is None else nn.Parameter(_unset(v), requires_grad=v.requires_grad)
            for k, v in module._parameters.items()
        }
        shadow._buffers = {k: v if v is None else _unset(v) for k, v in module._buffers.items()}
        with _seeded(self.seed, owner), torch.no_grad(), torch.device("cpu"):
            reset = getattr(shadow, "reset_parameters", None)
            if callable(reset):
                reset()
            weights = getattr(self.module, "_init_weights", None)
            if callable(weights):
                weights(shadow)
        made = {
            k: v.detach()
            for k, v in (shadow._parameters | shadow._buffers).items()
            if v is not None
        }
        for leaf, value in made.items():
            if _still_unset(value):
                where = f"{owner}.{leaf}" if owner else leaf
                raise UsageError(
                    f"{where} ({type(module).__name__}) has no values (it is on the meta device) "
                    f"and neither reset_parameters nor _init_weights gives it any: build the "
                    f"model on the CPU, or give {type(module).__name__} a reset_parameters"
                )
        return made


def is_empty(tensor: Tensor) -> bool:
    """Whether a tensor has a shape but no values."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _unset(tensor: Tensor) -> Tensor:
    """A CPU tensor filled with a value that no initialiser leaves."""
    dtype = tensor.dtype
    if dtype.is_floating_point or dtype.is_complex:
        value: float = float("nan")
    else:
        value = 0 if dtype == torch.bool else torch.iinfo(dtype).max
    return torch.full(tuple(tensor.shape), value, dtype=dtype, device="cpu")


def _still_unset(tensor: Tensor) -> bool:
    if tensor.numel() == 0 or tensor.dtype == torch.bool:
        return False
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        return bool(tensor.isnan().any())
    return bool((tensor == torch.iinfo(tensor.dtype).max).any())


@contextmanager
def _seeded(seed: int, name: str) -> Iterator[None]:
    """Torch's CPU generator at a state that depends on seed and name, and put back afterwards."""
    state = torch.random.get_rng_state()
    digest = sha256(f"{seed}:{name}".encode()).digest()
    try:
        torch.random.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield
    finally:
        torch.random.set_rng_state(state)
