"""Storages of calls: arguments, intermediates, values saved for backward, and gradients.

Weights, accumulated gradients and the batch are not included; the gradient of a weight is, until
its call's backward ends and it is accumulated. Where a call runs in chunks, the storages of one
chunk stand for all, since the chunks reuse them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from ...ir.model.model import Input, Model
from .call_storage import CallStorage
from .lifetimes import Lifetimes, Storages

Place = TypeVar("Place", str, str | None)
Sizes = Sequence[int]  # bytes after each resharding step
ReshardSizes = Callable[[int, int], Sizes]  # resharding of an argument, by call and position
Key = tuple[str, int]  # micro-batch and call


def no_resharding(call: int, position: int) -> Sizes:
    """No resharding between calls."""
    return ()


class CallWalk:
    """Walks calls of micro-batches forward and backward and records their storages.

    `forward_resharding` and `backward_resharding`: resharding of arguments and of their gradients
    between calls. With `overlap_copies`, copies to and from host memory overlap with other calls;
    otherwise they end before the next one.
    """

    def __init__(
        self,
        model: Model,
        storages: Mapping[int, CallStorage],
        forward_resharding: ReshardSizes = no_resharding,
        backward_resharding: ReshardSizes = no_resharding,
        overlap_copies: bool = True,
    ) -> None:
        self.model, self.storages, self.overlap_copies = model, storages, overlap_copies
        self.forward_resharding = forward_resharding
        self.backward_resharding = backward_resharding
        self.life = Lifetimes()
        self.values: dict[tuple[str, str], str | None] = {}  # by micro-batch and name
        self.gradients: dict[tuple[str, str], str] = {}
        self.argument_storages: dict[Key, list[str | None]] = {}
        self.waiting: dict[Key, tuple[int, ...]] = {}  # in host memory
        self.prefetched: dict[Key, Storages] = {}
        self.offloading: list[str | None] = []
        self.for_weights: dict[Key, Storages] = {}  # what the second part of a backward may read

    def forward(self, micro: str, number: int) -> None:
        """Run a call forward; its results become available to later calls."""
        call, storage, life = self.model.calls[number], self.storages[number], self.life
        life.begin_segment()
        prefix = f"{micro}.{number}"
        arguments = [
            self.reshard(
                self.values.get((micro, name)),
                f"{prefix}.taken {at}",
                self.forward_resharding(number, at),
            )
            for at, name in enumerate(call.arguments)
        ]
        self.argument_storages[micro, number] = arguments
        weights = self.gather(storage, f"{prefix}.forward")
        outputs = [o.value for o in storage.full.outputs]
        outputs_or_gradients = self.full_values(storage, outputs, f"{prefix}.forward")
        storages_ = self.input_storages(storage, arguments, f"{prefix}.forward")
        life.run(
            storage.forward, storage.function, storage.forward_roots, f"{prefix}.forward", storages_
        )
        for value, output in zip(outputs, storage.function.outputs, strict=True):
            outputs_or_gradients.setdefault(
                value, storages_.get(storage.forward_roots[output.value])
            )
        results = [outputs_or_gradients[value] for value in outputs]
        life.extend(weights, *results)
        self.values.update({(micro, n): m for n, m in zip(call.results, results, strict=False)})
        life.extend(*self.offloading)
        self.offloading = []
        if storage.offloaded:
            saved = [storages_.get(storage.forward_roots[v]) for v in storage.saved]
            life.extend(*saved)
            self.offloading = saved if self.overlap_copies else []
            self.waiting[micro, number] = storage.saved

    def backward(self, micro: str, number: int) -> None:
        """Run a call backward, or the part of it for inputs, and accumulate the gradients of its
        arguments."""
        call, storage, life = self.model.calls[number], self.storages[number], self.life
        life.begin_segment()
        prefix = f"{micro}.{number}"
        storages_ = self.at_backward(micro, number)
        gradients = [i.gradient for i in storage.full.inputs if i.gradient is not None]
        if storage.weights:
            self.for_weights[micro, number] = storages_
        weights = self.gather(storage, f"{prefix}.backward")
        outputs_or_gradients = self.full_values(storage, gradients, f"{prefix}.backward")
        life.run(
            storage.backward,
            storage.function,
            storage.backward_roots,
            f"{prefix}.backward",
            storages_,
        )
        for mine, chunk_input in zip(storage.full.inputs, storage.function.inputs, strict=True):
            if mine.gradient is not None and chunk_input.gradient is not None:
                outputs_or_gradients.setdefault(
                    mine.gradient, storages_.get(storage.backward_roots[chunk_input.gradient])
                )
        life.extend(weights, *outputs_or_gradients.values(), *self.offloading)
        self.offloading = []
        for at, (item, name) in enumerate(self.arguments(number)):
            place = None if item.gradient is None else outputs_or_gradients.get(item.gradient)
            if place is not None:
                self.add(
                    (micro, name),
                    self.reshard(
                        place, f"{prefix}.given {at}", self.backward_resharding(number, at)
                    ),
                    f"{prefix}.sum {at}",
                )
        for name in call.results:
            self.gradients.pop((micro, name), None)

    def backward_weights(self, micro: str, number: int) -> None:
        """Run the part of a call's backward that nothing waits for, where it runs apart."""
        storages_ = self.for_weights.pop((micro, number), None)
        if storages_ is None:
            return
        storage, life, prefix = self.storages[number], self.life, f"{micro}.{number}.weights"
        life.begin_segment()
        life.run(storage.weights, storage.function, storage.backward_roots, prefix, storages_)
        states = (i.gradient for i in storage.function.state_inputs() if i.gradient is not None)
        life.extend(*(storages_.get(storage.backward_roots[gradient]) for gradient in states))

    def arguments(self, number: int) -> Iterable[tuple[Input, str]]:
        """Activation inputs of a call's function, each with the name of the value passed."""
        activations = self.storages[number].full.activations()
        return zip(activations, self.model.calls[number].arguments, strict=True)

    def at_backward(self, micro: str, number: int) -> Storages:
        """Storages that a backward graph may read: arguments, saved values, tangents."""
        call, storage = self.model.calls[number], self.storages[number]
        prefix, function = f"{micro}.{number}", self.storages[number].function
        arguments = self.argument_storages.pop((micro, number))
        storages_ = self.input_storages(storage, arguments, f"{prefix}.backward")
        fetched = self.fetch((micro, number))
        for value in storage.saved:
            root = storage.forward_roots[value]
            left = f"{prefix}.forward.{root}"
            storages_[value] = left if left in self.life.allocated else storages_.get(root)
        storages_.update(fetched)
        tangents = [
            (o.tangent, mine.tangent, name)
            for o, mine, name in zip(
                function.outputs, storage.full.outputs, call.results, strict=False
            )
        ]
        for tangent, full, name in tangents:
            if tangent is None or full is None:
                continue
            place = self.gradients.get((micro, name))
            if place is None and name != self.model.loss:  # nothing differentiable reads it
                zeros = storage.full.types[full].bytes
                place = self.life.allocate(f"{prefix}.zeros {tangent}", zeros)
            storages_[tangent] = self.chunk_view(
                storage, place, tangent, full, f"{prefix}.backward"
            )
        return storages_

    def fetch(self, key: Key) -> Storages:
        """Fetch a call's offloaded values, and prefetch those of the next backward call."""
        if not self.storages[key[1]].offloaded:
            return {}
        copied = self.prefetched.pop(key) if key in self.prefetched else self.copy_back(key)
        following = next((other for other in reversed(self.waiting) if other[0] == key[0]), None)
        if following is not None and self.overlap_copies:
            self.prefetched[following] = self.copy_back(following)
        return copied

    def copy_back(self, key: Key) -> Storages:
        """Copy a call's offloaded values back to the device; values that share storage stay
        together.
        """
        micro, number = key
        storage, copied = self.storages[number], Storages()
        sharing: dict[int, list[int]] = {}
        for value in self.waiting.pop(key):
            sharing.setdefault(storage.forward_roots[value], []).append(value)
        for root, values in sharing.items():
            sizes = {v: storage.function.types[v].bytes for v in values}
            full = storage.function.types[root].bytes
            together = full <= sum(sizes.values())
            for one in [values] if together else [[v] for v in values]:
                size = full if together else sizes[one[0]]
                name = self.life.allocate(f"{micro}.{number}.fetched.{one[0]}", size)
                copied.update(dict.fromkeys(one, name))
        return copied

    def input_storages(
        self, storage: CallStorage, arguments: Sequence[str | None], prefix: str
    ) -> Storages:
        """Storages of a function's inputs."""
        storages_: Storages = {i.value: None for i in storage.function.inputs}
        full, mine = storage.full.activations(), storage.function.activations()
        for place, outer, inner in zip(arguments, full, mine, strict=True):
            storages_[inner.value] = self.chunk_view(
                storage, place, inner.value, outer.value, prefix
            )
        return storages_

    def chunk_view(
        self, storage: CallStorage, place: str | None, value: int, full: int, prefix: str
    ) -> str | None:
        """Storage of a value inside a chunk: the call's own, or a copied slice of it."""
        if not storage.is_chunked or not storage.is_sliced(value, full):
            return place
        size = storage.function.types[value].bytes
        return self.life.allocate(f"{prefix}.part {value}", size)

    def full_values(
        self, storage: CallStorage, values: Iterable[int], prefix: str
    ) -> dict[int, str | None]:
        """Allocate the full values that chunks write slices of or accumulate into."""
        if not storage.is_chunked:
            return {}
        types = storage.full.types
        return {v: self.life.allocate(f"{prefix}.whole {v}", types[v].bytes) for v in values}

    def gather(self, storage: CallStorage, prefix: str) -> str | None:
        """Allocate the parameters gathered from other devices for a call."""
        return (
            self.life.allocate(f"{prefix}.weights", storage.gathered_bytes)
            if storage.gathered_bytes
            else None
        )

    def reshard(self, place: Place, name: str, sizes: Sizes) -> Place | str:
        """Reshard a value between calls; returns its last storage."""
        storage: Place | str = place
        for step, size in enumerate(sizes):
            storage = self.life.copy(storage, f"{name} step {step}", size)
        return storage

    def add(self, value: tuple[str, str], place: str, total: str) -> None:
        """Accumulate the gradient of a value that several calls read."""
        have, life = self.gradients.get(value), self.life
        if have is not None:
            life.allocate(total, life.allocated[have][1])
            life.use(have)
            life.use(place)
            life.tick()
        self.gradients[value] = place if have is None else total
