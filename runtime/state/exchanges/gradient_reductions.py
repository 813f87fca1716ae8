"""Gradients from backward calls to the sums that the optimizer gets, over ranks and micro-batches.

    backward of a call   reduced over zero3 and zero2 beside the next call, then added up
    end of the step      over zero1, the axes of partial sums, and stages that share a tensor

What is summed at the end of the step alone is added up in flat buckets, which are the memory of their
collectives and begin to travel in backward (`gradient_buckets`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ....ir.plan.program import LEAST_BUCKET_BYTES
from ...comm import buckets
from ...comm.buckets import Arrival, PlainTransport
from ...comm.process_group import Group
from ...comm.slicing import flatten
from ..local_parameter import FlatShardGroups, LocalParameter, names_of, start_zero3_reduction
from .gradient_buckets import GradientBuckets, divided, reduced_elements
from .reduced import ReducedParameters
from .row_gradients import RowGradients

Totals = dict[str, Tensor]


class GradientReductions:
    """The gradient sums of a store; collectives run beside other work while at most `limit_bytes` are
    in flight (0: each ends before what follows)."""

    def __init__(self, store: ReducedParameters, limit_bytes: int) -> None:
        self.store, self.limit_bytes = store, limit_bytes
        self.reducing: tuple[list[LocalParameter], Arrival] | None = None
        self.rows = RowGradients(store)

    # after every backward call

    def accumulate(self, gradients: list[tuple[str, Tensor]]) -> None:
        """Reduce the gradients of one backward call and add them up; empties the list."""
        self.settle()
        parameters, flats = list[LocalParameter](), list[Tensor]()
        for parameter, gradient in self.drain(gradients):
            if parameter.spec.sparse_gradient:
                self.rows.add(parameter, gradient)
                continue
            dtype = self.store.summed_dtype(parameter)
            gradient = self.store.replicas.at_home(parameter, gradient, dtype, self.expected)
            gradient = gradient.to_dense()  # of a table that others read otherwise
            flat = flatten(gradient, parameter.sharding.padded_elements)
            flat = flat.to(dtype)
            del gradient  # what is in the list may be a copy
            if self.travels(parameter):
                parameters.append(parameter)
                flats.append(flat)
            else:
                self.add(parameter, flat)
            del flat
        if parameters:
            sent_bytes = sum(flat.numel() * flat.element_size() for flat in flats)
            self.reducing = parameters, self.start(parameters, flats)
            if sent_bytes > self.limit_bytes:
                self.settle()

    def drain(self, gradients: list[tuple[str, Tensor]]) -> Iterator[tuple[LocalParameter, Tensor]]:
        """Pop the gradients of trainable parameters one by one, so that each can be freed early: without
        zeros of those that no gradient reaches."""
        gradients.reverse()
        while gradients:
            parameter = self.store.parameters[gradients[-1][0]]
            if parameter.leaf is not None and parameter.spec.reached:
                yield parameter, gradients.pop()[1]
            else:
                gradients.pop()

    def travels(self, parameter: LocalParameter) -> bool:
        """Whether a gradient is reduced after every backward call."""
        return parameter.sharding.degrees[0] * parameter.sharding.degrees[1] > 1

    def start(self, parameters: list[LocalParameter], flats: list[Tensor]) -> Arrival:
        """Start to reduce over zero3, or where that is one rank, over zero2."""
        outer, inner = (self.store.transport_of("gradients", parameters, level) for level in (0, 1))
        if all(p.sharding.degrees[0] == 1 for p in parameters):
            return inner.start_reduce_scatter(flats, names_of(parameters))
        arrival = start_zero3_reduction(outer, parameters, flats)
        return lambda: inner.reduce_scatter(arrival(), names_of(parameters))

    def settle(self) -> None:
        """Add up what has been reduced, once it has arrived."""
        if self.reducing is None:
            return
        (parameters, arrival), self.reducing = self.reducing, None
        leave_buckets(self.add_arrived(parameters, arrival()))

    def add_arrived(
        self, parameters: Sequence[LocalParameter], flats: Sequence[Tensor]
    ) -> list[LocalParameter]:
        """Add up what has arrived; gives those of which it is the first gradient."""
        for parameter, flat in zip(parameters, flats, strict=True):
            self.add(parameter, flat, owned=True)
        return [p for p, flat in zip(parameters, flats, strict=True) if p.gradient is flat]

    def add(self, parameter: LocalParameter, flat: Tensor, owned: bool = False) -> None:
        """Add a gradient to those before; `owned`: nothing else reads or writes its elements, as it is
        with what has arrived. Where it is not, it may share memory with other tensors."""
        if parameter.name in self.buckets:
            self.buckets.add(parameter, flat)
        elif parameter.gradient is None:
            parameter.gradient, parameter.owns_gradient = flat, owned
        elif parameter.owns_gradient:
            parameter.gradient += flat
        else:
            parameter.gradient, parameter.owns_gradient = parameter.gradient + flat, True

    @cached_property
    def expected(self) -> Mapping[str, int]:
        """Gradients of a step, by parameter."""
        return self.store.readers()

    @cached_property
    def buckets(self) -> GradientBuckets:
        """The buckets of all parameters whose sums are completed in them."""
        store = self.store
        members: dict[tuple[int, tuple[str, ...], torch.dtype], list[LocalParameter]] = {}
        for p in store.in_order_of_use(store.trainable()):
            if self.in_bucket(p):
                key = p.spec.mesh, p.spec.partial_axes, store.summed_dtype(p)
                members.setdefault(key, []).append(p)
        return GradientBuckets(
            [
                bucket
                for (mesh, axes, dtype), row in members.items()
                for bucket in divided(row, dtype, *self.step_groups(mesh, axes))
            ],
            self.limit_bytes,
            self.expected,
        )

    def step_groups(self, mesh: int, axes: tuple[str, ...]) -> tuple[Group, Group]:
        """The ranks that share gradients at the end of a step: of zero1, and along the axes of partial
        totals."""
        levels = self.store.flat_groups[mesh]
        return levels[2], self.store.groups.partial.get((mesh, axes), levels[2].alone())

    def in_bucket(self, parameter: LocalParameter) -> bool:
        """Whether the sum of a gradient is one uncompressed collective or two, of all its elements."""
        spec, store = parameter.spec, self.store
        scatter, total = self.step_groups(spec.mesh, spec.partial_axes)
        if scatter.size * total.size == 1 or parameter.sharding.partially_sharded:
            return False
        if spec.sparse_gradient or store.groups.devices is not None:
            return False
        along = store.transports.transport(
            "gradients", spec.mesh, "+".join(spec.partial_axes), total
        )
        plain = store.transport_of("gradients", [parameter], 2), along
        return all(isinstance(transport, PlainTransport) for transport in plain)

    # once per step

    def complete(self) -> Iterator[tuple[LocalParameter, Tensor]]:
        """Complete the sums; gives this rank's part of each, flat, or sparse by rows."""
        self.settle()
        yield from self.rows.complete()
        totals = self.buckets.finish()
        ready = [p for p in self.store.trainable() if p.gradient is not None]
        self.sum_others(ready, totals)
        for parameter in self.store.trainable():
            if parameter.name in totals:
                yield parameter, totals.pop(parameter.name)

    def sum_others(self, ready: list[LocalParameter], totals: Totals) -> None:
        """Complete the sums of what is in no bucket: over zero1 ranks, the axes over which gradients are
        partial, and of remainders over zero3."""
        store = self.store
        for _, members in store.by_mesh(ready):
            transport, names = store.transport_of("gradients", members, 2), names_of(members)
            reduced = transport.reduce_scatter([p.pop_gradient() for p in members], names)
            totals.update(zip(names, reduced, strict=True))
            del reduced
        for key, group in store.groups.partial.items():
            names = [p.name for p in ready if (p.spec.mesh, p.spec.partial_axes) == key]
            mesh, axes = key
            transport = store.transports.transport("gradients", mesh, "+".join(axes), group)
            reduced = transport.all_reduce([totals.pop(n) for n in names], names)
            totals.update(zip(names, reduced, strict=True))
            del reduced
        self.sum_tied(totals)
        ready = [p for p in store.trainable() if p.name in totals]
        for mesh, members in store.by_mesh(p for p in ready if p.sharding.partially_sharded):
            self.sum_remainders(store.flat_groups[mesh], [(p, totals[p.name]) for p in members])

    def sum_remainders(
        self, levels: FlatShardGroups, gradients: Sequence[tuple[LocalParameter, Tensor]]
    ) -> None:
        """Sum the remainders, which are not sharded over zero3, over zero3 in place. The last of all
        sums, so that all its ranks update them to the same bits."""
        remainders = [
            self.store.remainder(levels, parameter, gradient) for parameter, gradient in gradients
        ]
        remainders = [r for r in remainders if r.numel()]
        for members in buckets.buckets(remainders):
            totals = buckets.all_reduce(levels[0], [remainders[i] for i in members])
            for i, total in zip(members, totals, strict=True):
                remainders[i].copy_(total)

    def sum_tied(self, totals: Totals) -> None:
        """Sum what several stages have of the gradients of one parameter, in place: large ones one by
        one, small ones in copies."""
        for stages, group in self.store.groups.tied.items():
            if group.size == 1 or self.store.groups.stage not in stages:
                continue
            tied = [p for p in self.store.trainable() if p.spec.stages == stages and p.spec.reached]
            for p in tied:
                if p.name not in totals:
                    totals[p.name] = self.zeros(p)
            parts = [totals[p.name] for p in tied]
            for members in buckets.buckets(parts, LEAST_BUCKET_BYTES):
                each = [parts[i] for i in members]
                if len(each) == 1 and each[0].is_contiguous():
                    group.all_reduce(each[0], in_place=True)
                    continue
                for part, total in zip(each, buckets.all_reduce(group, [*each]), strict=True):
                    part.copy_(total)

    def zeros(self, parameter: LocalParameter) -> Tensor:
        return torch.zeros(
            reduced_elements(parameter),
            dtype=self.store.summed_dtype(parameter),
            device=self.store.device,
        )

    def clear(self) -> None:
        """Drop what backward has accumulated and `complete` has not summed yet."""
        self.settle()
        self.rows.clear()
        self.buckets.clear()
        for parameter in self.store.trainable():
            parameter.gradient, parameter.owns_gradient = None, False


def leave_buckets(parameters: Sequence[LocalParameter]) -> None:
    """Copy these gradients out of buckets of which nothing reads the rest: it was added to an earlier
    gradient."""
    read = Counter[int]()
    for parameter in parameters:
        assert parameter.gradient is not None
        read[storage_of(parameter)] += parameter.gradient.nbytes
    for parameter in parameters:
        assert parameter.gradient is not None
        if read[storage_of(parameter)] < parameter.gradient.untyped_storage().nbytes():
            parameter.gradient = parameter.gradient.clone()


def storage_of(parameter: LocalParameter) -> int:
    """The storage that a gradient lies in."""
    assert parameter.gradient is not None
    return parameter.gradient.untyped_storage().data_ptr()
