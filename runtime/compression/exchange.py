"""A compressed collective: one bucket's pipeline, its states, and when it compresses.

exchange = Exchange(program, levels, elements, codec=codec)
mean = exchange.all_reduce(flat)               # [elements]
piece = exchange.reduce_scatter(rows)          # [size, columns] to [columns]
rows = exchange.all_gather(piece)              # [columns] to [size, columns]
"""

from __future__ import annotations

from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor
from torch.nn.functional import pad as padded_copy

from ...ir.compression.identity import uncompressed
from ...ir.compression.kernel import Pipeline, State
from ...ir.compression.lower import lower
from ...ir.compression.program import Program
from ...ir.errors import MismatchError, UsageError
from ...ir.program import SMALL_BYTES
from .backends.codec import Codec
from .backends.reference import ELEMENTS, Reference
from .drive import drive
from .select import masked
from .work import Levels, Occasion, Work, steps


class Exchange:
    """The collective that a program stands for, over buckets of `elements` of one rank's input.

    `levels` gives the groups; `total`: means become sums; `warmup`: first steps without compression.
    Buckets of fewer than `small_bytes` never are compressed. `seed` tells buckets apart. Weight
    programs with a replica start from what `replicate` is given.
    """

    def __init__(
        self,
        program: Program,
        levels: Levels,
        elements: int,
        *,
        codec: Codec | None = None,
        total: bool = False,
        warmup: int = 0,
        small_bytes: int = SMALL_BYTES,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.program, self.levels, self.elements = program, levels, elements
        self.codec: Codec = codec or Reference()
        self.warmup, self.seed, self.step = warmup, seed, 0
        sizes = levels.inner.size, levels.outer.size
        compressed = lower(program, *sizes, total)
        self.plain = _padded_like(compressed, lower(uncompressed(program), *sizes, total))
        small = elements * 4 < small_bytes
        self.pipeline = self.plain if small else compressed
        self.states: dict[str, Tensor] = {
            state.name: torch.zeros(
                self.length(state), dtype=ELEMENTS[state.element], device=device
            )
            for state in self.pipeline.states
        }

    @property
    def compresses(self) -> bool:
        """Whether the next step does."""
        return self.pipeline is not self.plain and self.step >= self.warmup

    @property
    def sent_bytes(self) -> int:
        """What this rank puts on the wire in the next step."""
        return self.now.sent_bytes(self.elements)

    @property
    def now(self) -> Pipeline:
        return self.pipeline if self.compresses else self.plain

    def length(self, state: State) -> int:
        """Elements of a state."""
        return state.chunks * self.pipeline.chunk(self.elements)

    @property
    def columns(self) -> int:
        """Elements of one rank's piece, before padding."""
        gathers = self.program.result == "all_gather"
        return self.elements if gathers else self.elements // self.levels.all.size

    @property
    def padded_columns(self) -> int:
        return self.pipeline.chunk(self.elements)

    def all_reduce(
        self, flat: Tensor, scores: Tensor | None = None, in_place: bool = False
    ) -> Tensor:
        """The ranks' `flat` (`[elements]`) reduced by the program's rule.

        With `in_place` the result may take the place of `flat`, which saves new memory.
        """
        return drive(self.reducing(flat, scores, in_place))

    def reducing(self, flat: Tensor, scores: Tensor | None = None, in_place: bool = False) -> Work:
        """The steps of `all_reduce`."""
        self._expect("all_reduce", flat.numel())
        value = _fp32(pad(flat, (0, self.now.padded(self.elements) - self.elements)))
        own = value.data_ptr() != flat.data_ptr()
        del flat  # of what is padded there is a copy
        target = value if own or in_place else None
        return (yield from self._run(value, scores, target))[: self.elements]

    def selected(self, flat: Tensor) -> Tensor:
        """What the next step takes of `flat`: zero elsewhere, `flat` itself without a selection."""
        select = self.now.select
        if select is None:
            return flat
        padded = pad(flat, (0, self.now.padded(self.elements) - self.elements))
        return masked(select, padded, Occasion(self.step, self.seed))[: self.elements]

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        """This rank's row of the reduced `rows` (`[size, columns]`)."""
        return drive(self.scattering(rows))

    def scattering(self, rows: Tensor) -> Work:
        """The steps of `reduce_scatter`."""
        self._expect("reduce_scatter", rows.numel())
        columns = rows.shape[1]
        value = _fp32(pad(rows, (0, self.now.chunk(self.elements) - columns)).reshape(-1))
        del rows  # of what is padded there is a copy
        return (yield from self._run(value))[:columns]

    def all_gather(self, piece: Tensor) -> Tensor:
        """Every rank's `piece` (`[columns]`) as `[size, columns]`.

        Where there is a replica, it is the replica: read it, and leave it alone.
        """
        return drive(self.gathering(piece))

    def gathering(self, piece: Tensor) -> Work:
        """The steps of `all_gather`."""
        self._expect("all_gather", piece.numel())
        value = _fp32(pad(piece, (0, self.now.chunk(self.elements) - self.elements)))
        replica = self.states.get("replica")
        direct = replica is not None and replica.dtype == torch.float32
        whole = yield from self._run(value, out=replica if direct else None)
        if replica is not None and not direct:
            replica.copy_(whole)
        return whole.view(self.levels.all.size, -1)[:, : self.elements]

    def replicate(self, rows: Tensor) -> None:
        """Start from the weights that all ranks have: `[size, columns]`."""
        if "replica" in self.states:
            extra = self.padded_columns - rows.shape[1]
            self.states["replica"].copy_(pad(rows, (0, extra)).reshape(-1))

    def _expect(self, result: str, elements: int) -> None:
        if self.program.result != result:
            raise UsageError(f"{self.program.name} is a program for {self.program.result}")
        if elements != self.elements:
            raise MismatchError(f"bucket of {elements} elements, expected {self.elements}")

    def _run(self, value: Tensor, scores: Tensor | None = None, out: Tensor | None = None) -> Work:
        occasion = Occasion(self.step, self.seed, scores)
        codec = self.codec if self.compresses else Reference()
        made = steps(self.now, codec, self.levels, value, self.states, occasion, out)
        result = yield from made
        self.step += 1
        self._clear_padding()
        return result

    def _clear_padding(self) -> None:
        """Padding has no errors: codes without a zero, such as signs, would leave some there."""
        if self.program.result == "all_reduce" and self.compresses:
            for state in self.pipeline.states:
                value = self.states[state.name]
                start = self.levels.all.index * value.numel() if state.resharded == "split" else 0
                value[max(self.elements - start, 0) :] = 0

    def state_dict(self) -> dict[str, Any]:
        """The step and the named states of this rank."""
        return {"step": self.step, **self.states}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Raises MismatchError when names or sizes differ: then `load_whole` is the way."""
        for name, state in self.states.items():
            if name not in saved or saved[name].shape != state.shape:
                raise MismatchError(
                    f"state {name} of {self.program.name} has {state.numel()} elements here, the "
                    f"saved one {'none' if name not in saved else saved[name].numel()}"
                )
        self.step = saved["step"]
        for name, state in self.states.items():
            state.copy_(saved[name])

    def whole_state_dict(self) -> dict[str, Any]:
        """What outlives another number of ranks: unpadded states of the whole bucket, and the step.

        Errors of whole buckets differ by rank: they are left out and start anew.
        """
        whole: dict[str, Any] = {"step": self.step}
        for state in self.pipeline.states:
            if state.resharded != "reset":
                whole[state.name] = self.whole(state).reshape(-1).clone()
        return whole

    def whole(self, state: State) -> Tensor:
        """A state in the form of the bucket, without padding: `[elements]` of an all-reduce, else
        `[size, columns]`. All ranks together."""
        value = self.states[state.name]
        if state.resharded == "split":
            value = self.levels.all.all_gather(value).reshape(-1)
        if self.program.result == "all_reduce":
            return value[: self.elements]
        return value.view(-1, self.padded_columns)[:, : self.columns]

    def fill(self, state: State, whole: Tensor) -> None:
        """Sets a state to what `whole` gave, on this or another number of ranks."""
        value = self.states[state.name]
        if self.program.result == "all_reduce":
            padded = pad(
                whole.reshape(-1), (0, self.pipeline.padded(self.elements) - self.elements)
            )
        else:
            rows = whole.reshape(-1, self.columns)
            padded = pad(rows, (0, self.padded_columns - self.columns)).reshape(-1)
        start = self.levels.all.index * value.numel() if state.resharded == "split" else 0
        value.copy_(padded[start : start + value.numel()])

    def load_whole(self, whole: dict[str, Any]) -> None:
        """The states of `whole_state_dict`, cut for this number of ranks; others are zero."""
        self.step = whole["step"]
        for state in self.pipeline.states:
            self.states[state.name].zero_()
            if state.resharded != "reset" and state.name in whole:
                self.fill(state, whole[state.name])


def pad(x: Tensor, sides: tuple[int, int]) -> Tensor:
    """`x` itself where nothing is added: a copy costs as much as a codec."""
    return padded_copy(x, sides) if any(sides) else x


def _fp32(x: Tensor) -> Tensor:
    return x.to(torch.float32).contiguous()


def _padded_like(compressed: Pipeline, plain: Pipeline) -> Pipeline:
    """States that both use have one length."""
    ratio = compressed.select.ratio if compressed.select else 1
    return replace(plain, tile=compressed.tile * ratio)
