"""What an engine can say of the sharding that a strategy gets: PyTorch's, what its styles say."""

from __future__ import annotations

from ...ir.analysis.parallel_styles import StyledFunction
from ...ir.plan.engines import Engine
from ...ir.plan.strategy import Strategy
from .model_shardings import ModelShardings

AXIS = "tp"


def refusal(engine: Engine, strategy: Strategy, shardings: ModelShardings) -> str | None:
    """Why an engine cannot run a strategy for a model; None where it can."""
    reason = engine.refusal(strategy)
    if reason is not None or not engine.styles or strategy.size(AXIS) == 1:
        return reason
    alone = Strategy(strategy.searched_axes)
    return next((text for f in shardings.functions if (text := unsaid(f, alone, shardings))), None)


def unsaid(name: str, strategy: Strategy, shardings: ModelShardings) -> str | None:
    """What no ParallelStyle says of a function's sharding; None where styles say all of it."""
    sharding = shardings.sharding(name, strategy, 1)
    if sharding is None:
        return None
    bound, tokens = shardings.bind(sharding), strategy.sequence_parallel
    call = next(c for c in shardings.model.calls if c.function == name)
    reason = next(StyledFunction(bound, AXIS, tokens).unsaid(call.parameters), None)
    split = f"over {AXIS}={strategy.size(AXIS)}"
    return reason and f"torch: no ParallelStyle splits {reason} {split}"
