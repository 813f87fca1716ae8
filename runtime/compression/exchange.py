"""A compressed collective: one bucket's pipeline, its states, and when it compresses.

exchange = CompressedCollective(program, levels, elements)
mean = exchange.all_reduce(flat)               # [elements]
shard = exchange.reduce_scatter(rows)          # [size, columns] to [columns]
rows = exchange.all_gather(shard)              # [columns] to [size, columns]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor
from torch.nn.functional import pad as padded_copy

from ...ir.compression.identity import uncompressed
from ...ir.compression.kernel import CompressionState, KernelPipeline
from ...ir.compression.lower import lower
from ...ir.compression.program import CompressionProgram
from ...ir.errors import MismatchError, UsageError
from ...ir.plan.program import SMALL_BYTES
from ..comm.group_hierarchy import GroupHierarchy
from .backends.codec import Codec
from .backends.reference import ELEMENTS, ReferenceCodec
from .drive import run_exchange
from .select import masked
from .work import ExchangeSteps, StepContext, steps


class BucketOptions(NamedTuple):
    """How a bucket is reduced and when it is compressed.

    `total`: sums instead of means; `warmup`: first steps without compression. Buckets of fewer than
    `small_bytes` are never compressed. `seed` separates the random streams of buckets.
    """

    total: bool = False
    warmup: int = 0
    small_bytes: int = SMALL_BYTES
    seed: int = 0


DEFAULTS = BucketOptions()


class CompressedCollective:
    """The collective of a compression program, over buckets of `elements` of one rank's input.

    `levels` are the groups. Weight programs with a replica start from the argument of `replicate`.
    States move to the device of the first bucket.
    """

    def __init__(
        self,
        program: CompressionProgram,
        levels: GroupHierarchy,
        elements: int,
        options: BucketOptions = DEFAULTS,
        codec: Codec | None = None,
    ) -> None:
        self.program, self.levels, self.elements = program, levels, elements
        self.codec: Codec = codec or ReferenceCodec()
        self.warmup, self.seed, self.step = options.warmup, options.seed, 0
        sizes = levels.inner.size, levels.outer.size
        compressed = lower(program, *sizes, options.total)
        self.plain = _padded_like(compressed, lower(uncompressed(program), *sizes, options.total))
        small = elements * 4 < options.small_bytes
        self.pipeline = self.plain if small else compressed
        self.states: dict[str, Tensor] = {
            state.name: torch.zeros(self.length(state), dtype=ELEMENTS[state.element])
            for state in self.pipeline.states
        }

    @property
    def compresses(self) -> bool:
        """Whether the next step is compressed."""
        return self.pipeline is not self.plain and self.step >= self.warmup

    @property
    def sent_bytes(self) -> int:
        """Bytes that this rank sends in the next step."""
        return self.active_pipeline.sent_bytes(self.elements)

    @property
    def active_pipeline(self) -> KernelPipeline:
        return self.pipeline if self.compresses else self.plain

    def length(self, state: CompressionState) -> int:
        """Elements of a state."""
        return state.chunks * self.pipeline.chunk(self.elements)

    @property
    def columns(self) -> int:
        """Elements of one rank's shard, before padding."""
        gathers = self.program.collective == "all_gather"
        return self.elements if gathers else self.elements // self.levels.all.size

    @property
    def padded_columns(self) -> int:
        return self.pipeline.chunk(self.elements)

    def all_reduce(
        self, flat: Tensor, scores: Tensor | None = None, in_place: bool = False
    ) -> Tensor:
        """The ranks' `flat` (`[elements]`) reduced by the program's rule.

        With `in_place` the result may overwrite `flat`, which saves memory.
        """
        return run_exchange(self.all_reduce_steps(flat, scores, in_place))

    def all_reduce_steps(
        self, flat: Tensor, scores: Tensor | None = None, in_place: bool = False
    ) -> ExchangeSteps:
        """The steps of `all_reduce`."""
        self._prepare("all_reduce", flat)
        value = _fp32(pad(flat, (0, self.active_pipeline.padded(self.elements) - self.elements)))
        copied = value.data_ptr() != flat.data_ptr()
        del flat  # the padded copy replaces it
        target = value if copied or in_place else None
        return (yield from self._run(value, scores, target))[: self.elements]

    def selected(self, flat: Tensor) -> Tensor:
        """`flat` with zeros where the next step does not select; unchanged without a selection."""
        select = self.active_pipeline.select
        if select is None:
            return flat
        padded = pad(flat, (0, self.active_pipeline.padded(self.elements) - self.elements))
        return masked(select, padded, StepContext(self.step, self.seed))[: self.elements]

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        """This rank's row of the reduced `rows` (`[size, columns]`)."""
        return run_exchange(self.reduce_scatter_steps(rows))

    def reduce_scatter_steps(self, rows: Tensor) -> ExchangeSteps:
        """The steps of `reduce_scatter`."""
        self._prepare("reduce_scatter", rows)
        columns = rows.shape[1]
        value = _fp32(
            pad(rows, (0, self.active_pipeline.chunk(self.elements) - columns)).reshape(-1)
        )
        del rows  # the padded copy replaces it
        return (yield from self._run(value))[:columns]

    def all_gather(self, shard: Tensor) -> Tensor:
        """Every rank's `shard` (`[columns]`) as `[size, columns]`.

        Where there is a replica, the result is a view of it: do not write to it.
        """
        return run_exchange(self.all_gather_steps(shard))

    def all_gather_steps(self, shard: Tensor) -> ExchangeSteps:
        """The steps of `all_gather`."""
        self._prepare("all_gather", shard)
        value = _fp32(pad(shard, (0, self.active_pipeline.chunk(self.elements) - self.elements)))
        replica = self.states.get("replica")
        direct = replica is not None and replica.dtype == torch.float32
        gathered = yield from self._run(value, out=replica if direct else None)
        if replica is not None and not direct:
            replica.copy_(gathered)
        return gathered.view(self.levels.all.size, -1)[:, : self.elements]

    def replicate(self, rows: Tensor) -> None:
        """Start from the weights that all ranks have: `[size, columns]`."""
        if "replica" in self.states:
            extra = self.padded_columns - rows.shape[1]
            self.states["replica"].copy_(pad(rows, (0, extra)).reshape(-1))

    def _prepare(self, result: str, bucket: Tensor) -> None:
        """Check that the bucket is one of this collective; bring the states to its device."""
        if self.program.collective != result:
            raise UsageError(f"{self.program.name} is a program for {self.program.collective}")
        if bucket.numel() != self.elements:
            raise MismatchError(f"bucket of {bucket.numel()} elements, expected {self.elements}")
        for name, state in self.states.items():
            self.states[name] = state.to(bucket.device)

    def _run(
        self, value: Tensor, scores: Tensor | None = None, out: Tensor | None = None
    ) -> ExchangeSteps:
        context = StepContext(self.step, self.seed, scores)
        codec = self.codec if self.compresses else self.codec.uncompressed
        exchange_steps = steps(
            self.active_pipeline, codec, self.levels, value, self.states, context, out
        )
        result = yield from exchange_steps
        self.step += 1
        self._clear_padding()
        return result

    def _clear_padding(self) -> None:
        """Padding has no errors: codes without a zero, such as signs, would leave some there."""
        if self.program.collective == "all_reduce" and self.compresses:
            for state in self.pipeline.states:
                value = self.states[state.name]
                start = self.levels.all.index * value.numel() if state.on_reshard == "split" else 0
                value[max(self.elements - start, 0) :] = 0

    def state_dict(self) -> dict[str, Any]:
        """The step and the named states of this rank."""
        return {"step": self.step, **self.states}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load `state_dict` of the same bucket. Raises MismatchError when names or sizes differ."""
        for name, state in self.states.items():
            if name not in saved or saved[name].shape != state.shape:
                raise MismatchError(
                    f"state {name} of {self.program.name} has {state.numel()} elements here, the "
                    f"saved one {'none' if name not in saved else saved[name].numel()}"
                )
        self.step = saved["step"]
        for name, state in self.states.items():
            state.copy_(saved[name])

    def full_state(self, state: CompressionState) -> Tensor:
        """A state in the form of the bucket, without padding: `[elements]` of an all-reduce, else
        `[size, columns]`. All ranks together."""
        value = self.states[state.name]
        if state.on_reshard == "split":
            value = self.levels.all.all_gather(value).reshape(-1)
        if self.program.collective == "all_reduce":
            return value[: self.elements]
        return value.view(-1, self.padded_columns)[:, : self.columns]

    def set_full_state(self, state: CompressionState, full: Tensor) -> None:
        """Set a state from the result of `full_state`, on this or another number of ranks."""
        value = self.states[state.name]
        if self.program.collective == "all_reduce":
            padded = pad(full.reshape(-1), (0, self.pipeline.padded(self.elements) - self.elements))
        else:
            rows = full.reshape(-1, self.columns)
            padded = pad(rows, (0, self.padded_columns - self.columns)).reshape(-1)
        start = self.levels.all.index * value.numel() if state.on_reshard == "split" else 0
        value.copy_(padded[start : start + value.numel()])


def pad(x: Tensor, sides: tuple[int, int]) -> Tensor:
    """`x` itself where nothing is added: a copy costs as much as a codec."""
    return padded_copy(x, sides) if any(sides) else x


def _fp32(x: Tensor) -> Tensor:
    return x.to(torch.float32).contiguous()


def _padded_like(compressed: KernelPipeline, plain: KernelPipeline) -> KernelPipeline:
    """The uncompressed pipeline with the tile of the compressed one, so that states have one length."""
    ratio = compressed.select.ratio if compressed.select else 1
    return replace(plain, tile=compressed.tile * ratio)
