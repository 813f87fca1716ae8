"""What these optimizers share: one flat fp32 vector per parameter group, exchanges, named states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ....ir.compression.program import Algorithm, Program, Subject
from ....ir.errors import MismatchError, UsageError
from ..backends.codec import Codec
from ..exchange import SMALL_BYTES, Exchange
from ..work import Levels


class Part:
    """Parameters of one group that are all compressed or all not: flat states, exchanges, steps."""

    def __init__(self, parameters: list[Tensor], compress: bool) -> None:
        self.parameters, self.compress = parameters, compress
        self.sizes = [parameter.numel() for parameter in parameters]
        self.elements = sum(self.sizes)
        self.step = self.seed = 0
        self.values: dict[str, Tensor] = {}
        self.exchanges: dict[str, Exchange] = {}

    def split(self, flat: Tensor) -> Sequence[Tensor]:
        """A flat vector's pieces, one per parameter."""
        return flat[: self.elements].split(self.sizes)


class FlatOptimizer(torch.optim.Optimizer):
    """Every rank holds all weights and gives its own gradients; after a step, or after the steps

    between two exchanges, weights are the same on all ranks. A parameter group with `compress` False
    travels in fp32, and so do tensors smaller than `small_bytes` of other groups. Its `seed` tells its
    noise apart, by default its place. `scale` times what the ranks give has the gradient as its mean.
    """

    scale = 1

    def __init__(
        self,
        params: Iterable[Any],
        levels: Levels,
        algorithm: Algorithm,
        defaults: dict[str, Any],
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        super().__init__(params, {**defaults, "compress": True, "seed": None})
        self.levels, self.algorithm, self.codec = levels, algorithm, codec
        self.parts: list[Part] = []
        self.groups: list[dict[str, Any]] = []
        for group in self.param_groups:
            for part in _parts(group, small_bytes):
                seed = 2 * len(self.groups) if group["seed"] is None else group["seed"]
                part.seed = seed + part.compress
                self.begin(group, part, _flat(part.parameters))
                self.parts.append(part)
                self.groups.append(group)

    def begin(self, group: dict[str, Any], part: Part, x: Tensor) -> None:
        """Makes the states and exchanges of a part whose weights are `x` (`[elements]`)."""
        raise NotImplementedError

    def advance(self, group: dict[str, Any], part: Part, x: Tensor, gradient: Tensor) -> None:
        """One step: updates `x` in place from this rank's gradient, both `[elements]`."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, part in zip(self.groups, self.parts, strict=True):
            x = _flat(part.parameters)
            gradient = _flat_gradients(part.parameters).mul_(self.scale)
            self.advance(group, part, x, gradient)
            del gradient
            part.step += 1
            for parameter, piece in zip(part.parameters, part.split(x), strict=True):
                parameter.copy_(piece.view_as(parameter))
        return loss

    def program(self, subject: Subject) -> Program:
        """The algorithm's program for what is exchanged."""
        found = self.algorithm.program(subject)
        if found is None:
            raise UsageError(f"{self.algorithm.name} has no program for {subject}")
        return found

    def exchange(self, part: Part, name: str, program: Program, elements: int) -> Exchange:
        """A collective of a part, whose states are saved under `name`."""
        number = 16 * part.seed + len(part.exchanges)
        small = 0 if part.compress else 4 * elements + 1
        part.exchanges[name] = Exchange(
            program, self.levels, elements, codec=self.codec, small_bytes=small, seed=number
        )
        return part.exchanges[name]

    def mean(self, x: Tensor) -> Tensor:
        """Over all ranks, in fp32."""
        return self.levels.all.all_reduce(x) / self.levels.all.size

    def exact(self, parameter: Tensor) -> Tensor:
        """This rank's weights of one parameter, to evaluate and to save; leave them alone."""
        return parameter.detach()

    def agreed(self, parameter: Tensor) -> Tensor:
        """One parameter's weights to evaluate: the mean of all ranks' where they differ."""
        own = self.exact(parameter)
        rows = self.levels.all.all_gather(own.contiguous()).view(-1, *own.shape)
        return own if all(torch.equal(rows[0], row) for row in rows[1:]) else rows.mean(0)

    def state_dict(self) -> dict[str, Any]:
        """This rank's named states, and hyper-parameters."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        parts = [
            {
                "step": part.step,
                "values": {name: value.clone() for name, value in part.values.items()},
                "exchanges": {name: e.state_dict() for name, e in part.exchanges.items()},
            }
            for part in self.parts
        ]
        return {"param_groups": groups, "parts": parts}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises MismatchError when it is that of other groups or sizes."""
        if len(state_dict["parts"]) != len(self.parts):
            raise MismatchError(
                f"{len(state_dict['parts'])} sets of parameters saved, {len(self.parts)} here"
            )
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)
        for part, kept in zip(self.parts, state_dict["parts"], strict=True):
            part.step = kept["step"]
            for name, exchange in part.exchanges.items():
                exchange.load_state_dict(kept["exchanges"][name])
            for name, value in part.values.items():
                if kept["values"][name].shape != value.shape:
                    raise MismatchError(f"state {name} has another size than the saved one")
                value.copy_(kept["values"][name])


def _parts(group: dict[str, Any], small_bytes: int) -> list[Part]:
    """Large tensors of a group that is compressed, and all others."""
    large: list[Tensor] = []
    small: list[Tensor] = []
    for parameter in group["params"]:
        long = group["compress"] and 4 * parameter.numel() >= small_bytes
        (large if long else small).append(parameter)
    return [Part(p, compress) for p, compress in ((large, True), (small, False)) if p]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1).to(torch.float32) for t in tensors])


def _flat_gradients(parameters: Sequence[Tensor]) -> Tensor:
    return _flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
