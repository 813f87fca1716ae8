"""Operators written as finer ones compute the same, and take their coarse form no more."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from plait.ir.capture import trace
from plait.ir.capture.execute import execute
from plait.tests.ir.capture import eager

F64 = {"dtype": torch.float64}


class Applied(nn.Module):
    """A function of the batch and one parameter, summed up."""

    def __init__(self, body, *shape: int) -> None:
        super().__init__()
        self.weight, self.body = nn.Parameter(torch.randn(*shape, **F64)), body

    def forward(self, x):
        return self.body(x, self.weight).square().sum()


ROWS = torch.tensor([1, -1, 0, 2])


def written(x):
    x[x[..., 0] > 0] = 0.5
    return x


# fmt: off
BODIES = {
    "aten.linear.default": (lambda x, w: functional.linear(x, w, w[:, 0]), (6, 5)),
    "aten.addmm.default": (lambda x, w: torch.addmm(w[0], x[:, 0], w, alpha=2.0, beta=0.5), (5, 6)),
    "aten.baddbmm.default": (lambda x, w: torch.baddbmm(w[0, 0], x, w, beta=3), (4, 5, 6)),
    "aten.log_sigmoid.default": (lambda x, w: functional.logsigmoid(40 * x * w), (5,)),
    "aten.adaptive_avg_pool1d.default": (
        lambda x, w: functional.adaptive_avg_pool1d((x * w).transpose(1, 2), 1), (5,)),
    "aten.index.Tensor": (lambda x, w: (x * w)[torch.arange(4), ROWS], (5,)),
    "aten.index_put.default": (lambda x, w: written(x * w), (5,)),
    "aten.mse_loss_backward.default": (lambda x, w: functional.mse_loss(x * w, x), (5,)),
    "aten.binary_cross_entropy_with_logits.default": (
        lambda x, w: functional.binary_cross_entropy_with_logits(x * w, x.sigmoid()), (5,)),
    "aten.convolution.default": (lambda x, w: functional.conv1d(x, w, w[:, 0, 0]), (6, 3, 2)),
}
# fmt: on


# these remain, with this argument: no bias, no reduction
# fmt: off
REMAIN = {
    "aten.convolution.default": (2, None), "aten.mse_loss_backward.default": (3, 0),
    "aten.binary_cross_entropy_with_logits.default": (4, 0),
}
# fmt: on


@pytest.mark.parametrize("target", BODIES)
def test_same_value_and_gradient(target: str) -> None:
    torch.manual_seed(0)
    body, shape = BODIES[target]
    module, batch = Applied(body, *shape), {"x": torch.randn(4, 3, 5, **F64)}
    model = trace(module, batch)
    loss, gradients, _ = eager.run(model, module, batch)
    expected = module(**batch)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert max(eager.difference(gradients, module).values()) < 1e-12
    ops = [op for function in model.functions for op in function.ops if op.target == target]
    if target in REMAIN:
        place, value = REMAIN[target]
        assert [op.args[place] for op in ops] == [value]
    else:
        assert ops == []


def test_stochastic_depth_drops_whole_samples() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            mask = 0.75 + torch.rand((len(x), 1), dtype=x.dtype)
            return (x.div(0.75) * mask.floor_() * self.scale).sum(0).square().sum()

    module, batch = Dropped(), torch.ones(512, 3)
    model = trace(module, batch)
    parameters = dict(module.named_parameters())
    losses = [execute(model, parameters, [batch], seed=seed)[0].item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    for loss in losses:
        scaled = (loss / 3) ** 0.5 * 0.75  # samples whose every element is 1 / 0.75
        assert abs(scaled - round(scaled)) < 1e-2
        assert 350 < scaled < 420
