"""Products of two element types: fake tensors take them, and torch refuses them when they run."""

from __future__ import annotations

from torch import Tensor, fx

from ...errors import TraceError
from ...ops.matrix import ONE_TYPE


def refuse_mixed_products(node: fx.Node) -> None:
    """Raises TraceError for a product whose floating-point operands have more than one type, as where a
    model in half precision meets a tensor that its code makes in float32."""
    name = str(node.target).split(".")[1:2]
    if node.op != "call_function" or not ONE_TYPE.intersection(name):
        return
    values = [operand.meta.get("val") for operand in node.all_input_nodes]
    types = {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}
    if len(types) > 1:
        texts = sorted(str(t).removeprefix("torch.") for t in types)
        raise TraceError(
            f"{name[0]} of {' and '.join(texts)}, which torch refuses: write a cast (`.to(x.dtype)`), "
            "or plan in the precision that the model runs in"
        )
