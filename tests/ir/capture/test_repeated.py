"""Recordings of equal modules are copied only where each module would have recorded the same."""

import contextlib

import pytest
import torch
from torch import nn

from plait.ir.capture import trace
from plait.ir.capture.repeated import repeats

LAYERS = 4
CALLS = [0]


class Block(nn.Module):
    """A block with some attributes of its own; `setting` is shared by all."""

    def __init__(self, index, setting):
        super().__init__()
        self.index, self.setting = index, setting
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x, *others):
        y = self.down(torch.relu(self.up(x)) * self.setting["factor"]) * self.scale
        return self.added(x, y, *others)

    def added(self, x, y):
        return torch.tanh(x) + y.sigmoid()


class Plain(Block):
    pass


class SameTensor(Block):
    """`to` gives the argument back, which later operators read as its result."""

    def added(self, x, y):
        return x.to(x.dtype) + torch.tanh(x) + y


class ReadsIndex(Block):
    def added(self, x, y):
        return torch.tanh(x) * (self.index + 1) + y


class ReadsItsPlace(Block):
    def added(self, x, y):
        return torch.tanh(x) * (1 + 2 * (self.setting["last"] is self)) + y


class ReadsItsTable(Block):
    def added(self, x, y):
        return torch.tanh(x) * vars(self)["index"] + y


class ReadsOthers(Block):
    def added(self, x, y):
        return torch.tanh(x) * (self.setting["first"].index + 1) + y


class ReadsGlobal(Block):
    def added(self, x, y):
        return torch.tanh(x) * CALLS[0] + y


class WritesBuffer(Block):
    def added(self, x, y):
        self.scale.mul_(2)
        return torch.tanh(x) + y


class TakesList(Block):
    def added(self, x, y, outputs):
        outputs.append(y)
        return torch.tanh(x) + y.sigmoid() * len(outputs)


class Captures(Block):
    def added(self, x, y):
        return torch.tanh(x) + y.sigmoid() + self.setting["input"]


class Stack(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.setting = {"factor": 2}
        self.blocks = nn.ModuleList(kind(n, self.setting) for n in range(LAYERS))
        if kind in (ReadsOthers, ReadsItsPlace):
            self.setting |= {"first": self.blocks[0], "last": self.blocks[-1]}

    def forward(self, x):
        CALLS[0] = 0
        outputs = []
        if isinstance(self.blocks[0], Captures):
            self.setting["input"] = x
        for block in self.blocks:
            CALLS[0] += isinstance(block, ReadsGlobal)
            x = block(x, outputs) if isinstance(block, TakesList) else block(x)
        CALLS[0] = 0
        self.setting.pop("input", None)
        return x.square().mean()


def traced(kind):
    """The trace, and how many calls of it were copied."""
    torch.manual_seed(0)
    copies = []
    copied = repeats.Repeats.copied
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats.Repeats, "copied", lambda *a: copies.append(a) or copied(*a))
        return trace(Stack(kind), torch.randn(2, 8)), len(copies)


@pytest.mark.parametrize(
    ("kind", "copies"),
    [
        (Plain, LAYERS - 2),  # the first block's input wants no gradient
        (SameTensor, LAYERS - 2),
        *((kind, None) for kind in (ReadsIndex, ReadsItsPlace, ReadsItsTable, ReadsOthers)),
        *((kind, None) for kind in (ReadsGlobal, WritesBuffer, TakesList, Captures)),
    ],
)
def test_copies_are_what_each_module_records(kind, copies, monkeypatch):
    model, count = traced(kind)
    assert copies is None or count == copies
    monkeypatch.setattr(repeats.Repeats, "calls", lambda _: contextlib.nullcontext())
    expected, none = traced(kind)
    assert none == 0
    assert model == expected
