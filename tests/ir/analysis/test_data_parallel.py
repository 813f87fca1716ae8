"""What splitting the batch does to values that every device needs whole."""

import torch
from torch import nn

from plait.ir.analysis.data_parallel import split_batch
from plait.ir.analysis.dataflow import analyse_dataflow
from plait.ir.capture import trace
from plait.ir.model.layout import PARTIAL, REPLICATE


class Recent(nn.Module):
    """A queue whose new rows are those of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("queue", torch.randn(32, 8))

    def forward(self, x):
        h = self.linear(x)
        loss = (h @ self.queue.clone().t()).square().mean()
        self.queue.copy_(torch.cat([h.detach(), self.queue[: -len(h)]]))
        return loss


def test_new_values_of_buffers_are_gathered() -> None:
    model = trace(Recent(), torch.randn(4, 8))
    flow = analyse_dataflow(model)
    call = next(call for call in model.calls if call.updates)
    function = model.function(call.function)
    loss = next(o.value for o in function.outputs if o.tangent is not None)
    boundary = split_batch(function, flow, frozenset({loss})).boundary
    new = call.results.index(call.updates[0][0])
    assert flow.batch_shard(function, function.outputs[new].value) is not None
    assert boundary.outputs[new] == REPLICATE
    assert boundary.outputs[1 - new] == PARTIAL
