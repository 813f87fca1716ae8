"""Gradients inside a forward are operators, whose own gradients are those of eager torch."""

import pytest
import torch
from torch import func, nn

from plait.ir.capture import trace
from plait.ir.capture.execute import execute
from plait.ir.errors import TraceError


class Net(nn.Module):
    def __init__(self, loss) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.loss = loss

    def forward(self, x):
        return self.loss(self.body, x)


def penalty(body, x):
    x = (x * 0.5).requires_grad_(True)
    (slope,) = torch.autograd.grad(body(x).sum(), x, create_graph=True)
    return (slope.norm(2, dim=1) - 1).square().mean() + body(x).mean()


def curvature(body, x):
    x = x.requires_grad_(True)
    value = body(x)
    (slope,) = torch.autograd.grad(value, x, torch.ones_like(value), create_graph=True)
    (bend,) = torch.autograd.grad(
        slope[:, 0], x, torch.ones(x.shape[0]).double(), create_graph=True
    )
    return (bend[:, 0] + value[:, 0] * slope[:, 1]).square().mean()


def inner_step(body, x):
    weight, bias = body[0].weight, body[0].bias
    first = body[2](torch.tanh(x @ weight.t() + bias)).square().mean()
    gradient, _ = torch.autograd.grad(first, (weight, bias), create_graph=True)
    return body[2](torch.tanh(x @ (weight - 0.1 * gradient).t() + bias)).square().mean()


def first_order(body, x):
    (slope,) = torch.autograd.grad(body(x).sum(), body[0].weight)
    return (body(x).square().mean() + slope.square().sum() * body[2].bias).sum()


def bends(body, x):
    bend = func.vmap(func.jacrev(func.grad(lambda point: body(point).squeeze())))(x)
    slope = func.vmap(func.grad(lambda point, scale: (body(point) * scale).sum()), (0, None))
    return bend.square().mean() + slope(x, body[2].bias).square().mean()


def along_a_line(body, x):
    value, change = func.jvp(body, (x * body[2].bias,), (torch.ones_like(x),))
    _, pull = func.vjp(body, x * body[2].bias)
    return (value * change).mean() + pull(change)[0].square().mean()


def rows_of_derivatives(body, x):
    jacobian = torch.autograd.functional.jacobian(lambda z: body(z).sum(0), x, create_graph=True)
    return jacobian.square().mean()


@pytest.mark.parametrize(
    "loss", [rows_of_derivatives, bends, along_a_line, penalty, curvature, inner_step, first_order]
)
def test_gradients_of_gradients(loss) -> None:
    torch.manual_seed(0)
    module, x = Net(loss), torch.randn(4, 6, dtype=torch.float64)
    model = trace(module, x.clone())
    value, gradients, _ = execute(
        model, {n: t.detach() for n, t in module.named_parameters()}, [x.clone()]
    )
    expected = module(x)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            torch.testing.assert_close(gradients[name], parameter.grad)


def test_a_gradient_through_random_numbers_is_refused() -> None:
    def noisy(body, x):
        x = x.requires_grad_(True)
        value = nn.functional.dropout(body(x), 0.5)
        return torch.autograd.grad(value.sum(), x, create_graph=True)[0].square().mean()

    with pytest.raises(TraceError, match=r"test_gradients.py:\d+.*grad through aten.dropout"):
        trace(Net(noisy), torch.randn(4, 6, dtype=torch.float64))


def test_a_transform_of_what_ends_gradients_is_refused() -> None:
    def stopped(body, x):
        return func.vmap(func.grad(lambda point: (body(point) * body(point).detach()).sum()))(
            x
        ).mean()

    with pytest.raises(TraceError, match=r"test_gradients.py:\d+.*detach or no_grad"):
        trace(Net(stopped), torch.randn(4, 6, dtype=torch.float64))
