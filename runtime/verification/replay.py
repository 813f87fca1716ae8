"""Replays a program's random numbers in the user's own module, which runs eagerly.

On the CPU torch draws every dropout mask, that of attention included, by filling a tensor of noise
(`bernoulli_`). A dispatch mode puts the masks of the program there, and what follows from its uniform
numbers where the module draws something else (`distributions`), in the order in which the module
draws. Only the order and the shapes come from the trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.nn.utils.rnn import PackedSequence

from ...ir.capture.operators.elementary import MASK_ARGUMENTS, UNIFORM, call_key, dropout_mask
from ...ir.capture.operators.random_numbers import uniform
from ...ir.capture.operators.shard_offsets import full_index
from ...ir.model.model import Model, Op
from ..torch_private import TorchDispatchMode, tree_leaves
from .distributions import DISTRIBUTIONS, Distribution
from .wide_operators import wide

ATEN = torch.ops.aten
NOISE = ATEN.bernoulli_.float
RATE_ERROR = 1e-9  # of 1 - (1 - rate)


class Draw(NamedTuple):
    """Random numbers of one step, of `shape`: a mask that drops an element with probability `rate`, or
    uniform numbers of a `dtype` where there is no rate."""

    call: int
    stream_id: int
    rate: float | None
    shape: tuple[int, ...]
    paths: tuple[str, ...]  # of the module that draws, as a call and its scope may name it
    dtype: str = ""

    def fits(
        self, shape: tuple[int, ...], rate: float | None, packed: PackedSequence | None
    ) -> bool:
        """Whether a tensor of noise is this mask's; leading dimensions may be merged, or the rows those
        of a packed sequence."""
        same = prod(shape) == prod(self.shape) and shape[-1:] == self.shape[-1:]
        if packed is not None and shape[0] == len(packed.data) and len(self.shape) == 3:
            steps, samples = len(packed.batch_sizes), int(packed.batch_sizes[0])
            same |= self.shape[0] >= steps and self.shape[1:] == (samples, *shape[1:])
        if self.rate is None or rate is None:
            return same
        return same and abs(rate - self.rate) < RATE_ERROR

    def mask(self, seed: int, step: int) -> Tensor:
        """Which elements are retained: bool, of `shape`."""
        assert self.rate is not None
        index = list(full_index(self.shape))
        return dropout_mask(self.key(seed, step), self.rate, self.stream_id, index).reshape(
            self.shape
        )

    def numbers(self, seed: int, step: int) -> Tensor:
        """Numbers in (0, 1), of `shape`."""
        index, dtype = list(full_index(self.shape)), getattr(torch, self.dtype)
        return uniform(self.key(seed, step), self.stream_id, index, list(self.shape), dtype)

    def key(self, seed: int, step: int) -> Tensor:
        return torch.tensor([call_key(seed, step, self.call), 0])


def draws_of(model: Model) -> list[Draw]:
    """The masks that one step of a model draws, in order."""
    functions = {function.name: function for function in model.functions}
    draws = []
    for number, call in enumerate(model.calls):
        for op in functions[call.function].forward_ops:
            paths = (op.scope, ".".join(filter(None, (call.path, op.scope))))
            plain, mask = tuple(map(_plain, paths)), _mask_of(op)
            if op.target == UNIFORM:
                _, stream_id, _, shape, dtype = op.args
                draws.append(Draw(number, stream_id, None, shape, plain, dtype.partition(":")[2]))  # type: ignore[arg-type,union-attr]
            elif mask is not None:
                draws.append(Draw(number, *mask, plain))
    return draws


def _mask_of(op: Op) -> tuple[int, float, tuple[int, ...]] | None:
    """Stream, rate and shape of an operator's mask; None where it draws none."""
    if op.target not in MASK_ARGUMENTS:
        return None
    rate, stream_id, index = (op.args[place] for place in MASK_ARGUMENTS[op.target])
    assert isinstance(rate, float)
    assert isinstance(stream_id, int)
    assert isinstance(index, tuple)
    return (stream_id, rate, index[0::3]) if 0.0 < rate < 1.0 and index else None  # type: ignore[return-value]


class MaskReplay(TorchDispatchMode):
    """Gives the random operators of a module the masks of a program while it is entered.

    Afterwards `unexpected` describes masks that the program does not draw, `unreplayed` names random
    operators that have no masks, and `narrowest` is the narrowest floating-point type of any result.
    """

    def __init__(self, model: Model, module: nn.Module, seed: int) -> None:
        super().__init__()
        self.draws, self.seed, self.step, self.position = draws_of(model), seed, 0, 0
        self.module = module
        self.unexpected: list[str] = []
        self.unreplayed: dict[str, None] = {}
        self.narrowest: torch.dtype | None = None
        self.running: list[str] = []
        self.packed: list[PackedSequence | None] = []  # by running module, what it was called with
        # a checkpointed forward runs again with the generator's state restored: same state, same mask
        self.drawn: dict[bytes, Draw | None] = {}

    @contextmanager
    def one_step(self, step: int) -> Iterator[None]:
        """Replay the masks of one step, from the first on."""
        self.step, self.position = step, 0
        self.drawn.clear()
        with self.recorded_paths(), self:
            yield
        for draw in self.draws[self.position :]:
            self.unexpected.append(
                f"the program draws {_described(draw)}, which the module does not"
            )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            results = wide(func, args)(*args, **(kwargs or {}))
            self.note_dtypes(results)
            return results
        state = torch.get_rng_state()
        result = func(*args, **(kwargs or {}))  # moves the generator on
        if torch.equal(state, torch.get_rng_state()):  # attention that drops nothing, say
            self.note_dtypes(result)
            return result
        if func is NOISE:
            return self.noise(result, args, state)
        if func in DISTRIBUTIONS:
            distribution = DISTRIBUTIONS[func]
            shape = tuple(distribution.shape(result, args))
            draw = self.next_draw(shape, None, state)
            if draw is not None and draw.rate is None:
                return self.distributed(distribution, draw, result, args)
        self.unreplayed[str(func)] = None
        return result

    def distributed(
        self, distribution: Distribution, draw: Draw, result: Tensor, args: Any
    ) -> Tensor:
        """What an operator draws, by the program's uniform numbers."""
        shape = tuple(distribution.shape(result, args))
        drawn = distribution.of(draw.numbers(self.seed, self.step).reshape(shape), *args)
        if args and result is args[0]:  # in place
            return result.copy_(drawn)
        return drawn.to(result.dtype)

    def note_dtypes(self, results: Any) -> None:
        """Note the narrowest floating-point type among results."""
        for leaf in tree_leaves(results):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                if self.narrowest is None or leaf.dtype.itemsize < self.narrowest.itemsize:
                    self.narrowest = leaf.dtype

    def noise(self, result: Tensor, args: Any, state: Tensor) -> Tensor:
        """Fill a tensor of noise with the mask that is due."""
        rate = 1.0 - float(args[1] if len(args) > 1 else 0.5)
        shape = tuple(result.shape)
        draw = self.next_draw(shape, rate, state)
        if draw is None:
            where = self.running[-1] if self.running else ""
            self.unexpected.append(
                f"the module draws a mask of {list(shape)} at rate {rate:.3g} in "
                f"{where or 'its root'}, which the program does not"
            )
            return result
        if draw.rate is None:
            return self.distributed(DISTRIBUTIONS[NOISE], draw, result, args)
        mask, packed = draw.mask(self.seed, self.step), self.packed[-1] if self.packed else None
        if packed is not None and prod(shape) != prod(draw.shape):
            mask = _rows(packed, mask)
        return result.copy_(mask.reshape(shape))

    def next_draw(self, shape: tuple[int, ...], rate: float | None, state: Tensor) -> Draw | None:
        """The mask for noise of a shape: that drawn from this state before, or the next in order."""
        digest = sha256(state.numpy().tobytes()).digest()
        if digest not in self.drawn:
            due = self.draws[self.position : self.position + 1]
            path = _plain(self.running[-1] if self.running else "")
            packed = self.packed[-1] if self.packed else None
            matching = [d for d in due if d.fits(shape, rate, packed) and self.is_at(path, d)]
            self.position += len(matching)
            self.drawn[digest] = matching[0] if matching else None
        return self.drawn[digest]

    def is_at(self, path: str, draw: Draw) -> bool:
        """Whether a draw may be that of a module; a path that no draw has says nothing."""
        return path in draw.paths or all(path not in other.paths for other in self.draws)

    @contextmanager
    def recorded_paths(self) -> Iterator[None]:
        """Note which module is running."""
        paths = {id(module): path for path, module in self.module.named_modules()}

        def enter(module: nn.Module, args: Any) -> None:
            outside = self.running[-1] if self.running else ""
            self.running.append(paths.get(id(module), outside))
            self.packed.append(next((a for a in args if isinstance(a, PackedSequence)), None))

        def leave(*_: Any) -> None:
            self.running.pop()
            self.packed.pop()

        handles = (
            module_hooks.register_module_forward_pre_hook(enter),
            module_hooks.register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            self.running.clear()
            self.packed.clear()
            for handle in handles:
                handle.remove()


def _rows(packed: PackedSequence, mask: Tensor) -> Tensor:
    """Of a mask [steps samples …] what falls on the rows of a packed sequence."""
    if packed.sorted_indices is not None:
        mask = mask[:, packed.sorted_indices]
    counts = packed.batch_sizes.tolist()
    return torch.cat([of_step[:n] for of_step, n in zip(mask, counts, strict=False)])


def _plain(path: str) -> str:
    """A path as traced models write it."""
    return re.sub(r"[^\w.]", "_", path, flags=re.ASCII)


def _described(draw: Draw) -> str:
    where = draw.paths[-1] or "its root"
    if draw.rate is None:
        return f"uniform numbers of {list(draw.shape)} in {where}"
    return f"a mask of {list(draw.shape)} at rate {draw.rate:.3g} in {where}"
