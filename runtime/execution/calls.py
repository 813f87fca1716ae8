"""Runs function calls for a generated stage, which calls this as `run`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from ...ir.plan.program import CallRun, ProgramTable
from ..comm.mesh_collectives import Comm
from ..state.parameters import ParameterStore
from ..torch_private import is_profiling
from .offload import HostBuffer

ValueKind = tuple[torch.Size, torch.dtype]
StreamSeed = Callable[[int, int, int], int]  # (seed, step, call) -> seed of a call's random streams
Look = Callable[[bool, int, Sequence[Tensor | None]], None]  # (in backward, call, values)


class Run:
    """Runs calls on this rank and keeps saved activations between forward and backward.

    `comms` by mesh of the table; `grid` reshards values between calls with different strategies.
    """

    def __init__(
        self,
        table: ProgramTable,
        store: ParameterStore,
        comms: Sequence[Comm],
        grid: Comm,
        key: StreamSeed,
        seed: int,
    ) -> None:
        self.table, self.store, self.comms, self.grid = table, store, comms, grid
        self.key, self.seed = key, seed
        self.step, self.micro = 0, 0
        self.runs: dict[int, CallRun] = {
            call: run for run in table.calls for call in range(run.first, run.last)
        }
        self.names_read: dict[int, list[str]] = {}
        self.saved: dict[tuple[int, int], tuple[tuple[Tensor, ...] | None, list[ValueKind]]] = {}
        self.saved_for_weights: dict[tuple[int, int], list[Tensor | None]] = {}
        self.host = HostBuffer(store.device)
        self.buffer_updates: dict[str, Tensor] = {}
        self.look: Look | None = None  # sees what every call gives
        self.training = True
        self.wanted = {output.call for output in table.outputs}
        self.outputs: dict[tuple[int, int], Tensor] = {}  # by call and position of the result
        updated = (
            run.name(names, call)
            for run in table.calls
            for call in range(run.first, run.last)
            for _, names in run.updates
        )
        self.shared_buffers = [n for n in updated if len(store.specs[n].stages) > 1]

    def start(self, step: int, *, training: bool = True) -> None:
        """Begin a step: nothing saved, nothing to replace. Nothing is saved unless `training`."""
        self.step, self.training = step, training
        self.outputs.clear()
        self.saved.clear()
        self.saved_for_weights.clear()
        self.host.clear()
        self.buffer_updates.clear()
        self.store.gathers.clear()
        for comm in self.comms:
            comm.row_requests.clear()

    def micro_batch(self, number: int) -> None:
        """Select the micro-batch that the next calls work on."""
        self.micro = number
        for comm in (*self.comms, self.grid):
            comm.micro_batch(number)

    def comm(self, call: int, *, forward: bool = False) -> Comm:
        """The collectives along the axes of a call's mesh, which count choices of experts in forward."""
        comm, replicas = self.comms[self.runs[call].mesh], self.store.replicas
        comm.expert_slots = (
            replicas.slots_of(self.state_names(call), self.store.device)
            if replicas.layers
            else None
        )
        comm.counted_call = call if forward else None
        return comm

    def expert_loads(self) -> dict[str, Tensor]:
        """By layer, how often this rank's tokens have chosen each expert since this was called last."""
        loads: dict[str, Tensor] = {}
        for comm in self.comms:
            for call, counts in comm.choices.items():
                path = self.runs[call].name(self.runs[call].path, call)
                loads[path] = loads[path] + counts if path in loads else counts
            comm.choices.clear()
        return dict(sorted(loads.items()))

    def prefetch(self, call: int) -> None:
        """Start to gather the weights of a call, beside what runs before it."""
        self.store.prefetch(self.state_names(call))

    def retain(self, call: int) -> None:
        """Keep the gathered weights of a call for its backward, which is next."""
        if self.training:
            self.store.gathers.retain(self.store.parameters[n] for n in self.state_names(call))

    def state_names(self, call: int) -> list[str]:
        """Names of the parameters and buffers that a call reads."""
        if call not in self.names_read:
            run = self.runs[call]
            self.names_read[call] = [run.name(names, call) for names in run.state_tensors]
        return self.names_read[call]

    def inputs(
        self, module: ModuleType, call: int, activations: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """State tensors, activations and, for random functions, the key, in the order of arguments."""
        items = [*self.store.fetch(self.state_names(call)), *activations]
        if module.RANDOM:
            stream_seed = self.key(self.seed, self.step, call)
            items.append(
                torch.tensor([stream_seed, 0], dtype=torch.int64, device=self.store.device)
            )
        return items

    def batch_only(self, module: ModuleType, call: int, *activations: Tensor) -> tuple[Tensor, ...]:
        """Run a call that depends on the batch alone, for all micro-batches at once."""
        with self.labelled(module, call, "batch only"):
            results = module.forward(
                self.comm(call, forward=True), *self.inputs(module, call, activations)
            )
        self.update(call, results)
        if self.look is not None:
            self.look(False, call, results)
        return results

    def labelled(
        self, module: ModuleType, call: int, what: str
    ) -> contextlib.AbstractContextManager[Any]:
        """A profiler's range named after the layer, as in `model.layers.3 forward`."""
        if not is_profiling():
            return contextlib.nullcontext()
        path = self.runs[call].name(self.runs[call].path, call)
        return record_function(f"{path or module.__name__.rpartition('.')[2]} {what}")

    def forward(self, module: ModuleType, call: int, *activations: Tensor) -> tuple[Tensor, ...]:
        """Results of one call on the selected micro-batch."""
        with self.labelled(module, call, "forward"):
            results = module.forward(
                self.comm(call, forward=True), *self.inputs(module, call, activations)
            )
        if hasattr(module, "backward") or hasattr(module, "backward_inputs"):
            results, saved = results
            if self.training:
                self.save(module, call, results, saved)
        self.update(call, results)
        if self.look is not None:
            self.look(False, call, results)
        return results

    def save(
        self, module: ModuleType, call: int, results: tuple[Tensor, ...], saved: tuple[Tensor, ...]
    ) -> None:
        """Keep what a call's backward reads, on the device or on the host."""
        shapes = [(r.shape, r.dtype) for r in results if r.is_floating_point()]
        if hasattr(module, "HOST"):
            self.host.offload((call, self.micro), saved)
        self.saved[call, self.micro] = (None if hasattr(module, "HOST") else saved, shapes)

    def backward(
        self, module: ModuleType, call: int, *tangents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of a call's activations; those of its parameters go to the store."""
        with self.labelled(module, call, "backward"):
            parameters, activations = self.differentiate(module.backward, call, tangents)
        if self.look is not None:
            self.look(True, call, (*parameters, *activations))
        gradients = self.state_gradients(call, parameters)
        del parameters
        self.store.accumulate(gradients)
        return activations

    def backward_inputs(
        self, module: ModuleType, call: int, *tangents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of a call's activations; what those of its parameters are computed from stays."""
        with self.labelled(module, call, "backward of inputs"):
            activations, saved = self.differentiate(module.backward_inputs, call, tangents)
        if self.look is not None:
            self.look(True, call, activations)
        self.saved_for_weights[call, self.micro] = list(saved)
        return activations

    def backward_weights(self, module: ModuleType, call: int) -> None:
        """Gradients of a call's parameters go to the store."""
        reads = hasattr(module, "WEIGHTS_READ_STATES")
        states = self.store.fetch(self.state_names(call)) if reads else []
        saved = self.saved_for_weights.pop((call, self.micro))
        with self.labelled(module, call, "backward of weights"):
            parameters = module.backward_weights(self.comm(call), *states, saved)
        del states
        if self.look is not None:
            self.look(True, call, parameters)
        gradients = self.state_gradients(call, parameters)
        del parameters
        self.store.accumulate(gradients)

    def state_gradients(
        self, call: int, gradients: tuple[Tensor | None, ...]
    ) -> list[tuple[str, Tensor]]:
        """The gradients of a call's parameters that there are, by name."""
        pairs = zip(self.state_names(call), gradients, strict=True)
        return [(name, gradient) for name, gradient in pairs if gradient is not None]

    def differentiate(
        self, backward: Callable[..., Any], call: int, tangents: tuple[Tensor | None, ...]
    ) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """What a generated backward, or the part of it for inputs, gives. Hands the saved values over,
        so that it frees each after its last use."""
        saved, shapes = self.saved.pop((call, self.micro))
        saved_values = list(self.host.restore((call, self.micro)) if saved is None else saved)
        del saved
        output_gradients = self.fill_tangents(call, tangents, shapes)
        weights = self.store.fetch(self.state_names(call))
        return backward(self.comm(call), *weights, saved_values, *output_gradients)

    def fill_tangents(
        self, call: int, tangents: tuple[Tensor | None, ...], shapes: list[ValueKind]
    ) -> list[Tensor]:
        """Tangents, with zeros for results that nothing differentiable reads."""
        if all(t is not None for t in tangents):
            return [t for t in tangents if t is not None]
        assert len(tangents) == len(shapes), f"call {call}: which results lack a gradient?"
        return [
            torch.zeros(shape, dtype=dtype, device=self.store.device) if t is None else t
            for t, (shape, dtype) in zip(tangents, shapes, strict=True)
        ]

    def update(self, call: int, results: tuple[Tensor, ...]) -> None:
        """Note the results that the model's caller gets or that replace buffers when the step ends."""
        if call in self.wanted:
            self.outputs.update(((call, position), r) for position, r in enumerate(results))
        run = self.runs[call]
        for position, names in run.updates:
            self.buffer_updates[run.name(names, call)] = results[position]

    def finish(self) -> None:
        """End a step: write the new values of buffers."""
        assert not self.saved, f"calls {sorted(self.saved)} had no backward"
        self.store.reductions.settle()
        assert not self.saved_for_weights, f"calls {sorted(self.saved_for_weights)} had no weights"
        self.store.replace_buffers(self.buffer_updates)
        self.store.share_buffers(self.shared_buffers)
        self.buffer_updates.clear()

    @staticmethod
    def add(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        """The sum of two gradients, either of which may not exist."""
        if one is None or other is None:
            return other if one is None else one
        return one + other
