"""Experts are placed by how often they were chosen, between steps: other replicas, other homes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ....ir.lowering.redistribute import STEPPED, VALUES, ShardLevels, reordered
from ....ir.plan.expert_placement import ExpertPlacement, balanced
from ..borrowed.redistribution import Redistribution
from ..local_parameter import LocalParameter
from ..local_tensor import shard_of
from ..optimizer import LocalOptimizer
from ..optimizer_state import local_items
from ..parameters import ParameterStore

Loads = dict[str, Tensor]  # by layer, how often each expert was chosen


class MovedTensor(NamedTuple):
    """What moves with an expert's home: `key` says of what a weight it is (its value, its gradient, a
    state of the optimizer), `levels` how far it is sharded."""

    key: str
    levels: int
    name: str
    dtype: str


class ExpertBalance:
    """Places the experts of a program anew after steps in which some rank got too many rows; `observe`
    gives what this rank's tokens chose since it was called last."""

    def __init__(
        self, observe: Callable[[], Loads], store: ParameterStore, updates: LocalOptimizer | None
    ) -> None:
        self.observe, self.store, self.updates = observe, store, updates
        self.loads: Loads = {}
        self.ratios: dict[str, float] = {}

    @property
    def placements(self) -> dict[str, ExpertPlacement]:
        """By layer, where its experts are."""
        return {path: layer.placement for path, layer in self.store.replicas.layers.items()}

    def end_step(self) -> None:
        """Note the loads of a step, and place experts anew where ranks have too unlike ones; all ranks
        together."""
        self.loads = self.observe()
        if self.store.replicas.layers:
            totals = self.total_loads()
            placements = self.placements
            self.ratios = {path: placements[path].ratio(totals[path]) for path in placements}
            self.place({p: balanced(old, totals[p]) for p, old in placements.items()})

    def total_loads(self) -> dict[str, list[float]]:
        """By layer, how often tokens of all ranks chose each expert."""
        sizes = {path: len(p.order) for path, p in self.placements.items()}
        zeros = torch.zeros(max(sizes.values()), dtype=torch.float64, device=self.store.device)
        rows = torch.stack([zeros.clone() for _ in sizes])
        for row, path in zip(rows, sizes, strict=True):
            if path in self.loads:
                row[: sizes[path]] = self.loads[path]
        self.store.groups.everyone.all_reduce_(rows, "choices of experts")
        return {
            path: row[:size].tolist() for row, (path, size) in zip(rows, sizes.items(), strict=True)
        }

    def place(self, placements: Mapping[str, ExpertPlacement]) -> None:
        """Bring experts to these places, by layer; all ranks together."""
        for path, placement in placements.items():
            layer = self.store.replicas.layers[path]
            if placement.homes != layer.placement.homes:
                self.move_homes(layer.names, placement.order)
            if placement != layer.placement:
                layer.place(placement)

    @torch.no_grad()
    def move_homes(self, names: tuple[str, ...], order: tuple[int, ...]) -> None:
        """Move values, gradients and states of the optimizer of experts to their homes in this order."""
        store, everyone = self.store, self.store.groups.everyone
        here = {
            name: self.tensors(store.parameters[name]) for name in names if name in store.parameters
        }
        mine = [
            MovedTensor(key, levels, name, str(tensor.dtype).removeprefix("torch."))
            for name, tensors in here.items()
            for (key, levels), tensor in tensors.items()
        ]
        rows = everyone.gather_objects(mine, "what moves with experts")
        moved = sorted({MovedTensor(*one) for row in rows for one in row})
        old, new = store.table, reordered(store.table, dict.fromkeys(names, order))
        specs = {name: spec for spec in new.state_tensors for name in spec.names()}
        for key, levels in dict.fromkeys((one.key, one.levels) for one in moved):
            dtypes = {m.name: getattr(torch, m.dtype) for m in moved if m[:2] == (key, levels)}
            local = {n: here[n][key, levels] for n in dtypes if n in here}
            copies = {name: tensor.clone() for name, tensor in local.items()}
            parameters = {name: store.parameters[name] for name in local}
            source = {
                n: shard_of(store, p, local[n].contiguous(), levels) for n, p in parameters.items()
            }
            before = {name: p.spec for name, p in parameters.items()}
            for name, parameter in parameters.items():
                parameter.spec = specs[name]
            target = {n: shard_of(store, p, copies[n], levels) for n, p in parameters.items()}
            for name, parameter in parameters.items():
                parameter.spec = before[name]
            levels_of_both = ShardLevels(levels, levels)
            moves = Redistribution.between(old, new, dtypes, levels_of_both)
            moves.run(everyone, source, target)
            for name, tensor in local.items():
                tensor.copy_(copies[name])
        store.reorder(new)

    def tensors(self, parameter: LocalParameter) -> dict[tuple[str, int], Tensor]:
        """What moves of a weight, by key and levels of flat sharding: it is changed in place. What the
        optimizer steps on is a part of the memory, unless it is a more exact copy."""
        tensors, leaf = {("memory", VALUES): parameter.flat}, parameter.leaf
        if leaf is None:
            return tensors
        if parameter.has_master:
            tensors["exact", STEPPED] = leaf.data
        if leaf.grad is not None:
            tensors["gradient", STEPPED] = leaf.grad
        if self.updates is not None and self.updates.leaves.get(parameter.name) is leaf:
            for key, value in local_items(self.updates)[parameter.name].items():
                if isinstance(value, Tensor) and value.shape == leaf.shape:
                    tensors[f"state {key}", STEPPED] = value
        return tensors
