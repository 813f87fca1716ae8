"""Compression of the all-reduces inside calls, where it pays off over the whole model."""

from __future__ import annotations

from collections import Counter

from ...cost_model.communication.compressed_all_reduce import CompressedReductions
from ...ir.cached import cached_method
from ...ir.plan.strategy import ROLES
from ..compression.activations import ActivationCompressor
from ..question.candidate import CallPoint
from ..question.strategy_space import ModelAxes
from .function_tables import FunctionTables


class ActivationReductions:
    """Chooses the programs of all-reduces of activations from the tables of all functions."""

    def __init__(self, tables: FunctionTables, compressor: ActivationCompressor) -> None:
        self.tables, self.compressor = tables, compressor

    def choose(self, model_axes: ModelAxes, samples: int) -> CompressedReductions | None:
        """Programs of the all-reduces inside calls of `samples` per device; None: plain."""
        if not self.compressor.all_reduces:
            return None
        return self.fastest(model_axes, samples)

    @cached_method
    def fastest(self, model_axes: ModelAxes, samples: int) -> CompressedReductions | None:
        """The fastest program over all axes that split operators, if it saves enough."""
        roles = [role for role, size in model_axes if ROLES[role].operators and size > 1]
        if not roles:
            return None
        point = CallPoint(model_axes, samples)
        plain = self.model_seconds(point, None)
        candidates = [
            CompressedReductions(dict.fromkeys(roles, program), self.tables.cluster)
            for program in self.compressor.all_reduces
        ]
        seconds = [self.model_seconds(point, candidate) for candidate in candidates]
        least = min(range(len(candidates)), key=seconds.__getitem__)
        if seconds[least] == plain:  # nothing that is large enough
            return None
        accepted = self.compressor.accepts(plain, seconds[least], times=1, work_seconds=0.0)
        return candidates[least] if accepted else None

    def model_seconds(self, point: CallPoint, reductions: CompressedReductions | None) -> float:
        """Seconds of all calls of the model, forward and backward."""
        total, tables = 0.0, self.tables
        for name, count in Counter(call.function for call in tables.model.calls).items():
            table = tables.table(name, point)
            if table is not None:
                cost = table.costs.at(point.samples, "keep", tables.replicas(point), reductions)
                total += count * (cost.forward.seconds + cost.backward.seconds)
        return total
