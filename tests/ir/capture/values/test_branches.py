"""Branches on values that a step does not need are decided by rules; others are refused with a line."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from plait.ir.capture import trace
from plait.ir.capture.execute import execute
from plait.ir.errors import TraceError


class Net(nn.Module):
    def __init__(self, change) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(6, 6).double(), change

    def forward(self, x):
        return self.change(self.linear(x)).square().mean()


def agrees(module: nn.Module, batch) -> None:
    """Loss and gradients of the trace are those of the module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = trace(module, batch)
    state = {n: t.detach() for n, t in module.named_parameters()}
    tensors = list(batch) if isinstance(batch, tuple) else [batch]
    loss, gradients, _ = execute(model, state, tensors)
    expected = module(*tensors)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


def finite(x):
    if torch.isinf(x).any() or not torch.isfinite(x).all():
        x = x.clamp(-1, 1)
    return x


def raising(x):
    if x.abs().max() > 1e9:
        raise ValueError("too large")
    return x


def masked_by_ones(x):
    mask = torch.ones(x.shape[:1], dtype=torch.bool)
    mask[2:] = True
    return x[mask] if not mask.all() else x * mask.sum().item()


def places_of_a_constant(x):
    mask = torch.arange(x.shape[0]) % 2 == 0
    return x[mask] + x[torch.nonzero(mask)[:, 0]]


def never_skipped(x):
    return x if torch.rand([]) >= 0.0 else x * 0


def equal_sides(x):
    if x.sum() > 0:
        return x + 1
    return 1 + x - 0 if x is None else x + 1


def two_sides(x):
    for factor in (2, 3):
        if x.sum() > 0:
            x = x * factor - 1
    return x / max((x > 0.5).sum(), 1)


def by_a_number(x):
    largest = x.abs().max().item()
    return x * (1 + 2 / largest) if largest < 0.1 or largest > 0.5 else x + largest


def experts_in_turn(x):
    chosen, result = x.detach().topk(2).indices, torch.zeros_like(x)
    for number in range(6):
        token, slot = torch.where(chosen == number)
        result.index_add_(0, token, (x[token] + number).tanh() * x[token, slot, None])
    return result


def experts_by_mask(x):
    chosen, result = x.detach().argmax(-1), torch.zeros_like(x)
    for number in range(3):
        mask = chosen == number
        if mask.any():
            result[mask] += F.layer_norm(x[mask], (6,)) * number
    return result


def experts_by_counts(x):
    chosen = x.detach().argmax(-1)
    order, counts = chosen.argsort(stable=True), F.one_hot(chosen, 6).sum(0).tolist()
    parts = x[order].split(counts, dim=0)
    outputs = [(part * (number + 2)).tanh() for number, part in enumerate(parts)]
    return torch.zeros_like(x).index_add(0, order, torch.cat(outputs))


SPARSE = (torch.arange(16).reshape(4, 4) % 3).double().to_sparse()


def by_a_sparse_matrix(x):
    edges = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 0]])
    matrix = torch.sparse_coo_tensor(edges, x[:4, 0].tanh(), (len(x), len(x))).coalesce()
    return torch.sparse.mm(matrix, x) + matrix.t() @ x + torch.sparse.mm(SPARSE, x)


def experts_that_are_hit(x):
    hot, result = F.one_hot(x.detach().topk(2).indices, 6).permute(2, 1, 0), torch.zeros_like(x)
    for number in torch.greater(hot.sum(dim=(-1, -2)), 0).nonzero(as_tuple=False):
        slot, token = torch.where(hot[number[0]])
        rows = x[None, token].reshape(-1, 6) * (int(number.item()) + 1) * (slot[:, None] + 1)
        result[token] += rows
    return result


def by_torch_cond(x):
    return torch.cond(x.sum() > 0, lambda x: x.exp() * 2, lambda x: x.sin(), (x,))


CHANGES = (
    finite, raising, masked_by_ones, places_of_a_constant, never_skipped, equal_sides, two_sides,
    by_a_number, by_a_sparse_matrix, experts_in_turn, experts_by_mask, experts_by_counts,
    experts_that_are_hit, by_torch_cond,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_decided(change) -> None:
    torch.manual_seed(0)
    agrees(Net(change), torch.randn(4, 6, dtype=torch.float64))


def test_a_check_that_is_left_out_is_named() -> None:
    with pytest.warns(UserWarning, match=r"if x.abs\(\).max\(\) > 1e9:`: a check that only raises"):
        trace(Net(raising), torch.randn(4, 6, dtype=torch.float64))


def test_sides_that_differ_are_refused() -> None:
    def either(x):
        return x[:2] * 2 if x.sum() > 0 else x

    with pytest.raises(TraceError, match=r"test_branches.py:\d+: `return x\[:2\] \* 2.*both sides"):
        trace(Net(either), torch.randn(4, 6))


class Masked(nn.Module):
    def __init__(self, loss) -> None:
        super().__init__()
        self.linear, self.loss = nn.Linear(6, 5).double(), loss

    def forward(self, x, y):
        return self.loss(self.linear(x), y)


def with_margin(s, y):
    rows, s = torch.where(y > 1)[0], s.clone()
    s[rows, y[rows]] -= 0.3
    return s.exp().mean()


MASKED = [
    with_margin,
    lambda s, y: F.cross_entropy(s, y, reduction="none")[y > 1].mean(),
    lambda s, y: F.cross_entropy(s[y > 1], y[y > 1]) + s[y > 1].square().mean(),
    lambda s, y: (s[y > 1] * 2.0).exp().sum(),
    lambda s, y: F.mse_loss(s[(m := y > 1)], s.detach().flip(1)[m] + 1),
    lambda s, y: s[y > 1].logsumexp(0).sum() + s[y > 1].amax(0).sum() - s[y > 1].min(),
    lambda s, y: F.gaussian_nll_loss(s[:, 0], s[:, 1], s[:, 2] ** 2, full=True),
    lambda s, y: (s.exp() - s.exp().detach() + y[:, None] - 1)[y > 1].log().mean(),  # others: -inf
]


@pytest.mark.parametrize("number", range(len(MASKED)))
def test_means_over_the_rows_of_a_mask(number: int) -> None:
    torch.manual_seed(0)
    batch = torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 5, (8,))
    agrees(Masked(MASKED[number]), batch)


def test_rows_of_a_mask_have_no_size() -> None:
    with pytest.raises(TraceError, match="rows that a mask selects"):
        trace(Masked(lambda s, y: s[y > 1].cumsum(0).mean()), (torch.randn(8, 6), torch.arange(8)))


def turns(x):
    while x.sum() > 0:
        x = x - 1
    return x


def branch_in_a_branch(x):
    if x.sum() > 0:
        x = x * 2
        if x.mean() > 1:
            x = x * 3
    return x


@pytest.mark.parametrize("change", [turns, branch_in_a_branch])
def test_a_side_that_asks_again_is_refused(change) -> None:
    with pytest.raises(TraceError, match="asks for values of tensors again"):
        trace(Net(change), torch.randn(4, 6, dtype=torch.float64))


def branch_beside(x):
    if x.sum() > 0:
        return x * 2
    if x.mean() < -1:
        x = x * 3
    return x


@pytest.mark.parametrize("shift", [-3.0, -0.5, 3.0])
def test_a_branch_behind_the_other_side(shift: float) -> None:
    torch.manual_seed(0)
    module = Net(lambda x: branch_beside(x + shift))
    agrees(module, torch.randn(4, 6, dtype=torch.float64))
