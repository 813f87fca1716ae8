"""Prices by content: equal questions on layers are priced once, whichever search asks them."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ...cost_model.execution_model import execution_of
from ...ir.devices.cluster import Cluster
from ...ir.files.json_files import digest
from ...ir.lowering.cast import narrowest_item_bytes
from ...ir.model.model import Model
from ..compression.activations import ActivationCompressor
from ..compression.collectives import CollectiveCompressor
from ..pricing.candidate_pricer import CandidatePricer
from ..pricing.function_prices import FunctionPrices
from ..question.options import PlanOptions
from ..question.training import optimizer_states
from ..sharding.model_values import ModelValues

MOST = 16  # prices of each kind that are kept; the oldest go


class PriceCache:
    """The prices of all models that one process plans."""

    def __init__(self) -> None:
        self.model_values: dict[int, ModelValues] = {}
        self.function_prices: dict[object, FunctionPrices] = {}
        self.pricers: dict[object, CandidatePricer] = {}
        self.moved_pricers: dict[object, tuple[CandidatePricer, CandidatePricer]] = {}

    def pricer(self, model: Model, cluster: Cluster, options: PlanOptions) -> CandidatePricer:
        """The pricer of candidates of a model's batch under these options."""
        item = narrowest_item_bytes(model.parameters)
        optimizer = optimizer_states(options, item)
        compress = options.compress if options.target.extras else "none"
        execution = execution_of(options.engine, optimizer, options.gradient_precision, item)
        routing = replace(options.routing, spare_slots=options.expert_slots)
        activations = ActivationCompressor(compress, options.quality)
        execution = replace(
            execution,
            even_layers=options.target.even,
            routing=routing,
            rows_per_centroid=activations.rows_per_centroid,
        )
        compressor = CollectiveCompressor(compress, options.quality, options.optimizer)
        functions = digest((model, cluster, execution, compress, options.quality))
        if functions not in self.function_prices:
            values = self.values(model)
            prices = FunctionPrices(model, cluster, execution, activations, values=values)
            keep_recent(self.function_prices, functions, prices, MOST)
        key = functions, optimizer, options.optimizer
        if key not in self.pricers:
            prices = self.function_prices[functions]
            pricer = CandidatePricer(prices, model.batch, optimizer, compressor)
            keep_recent(self.pricers, key, pricer, MOST)
        return self.pricers[key]

    def values(self, model: Model) -> ModelValues:
        """The facts on a model's values, which hold on every cluster."""
        known = self.model_values.get(id(model))
        if known is None:
            known = ModelValues(model)  # keeps the model, so that no other one takes its place
            keep_recent(self.model_values, id(model), known, MOST)
        return known

    def moved(self, pricer: CandidatePricer, cluster: Cluster) -> CandidatePricer:
        """The pricer of the same model on another cluster, under the shardings that were found."""
        key = id(pricer.function_prices), pricer.global_batch, pricer.optimizer, digest(cluster)
        if key not in self.moved_pricers:
            prices, compressor = pricer.function_prices.on(cluster), pricer.stage_pricer.compressor
            other = CandidatePricer(prices, pricer.global_batch, pricer.optimizer, compressor)
            keep_recent(self.moved_pricers, key, (pricer, other), MOST)
        return self.moved_pricers[key][1]


def keep_recent(cache: dict[Any, Any], key: object, value: object, most: int) -> None:
    """Add a value; the oldest go where there are `most`."""
    while len(cache) >= most:
        cache.pop(next(iter(cache)))
    cache[key] = value
