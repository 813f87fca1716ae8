"""Base class of compressed optimizers: flat fp32 buckets of parameters, exchanges, named states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ....ir.compression.program import CompressionAlgorithm, CompressionProgram, Payload
from ....ir.errors import MismatchError, UsageError
from ...comm.group_hierarchy import GroupHierarchy
from ..backends.codec import Codec
from ..exchange import SMALL_BYTES, BucketOptions, CompressedCollective


class FlatBucket:
    """Parameters of one group that are all compressed or all not: flat states, exchanges, steps."""

    def __init__(self, parameters: list[Tensor], compress: bool) -> None:
        self.parameters, self.compress = parameters, compress
        self.sizes = [parameter.numel() for parameter in parameters]
        self.elements = sum(self.sizes)
        self.step = self.seed = 0
        self.values: dict[str, Tensor] = {}
        self.exchanges: dict[str, CompressedCollective] = {}

    def read(self) -> Tensor:
        """The parameters as a flat vector."""
        return _flat(self.parameters)

    def write(self, flat: Tensor) -> None:
        """Set the parameters to a flat vector."""
        for parameter, weights in zip(self.parameters, self.split(flat), strict=True):
            parameter.copy_(weights.view_as(parameter))

    def split(self, flat: Tensor) -> Sequence[Tensor]:
        """The slices of a flat vector, one per parameter."""
        return flat[: self.elements].split(self.sizes)


class FlatOptimizer(torch.optim.Optimizer):
    """Every rank has all weights and its own gradients. After a step, or after the steps between two
    exchanges, the weights are the same on all ranks.

    A parameter group with `compress` False is sent in fp32, and so are tensors smaller than
    `small_bytes` of other groups. Its `seed` separates its random stream, by default its position.
    `scale` times the ranks' gradients has the true gradient as its mean.
    """

    scale = 1

    def __init__(
        self,
        params: Iterable[Any],
        levels: GroupHierarchy,
        algorithm: CompressionAlgorithm,
        defaults: dict[str, Any],
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        super().__init__(params, {**defaults, "compress": True, "seed": None})
        self.levels, self.algorithm, self.codec = levels, algorithm, codec
        self.buckets: list[FlatBucket] = []
        self.groups: list[dict[str, Any]] = []
        for group in self.param_groups:
            for bucket in _buckets(group, small_bytes):
                seed = 2 * len(self.groups) if group["seed"] is None else group["seed"]
                bucket.seed = seed + bucket.compress
                self.begin(group, bucket, bucket.read())
                self.buckets.append(bucket)
                self.groups.append(group)

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        """Create the states and exchanges of a bucket whose weights are `x` (`[elements]`)."""
        raise NotImplementedError

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        """Take one step: update `x` in place from this rank's gradient, both `[elements]`."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, bucket in zip(self.groups, self.buckets, strict=True):
            x = bucket.read()
            gradient = _flat_gradients(bucket.parameters).mul_(self.scale)
            self.advance(group, bucket, x, gradient)
            del gradient
            bucket.step += 1
            bucket.write(x)
        return loss

    def program(self, payload: Payload) -> CompressionProgram:
        """The algorithm's program for a payload. Raises UsageError when it has none."""
        program = self.algorithm.program(payload)
        if program is None:
            raise UsageError(f"{self.algorithm.name} has no program for {payload}")
        return program

    def exchange(
        self, bucket: FlatBucket, name: str, program: CompressionProgram, elements: int
    ) -> CompressedCollective:
        """A collective of a bucket, whose states are saved under `name`."""
        number = 16 * bucket.seed + len(bucket.exchanges)
        small = 0 if bucket.compress else 4 * elements + 1
        bucket.exchanges[name] = CompressedCollective(
            program,
            self.levels,
            elements,
            BucketOptions(small_bytes=small, seed=number),
            self.codec,
        )
        return bucket.exchanges[name]

    def states_loaded(self) -> None:
        """Forget what other states had begun; called on all ranks after states were loaded."""

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all ranks, in fp32."""
        return self.levels.all.all_reduce(x) / self.levels.all.size

    def exact_weights(self, parameter: Tensor) -> Tensor:
        """This rank's weights of one parameter, to evaluate and to save; do not write to them."""
        return parameter.detach()

    def mean_weights(self, parameter: Tensor) -> Tensor:
        """One parameter's weights to evaluate: the mean of all ranks' where they differ."""
        local = self.exact_weights(parameter)
        rows = self.levels.all.all_gather(local.contiguous()).view(-1, *local.shape)
        return local if all(torch.equal(rows[0], row) for row in rows[1:]) else rows.mean(0)

    def state_dict(self) -> dict[str, Any]:
        """This rank's named states, and hyper-parameters."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        parts = [
            {
                "step": bucket.step,
                "values": {name: value.clone() for name, value in bucket.values.items()},
                "exchanges": {name: e.state_dict() for name, e in bucket.exchanges.items()},
            }
            for bucket in self.buckets
        ]
        return {"param_groups": groups, "parts": parts}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load states. Raises MismatchError when they are of other groups or sizes."""
        if len(state_dict["parts"]) != len(self.buckets):
            raise MismatchError(
                f"{len(state_dict['parts'])} sets of parameters saved, {len(self.buckets)} here"
            )
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)
        for bucket, saved_bucket in zip(self.buckets, state_dict["parts"], strict=True):
            bucket.step = saved_bucket["step"]
            for name, exchange in bucket.exchanges.items():
                exchange.load_state_dict(saved_bucket["exchanges"][name])
            for name, value in bucket.values.items():
                if saved_bucket["values"][name].shape != value.shape:
                    raise MismatchError(f"state {name} has another size than the saved one")
                value.copy_(saved_bucket["values"][name])
        self.states_loaded()


def rescale_errors(exchange: CompressedCollective, factor: float) -> None:
    """Multiply the errors that an exchange carries over."""
    for name in ("worker_error", "server_error"):
        if name in exchange.states and factor != 1:
            exchange.states[name] *= factor


def _buckets(group: dict[str, Any], small_bytes: int) -> list[FlatBucket]:
    """Buckets of a group: of its large tensors, if it is compressed, and of all others."""
    large: list[Tensor] = []
    small: list[Tensor] = []
    for parameter in group["params"]:
        long = group["compress"] and 4 * parameter.numel() >= small_bytes
        (large if long else small).append(parameter)
    return [FlatBucket(p, compress) for p, compress in ((large, True), (small, False)) if p]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1).to(torch.float32) for t in tensors])


def _flat_gradients(parameters: Sequence[Tensor]) -> Tensor:
    return _flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
