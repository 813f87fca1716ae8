"""Initial values of parameters and buffers, from the user's module.

A tensor that has values is used as it is. One on the meta device, or fake, is initialized by the
module that owns it: its `reset_parameters`, then the root's `_init_weights` (the Hugging Face
convention), run on the CPU under a seed derived from the module's name. So the values depend on the
seed and the name alone, not on the plan, the number of ranks, or what else is initialised.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256

import torch
from torch import Tensor, nn

from ...ir.errors import MismatchError, UsageError
from ...ir.plan.program import ParameterSpec
from ..torch_private import is_fake, set_tensor_tables, tensor_tables


class InitialValues:
    """Full initial tensors by name, those of `weights` instead of the module's. Keeps those of one
    meta-device module at a time."""

    def __init__(
        self, module: nn.Module, seed: int = 0, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        self.module, self.seed = module, seed
        self.loaded: set[str] = set()
        self.tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        self.tensors.update(module.named_buffers(remove_duplicate=False))
        self.initialized: tuple[str, dict[str, Tensor]] = ("", {})
        if weights is not None:
            self.load(weights)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take tensors from weights instead of the module; tied tensors by any of their names.

        Raises MismatchError where one is missing or has another shape; warns of names that the module
        does not have.
        """
        names: dict[int, list[str]] = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            names.setdefault(id(tensor), []).append(name)
        missing = []
        for shared in names.values():
            source = next((weights[name] for name in shared if name in weights), None)
            if source is None:
                missing.append(shared[0])
                continue
            for name in shared:
                self.take(name, source)
        unknown = sorted(set(weights) - {name for shared in names.values() for name in shared})
        if missing:
            hint = f"; they have {unknown[0]}" if unknown else ""
            raise MismatchError(
                f"the weights have no {missing[0]} ({len(missing)} of the module's tensors are not "
                f"there{hint})"
            )
        if unknown:
            warnings.warn(
                f"{len(unknown)} tensors of the weights are none of the module's, {unknown[0]} among "
                "them: they are left out",
                stacklevel=4,
            )

    def take(self, name: str, source: Tensor) -> None:
        known = self.tensors[name]
        if source.shape != known.shape:
            raise MismatchError(
                f"{name} is {list(source.shape)} in the weights and {list(known.shape)} in the module"
            )
        self.tensors[name] = source
        self.loaded.add(name)

    def value(self, name: str, spec: ParameterSpec, dtype: str = "") -> Tensor:
        """The full tensor, of the element type that the program was compiled for, or of another; see
        `stored`."""
        return self.stored(name, spec).to(getattr(torch, dtype or spec.type.dtype))

    def stored(self, name: str, spec: ParameterSpec) -> Tensor:
        """The full tensor, of the element type that it has in the module or in its file.

        Raises MismatchError where the module has no such tensor or another shape.
        """
        if spec.kind == "constant" and spec.values is not None:
            dtype = getattr(torch, spec.type.dtype)
            return torch.tensor(spec.values, dtype=dtype).reshape(spec.type.shape)
        if name not in self.tensors:
            raise MismatchError(
                f"{spec.kind} {name!r} of the program is not in the module "
                f"({type(self.module).__name__}): this program was compiled for another model"
            )
        tensor = self.tensor(name)
        if tuple(tensor.shape) != spec.type.shape:
            raise MismatchError(
                f"{spec.kind} {name!r} is {list(tensor.shape)} in the module and "
                f"{list(spec.type.shape)} in the program: compile the plan again for this model"
            )
        return tensor

    def tensor(self, name: str) -> Tensor:
        """The module's own tensor, initialized first if it has no values yet."""
        tensor = self.tensors[name].detach()
        if not is_fake(tensor):
            return tensor
        owner, _, leaf = name.rpartition(".")
        if not self.initialized[1] or self.initialized[0] != owner:
            self.initialized = (owner, self.make(owner))
        return self.initialized[1][leaf]

    def make(self, owner: str) -> dict[str, Tensor]:
        """All direct tensors of one module, initialised by the module's own code on the CPU."""
        module = self.module.get_submodule(owner)
        shadow = copy.copy(module)
        parameters, buffers = tensor_tables(module)
        set_tensor_tables(
            shadow,
            {
                k: v if v is None else nn.Parameter(_unset(v), requires_grad=v.requires_grad)
                for k, v in parameters.items()
            },
            {k: v if v is None else _unset(v) for k, v in buffers.items()},
        )
        with _seeded(self.seed, owner), torch.no_grad(), torch.device("cpu"):
            reset = getattr(shadow, "reset_parameters", None)
            if callable(reset):
                reset()
            weights = getattr(self.module, "_init_weights", None)
            if callable(weights):
                weights(shadow)
        parameters, buffers = tensor_tables(shadow)
        initialized = {k: v.detach() for k, v in (parameters | buffers).items() if v is not None}
        for leaf, value in initialized.items():
            if _still_unset(value):
                where = f"{owner}.{leaf}" if owner else leaf
                raise UsageError(
                    f"{where} ({type(module).__name__}) has no values (it is on the meta device) "
                    f"and neither reset_parameters nor _init_weights gives it any: build the "
                    f"model on the CPU, or give {type(module).__name__} a reset_parameters"
                )
        return initialized


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
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield
    finally:
        torch.random.set_rng_state(state)
