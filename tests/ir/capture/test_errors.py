"""What cannot be traced is refused with the user's file and line, and what to do instead."""

import re

import pytest
import torch
from torch import nn

from plait.ir.capture import trace
from plait.ir.errors import TraceError


class Model(nn.Module):
    def __init__(self, body) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.body = body

    def forward(self, x):
        return self.body(self.linear(x)).sum()


def branch(x):
    if x.sum() > 0:  # line: branch
        return x
    return x[:2] * x.shape[0]


def item(x):
    return x.repeat(int(x.max().item()), 1)  # line: item


def shape(x):
    return x[x.unique().long()]  # line: shape


def random(x):
    return x + torch.poisson(x.abs())  # line: random


def strided(x):
    x.as_strided((4,), (9,)).zero_()  # line: strided
    return x


def broken(x):
    return x @ x  # line: broken


def huge(x):
    return x + torch.tensor([1.0] * 70_000)[:8]  # line: huge


def line_of(fragment: str) -> int:
    with open(__file__, encoding="utf-8") as file:
        return next(n for n, text in enumerate(file, 1) if f"line: {fragment}" in text)


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        (branch, "torch.where"),
        (item, "is no size"),
        (shape, "fixed size"),
        (random, "pass the numbers in the batch"),
        (strided, "out of place"),
        (broken, "RuntimeError"),
        (huge, "register_buffer"),
    ],
)
def test_the_message_names_file_line_and_remedy(body, remedy: str) -> None:
    with pytest.raises(TraceError, match=re.escape(remedy)) as caught:
        trace(Model(body), torch.randn(4, 8))
    assert f"{__file__}:{line_of(body.__name__)}" in str(caught.value)


def test_a_failed_trace_leaves_the_module_and_torch_as_they_were() -> None:
    model = Model(branch)
    weight = model.linear.weight
    with pytest.raises(TraceError):
        trace(model, torch.randn(4, 8))
    assert model.linear.weight is weight
    assert not torch.compiler.is_compiling()
    assert isinstance(model(torch.randn(4, 8)), torch.Tensor)


def test_a_model_without_a_loss() -> None:
    with pytest.raises(TraceError, match="loss_fn"):
        trace(nn.Linear(8, 8), torch.randn(4, 8))


def test_writing_into_a_parameter() -> None:
    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            with torch.no_grad():
                self.linear.weight.mul_(0.5)
            return self.linear(x).sum()

    with pytest.raises(TraceError, match=r"writes into parameter linear\.weight"):
        trace(Writer(), torch.randn(4, 8))
