"""What options and plans say of training: the optimizer's states and the precisions."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ...ir.lowering.cast import HALF_PRECISIONS
from ...ir.model.tensor import ITEM_BYTES
from ...ir.plan.plan import STEP_VECTORS, Optimizer, OptimizerDemand, Plan
from .options import OPTIMIZERS, PER_TENSOR, PlanOptions

ONE_PASS = ("adamw", "adam", "sgd", "momentum")  # on a CPU, where elements have 32 bits or more


def optimizer_states(options: PlanOptions, item_bytes: int) -> Optimizer:
    """States per element of parameters whose narrowest have `item_bytes`: moments, the owner's copy of a
    tensor that is stepped whole, and master weights where a precision of 16 bits is asked for.

    A model that is of 16 bits by itself trains as in one process, without master weights.
    """
    name = options.optimizer
    master_weights = options.precision in HALF_PRECISIONS and item_bytes < ITEM_BYTES["float32"]
    size = ITEM_BYTES["float32"] if master_weights else item_bytes
    probed = options.probed_optimizer or named_optimizer(name, size)
    states = probed.states + _copies(probed.demand, master_weights)
    on_host = options.optimizer_on == "host"
    return Optimizer(
        name, states, size, probed.demand, master_weights, probed.step_vectors, on_host
    )


def named_optimizer(name: str, item_bytes: int) -> Optimizer:
    """The states and demand of an optimizer that is known by name, which steps on elements of so many
    bytes."""
    demand: OptimizerDemand = "per tensor" if name in PER_TENSOR else "elementwise"
    one_pass = name in ONE_PASS and item_bytes >= ITEM_BYTES["float32"]
    vectors = 0 if one_pass else STEP_VECTORS
    return Optimizer(name, OPTIMIZERS[name], 0, demand, step_vectors=vectors)


def _copies(demand: OptimizerDemand, master_weights: bool) -> int:
    """Copies of every parameter that are kept beside it."""
    return int(master_weights) + int(demand == "per tensor")


def training_of_plan(plan: Plan) -> dict[str, Any]:
    """The options that ask for the optimizer and the precisions of a plan again, for its model."""
    optimizer, master_weights = plan.optimizer, plan.optimizer.master_weights
    options: dict[str, Any] = {
        "optimizer": optimizer.name,
        "precision": plan.precision if master_weights else None,
        "gradient_precision": plan.gradient_precision,
        "expert_slots": plan.expert_slots,
        "optimizer_on": "host" if optimizer.on_host else "device",
    }
    states = max(optimizer.states - _copies(optimizer.demand, master_weights), 0)
    probed = replace(
        optimizer, states=states, state_bytes=0, master_weights=False, on_host=False
    )  # the rest follows from the other options
    named = optimizer.name in OPTIMIZERS
    if not named or probed != named_optimizer(optimizer.name, optimizer.state_bytes):
        options["probed_optimizer"] = probed
    return options
