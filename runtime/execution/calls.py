"""What a generated stage calls as `run`: one call of a function, with its tensors at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from ...ir.program import CallRun, Table
from ..comm.mesh_collectives import Comm
from ..state.parameters import Store
from .offload import Host

Key = Callable[[int, int, int], int]  # (seed, step, call) -> seed of a call's random streams


class Run:
    """Runs calls on this rank. Between forward and backward it holds what forward saved.

    `comms` by mesh of the table; `grid` moves values between calls that split them differently.
    """

    def __init__(
        self, table: Table, store: Store, comms: Sequence[Comm], grid: Comm, key: Key, seed: int
    ) -> None:
        self.store, self.comms, self.grid, self.key, self.seed = store, comms, grid, key, seed
        self.step, self.micro = 0, 0
        self.runs: dict[int, CallRun] = {
            call: run for run in table.calls for call in range(run.first, run.last)
        }
        self.saved: dict[tuple[int, int], tuple[tuple[Tensor, ...] | None, list[torch.Size]]] = {}
        self.host = Host(store.device)
        self.updates: dict[str, Tensor] = {}

    def start(self, step: int) -> None:
        """Begin a step: nothing saved, nothing to replace."""
        self.step = step
        self.saved.clear()
        self.host.clear()
        self.updates.clear()

    def micro_batch(self, number: int) -> None:
        self.micro = number
        for comm in (*self.comms, self.grid):
            comm.micro_batch(number)

    def comm(self, call: int) -> Comm:
        """The collectives along the axes of a call's mesh."""
        return self.comms[self.runs[call].mesh]

    def held(self, call: int) -> list[str]:
        run = self.runs[call]
        return [run.name(names, call) for names in run.held]

    def inputs(
        self, module: ModuleType, call: int, activations: tuple[Tensor, ...]
    ) -> list[Tensor]:
        items = [*self.store.fetch(self.held(call)), *activations]
        if module.RANDOM:
            word = self.key(self.seed, self.step, call)
            items.append(torch.tensor([word, 0], dtype=torch.int64, device=self.store.device))
        return items

    def data(self, module: ModuleType, call: int, *activations: Tensor) -> tuple[Tensor, ...]:
        """A call that depends on the batch alone, for all micro-batches at once."""
        results = module.forward(self.comm(call), *self.inputs(module, call, activations))
        self.update(call, results)
        return results

    def forward(self, module: ModuleType, call: int, *activations: Tensor) -> tuple[Tensor, ...]:
        """The results of one call on the micro-batch at hand."""
        results = module.forward(self.comm(call), *self.inputs(module, call, activations))
        if hasattr(module, "backward"):
            results, saved = results
            shapes = [r.shape for r in results if r.is_floating_point()]
            if hasattr(module, "HOST"):
                self.host.put((call, self.micro), saved)
                saved = None
            self.saved[call, self.micro] = (saved, shapes)
        self.update(call, results)
        return results

    def backward(
        self, module: ModuleType, call: int, *tangents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of a call's activations; those of its held tensors go to the store."""
        held, activations = self.differentiate(module, call, tangents)
        pairs = zip(self.held(call), held, strict=True)
        found = [(n, g) for n, g in pairs if g is not None]
        del held, pairs
        self.store.accumulate(found)
        return activations

    def differentiate(
        self, module: ModuleType, call: int, tangents: tuple[Tensor | None, ...]
    ) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """Gradients of a call's held tensors and of its activations. What forward saved is handed
        over: `backward` lets go of every value after its last use."""
        saved, shapes = self.saved.pop((call, self.micro))
        taken = list(self.host.take((call, self.micro)) if saved is None else saved)
        del saved
        given = self.complete(call, tangents, shapes)
        weights = self.store.fetch(self.held(call))
        return module.backward(self.comm(call), *weights, taken, *given)

    def complete(
        self, call: int, tangents: tuple[Tensor | None, ...], shapes: list[torch.Size]
    ) -> list[Tensor]:
        """Zeros for results that nothing differentiable reads."""
        if all(t is not None for t in tangents):
            return [t for t in tangents if t is not None]
        assert len(tangents) == len(shapes), f"call {call}: which results lack a gradient?"
        some = next((t for t in tangents if t is not None), None)
        dtype = torch.get_default_dtype() if some is None else some.dtype
        return [
            torch.zeros(shape, dtype=dtype, device=self.store.device) if t is None else t
            for t, shape in zip(tangents, shapes, strict=True)
        ]

    def update(self, call: int, results: tuple[Tensor, ...]) -> None:
        run = self.runs[call]
        for position, names in run.updates:
            self.updates[run.name(names, call)] = results[position]

    def finish(self) -> None:
        """End a step: buffers take their new values."""
        assert not self.saved, f"calls {sorted(self.saved)} had no backward"
        self.store.replace(self.updates)
        self.updates.clear()

    @staticmethod
    def add(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        """The sum of two gradients, either of which may not exist."""
        if one is None or other is None:
            return other if one is None else one
        return one + other
