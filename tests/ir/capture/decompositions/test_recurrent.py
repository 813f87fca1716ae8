"""Recurrent networks and bags of embeddings give what torch's own modules give, with gradients."""

import pytest
import torch
from torch import nn

from plait.ir.capture import trace
from plait.ir.capture.execute import execute


class Read(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(6, 6), layer

    def forward(self, x):
        out, states = self.layer(self.first(x))
        states = states if isinstance(states, tuple) else (states,)
        return out.square().mean() + sum(s.sin().mean() for s in states)


NETWORKS = {
    "lstm": nn.LSTM(6, 4, 2, batch_first=True),
    "lstm without biases": nn.LSTM(6, 4, bias=False, bidirectional=True),
    "gru": nn.GRU(6, 4, 2, batch_first=True, bidirectional=True),
    "tanh": nn.RNN(6, 4, batch_first=True),
    "relu": nn.RNN(6, 4, 2, nonlinearity="relu"),
    "projected": nn.LSTM(6, 4, proj_size=2, batch_first=True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    torch.manual_seed(0)
    module, batch = Read(NETWORKS[name]).double(), torch.randn(4, 5, 6, dtype=torch.float64)
    model = trace(module, batch)
    if name != "projected":
        assert len([op for f in model.functions for op in f.ops]) < 60
    _same_as_the_module(model, module, (batch,))


class Bag(nn.Module):
    def __init__(self, offsets, weighted: bool = False, **options) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 4, **options)
        self.offsets, self.weighted = offsets, weighted

    def forward(self, ids):
        weights = (ids.double() + 1) / 9 if self.weighted else None
        if self.offsets is None:
            return self.bag(ids, per_sample_weights=weights).square().mean()
        starts = torch.tensor(self.offsets)
        return self.bag(ids.flatten(), starts, weights).square().mean()


BAGS = [
    Bag(None, mode="mean"),
    Bag(None, mode="max"),
    Bag(None, mode="sum", weighted=True),
    Bag(None, mode="mean", padding_idx=2),
    Bag(None, mode="max", padding_idx=2),
    Bag([0, 3, 3, 10], mode="sum"),
    Bag([0, 3, 3, 10], mode="mean", padding_idx=2),
    Bag([0, 3, 24], mode="sum", include_last_offset=True),
]


@pytest.mark.parametrize("number", range(len(BAGS)))
def test_bags_of_embeddings(number: int) -> None:
    torch.manual_seed(0)
    module, batch = BAGS[number].double(), torch.randint(0, 9, (4, 6))
    _same_as_the_module(trace(module, batch), module, (batch,))


def _same_as_the_module(model, module: nn.Module, batch) -> None:
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    loss, gradients, _ = execute(model, {n: t.detach() for n, t in state.items()}, batch)
    expected = module(*batch)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-11, atol=1e-12)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-11)
