"""What an engine can say of a sharding that was found: PyTorch's splits linear layers and embeddings.

A weight is a linear layer's where it is transposed before its product, an embedding's where its rows
are looked up. Joined weights, of which every part is split, and those of other modules have no
ParallelStyle.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...ir.model.model import Function
from ...ir.plan.strategy import Strategy
from ..question.engines import Engine
from .model_shardings import ModelShardings

STYLED = {"aten.t.default", "aten.transpose.int", "aten.permute.default", "aten.embedding.default"}


def refusal(engine: Engine, strategy: Strategy, shardings: ModelShardings) -> str | None:
    """Why an engine cannot run a strategy for a model; None where it can."""
    reason = engine.refusal(strategy)
    if reason is not None or not engine.styles or strategy.size("tp") == 1:
        return reason
    return next(
        (text for f in shardings.model.functions for text in unsaid(f, strategy, shardings)), None
    )


def unsaid(function: Function, strategy: Strategy, shardings: ModelShardings) -> Iterator[str]:
    """The weights of a function that no ParallelStyle splits as they are split."""
    sharding = shardings.sharding(function.name, strategy, 1)
    if sharding is None:
        return
    place = sharding.mesh.index("tp")
    call = next(c for c in shardings.model.calls if c.function == function.name)
    styled = {v for op in function.forward_ops if op.target in STYLED for v in op.operands()[:1]}
    shards = [
        (layout[place], item.value)
        for item, layout in zip(function.inputs, sharding.boundary.inputs, strict=True)
        if item.kind == "parameter"
    ]
    for name, (placement, value) in zip(call.parameters, shards, strict=False):
        matrix = len(function.types[value].shape) > 1
        if isinstance(placement, tuple) and (placement[1] or (matrix and value not in styled)):
            joined = "a joined weight" if placement[1] else "not a linear layer's or an embedding's"
            yield f"torch: no ParallelStyle splits {name} ({joined}) over tp={strategy.size('tp')}"
