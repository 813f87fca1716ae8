"""Choice of compression programs for activations and their gradients: stage transfers and the
all-reduces inside calls.

Rounding activations is biased without error feedback, so convergence is not guaranteed: `auto` does
it only under quality `all`, and only where messages plus codecs are faster by a fraction of the
step. The name of an algorithm forces its programs wherever they apply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from ...cost_model.communication.compressed_all_reduce import CompressedReductions
from ...cost_model.communication.stage_transfer import TransferPayload, price_transfer
from ...cost_model.operators.function_cost import FunctionCostTable
from ...ir.compression.program import CompressionProgram
from ...ir.compression.registry import ALGORITHMS, algorithm
from ...ir.devices.cluster import Cluster, Device, Link
from ...ir.model import Model
from ...ir.plan.strategy import ROLES
from ..strategy_space import ModelAxes
from .collectives import MINIMUM_GAIN


class PricedFunction(Protocol):
    """Cost table of one function under one strategy."""

    @property
    def costs(self) -> FunctionCostTable: ...


class FunctionCosts(Protocol):
    """Prices of a model's functions (implemented by `FunctionPrices`)."""

    @property
    def model(self) -> Model: ...
    @property
    def cluster(self) -> Cluster: ...
    def table(
        self, name: str, model_axes: ModelAxes, local_batch: int
    ) -> PricedFunction | None: ...
    def inner_batch_degree(self, model_axes: ModelAxes) -> int: ...


class ActivationCompressor:
    """Chooses programs for activations. `compress`: `none`, `auto` or the name of an algorithm."""

    def __init__(self, compress: str = "none", quality: str = "safe") -> None:
        self.forced = compress not in ("none", "auto")
        algorithms = [algorithm(compress)] if self.forced else []
        if compress == "auto" and quality == "all":
            algorithms = list(ALGORITHMS.values())
        programs = [p for one in algorithms for p in one.programs if p.payload == "activations"]
        self.sends = tuple(p for p in programs if p.collective == "send")
        self.all_reduces = tuple(p for p in programs if p.collective == "all_reduce")
        self.reduced: dict[tuple[ModelAxes, int], CompressedReductions | None] = {}

    def reductions(
        self, function_prices: FunctionCosts, model_axes: ModelAxes, samples: int
    ) -> CompressedReductions | None:
        """Programs of the all-reduces inside calls of `samples` per device; None: plain."""
        roles = [role for role, size in model_axes if ROLES[role].operators and size > 1]
        if not self.all_reduces or not roles:
            return None
        key = model_axes, samples
        if key not in self.reduced:
            self.reduced[key] = self.fastest(function_prices, model_axes, samples, roles)
        return self.reduced[key]

    def fastest(
        self,
        function_prices: FunctionCosts,
        model_axes: ModelAxes,
        samples: int,
        roles: Sequence[str],
    ) -> CompressedReductions | None:
        plain = model_seconds(function_prices, model_axes, samples, None)
        candidates = [
            CompressedReductions(dict.fromkeys(roles, p), function_prices.cluster)
            for p in self.all_reduces
        ]
        seconds = [model_seconds(function_prices, model_axes, samples, one) for one in candidates]
        least = min(range(len(candidates)), key=seconds.__getitem__)
        if seconds[least] == plain:  # nothing that is large enough
            return None
        return (
            candidates[least]
            if self.forced or saves_enough(plain, seconds[least], 1, 0.0)
            else None
        )

    def stage_transfer_program(
        self, payload: TransferPayload, link: Link, device: Device, rounds: int, work: float
    ) -> CompressionProgram | None:
        """Program of the transfers to the next stage, in both directions in each of `rounds`
        rounds; `work`: seconds of a step apart from these transfers. None: sent uncompressed.
        """
        if not self.sends or not payload.large.elements:
            return None
        priced = [(price_transfer(payload, link, p, device).seconds, p) for p in self.sends]
        seconds, program = min(priced, key=lambda pair: pair[0])
        plain = price_transfer(payload, link, None, device).seconds
        return program if self.forced or saves_enough(plain, seconds, 2 * rounds, work) else None


def model_seconds(
    function_prices: FunctionCosts,
    model_axes: ModelAxes,
    samples: int,
    reductions: CompressedReductions | None,
) -> float:
    """Seconds of all calls of a model, forward and backward, for `samples` samples per device."""
    total = 0.0
    for name, count in Counter(call.function for call in function_prices.model.calls).items():
        table = function_prices.table(name, model_axes, samples)
        if table is not None:
            degree = function_prices.model.batch // (
                samples * function_prices.inner_batch_degree(model_axes)
            )
            cost = table.costs.at(samples, "keep", degree, reductions)
            total += count * (cost.forward.seconds + cost.backward.seconds)
    return total


def saves_enough(plain: float, seconds: float, times: int, work: float) -> bool:
    """Whether `times` messages of `seconds`, not `plain`, save MINIMUM_GAIN of a step."""
    return times * (plain - seconds) > MINIMUM_GAIN * (work + times * plain)
