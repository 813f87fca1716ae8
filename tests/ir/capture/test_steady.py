"""What lies outside tensors counts, is refused with its line, or is proven not to matter."""

from __future__ import annotations

import random
from collections import OrderedDict

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plait.ir.capture import trace
from plait.ir.errors import TraceError
from plait.tests.ir.capture.judged import WIDTH, Net, agrees, batch, make, refused

COUNT = 0


class Remembering(Net):
    """A net with everything that a forward may change."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.count, self.flag, self.notes = 0, False, {"last": []}
        self.average = torch.zeros((), dtype=torch.float64)
        self.previous: torch.Tensor | None = None
        self.generator = random.Random(0)
        self.register_buffer("running", torch.zeros(WIDTH))

    def scores(self, x):
        return self.head(self.hidden(x))


class Counts(Remembering):
    def forward(self, x, y):
        self.count += 1
        return F.cross_entropy(self.scores(x) * (1 + self.count), y)


class Notes(Remembering):
    def forward(self, x, y):
        loss = F.cross_entropy(self.scores(x), y)
        self.notes["last"].append(loss)
        return loss


class CountsInClass(Remembering):
    def forward(self, x, y):
        type(self).calls += 1
        return F.cross_entropy(self.scores(x) * type(self).calls, y)


class CountsInGlobal(Remembering):
    def forward(self, x, y):
        global COUNT
        COUNT += 1
        return F.cross_entropy(self.scores(x) * COUNT, y)


class FirstIsOther(Remembering):
    def forward(self, x, y):
        scores = self.scores(x) * (1 if self.flag else 2)
        self.flag = True
        return F.cross_entropy(scores, y)


class Averages(Remembering):
    def forward(self, x, y):
        loss = F.cross_entropy(self.scores(x), y)
        self.average = self.average * 0.9 + loss.detach()
        return loss * (1 + self.average)


class AveragesInPlace(Remembering):
    def forward(self, x, y):
        self.average.mul_(0.9)
        return F.cross_entropy(self.scores(x), y) * (1 + self.average)


class UsesPrevious(Remembering):
    def forward(self, x, y):
        h = self.hidden(x)
        if self.previous is not None:
            h = h + self.previous
        self.previous = h.detach()
        return F.cross_entropy(self.head(h), y)


class Draws(Remembering):
    def forward(self, x, y):
        return F.cross_entropy(self.scores(x) * self.draw(), y)

    def draw(self):
        return random.random()


class DrawsFromNumpy(Draws):
    def draw(self):
        return float(numpy.random.rand())


class DrawsFromItsOwn(Draws):
    def draw(self):
        return self.generator.random()


class Registers(Remembering):
    def forward(self, x, y):
        self.register_buffer("late", torch.ones(WIDTH, dtype=x.dtype))
        return F.cross_entropy(self.scores(x * self.late), y)


class Freezes(Remembering):
    def forward(self, x, y):
        self.head.weight.requires_grad_(False)
        return F.cross_entropy(self.scores(x), y)


class Replaces(Remembering):
    """A buffer that is bound to a new tensor."""

    def forward(self, x, y):
        self.running = self.running * 0.9 + x.mean(0) * 0.1
        return F.cross_entropy(self.scores(x - self.running), y)


class OnlyWrites(Remembering):
    """What is written and never read does not matter, nor a flag that stays."""

    def forward(self, x, y):
        h = self.hidden(x)
        self.previous, self.flag = h, True
        return F.cross_entropy(self.head(h), y)


class Scaled(nn.Module):
    """A loss with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, scores, given):
        return F.cross_entropy(scores * self.temperature, given["y"])


class Scores(Net):
    def forward(self, x, y):
        return self.head(self.hidden(x))


REFUSED = (
    (Counts, "count from 1 to 2"),
    (Notes, "number of items from 1 to 2"),
    (CountsInClass, "calls from"),
    (CountsInGlobal, "COUNT from 1 to 2"),
    (FirstIsOther, "flag from False to True"),
    (Averages, "average"),
    (AveragesInPlace, "register_buffer"),
    (UsesPrevious, "previous"),
)


@pytest.mark.parametrize(("kind", "text"), REFUSED)
def test_state_that_matters_is_refused_with_its_line(kind, text: str) -> None:
    model = make(kind)
    refused(model, batch(), text, at=kind.forward)
    assert (model.count, model.flag, model.notes, model.previous) == (0, False, {"last": []}, None)
    assert (COUNT, CountsInClass.calls) == (0, 0)
    assert type(model.average) is torch.Tensor
    assert float(model.average) == 0


@pytest.mark.parametrize("kind", [Draws, DrawsFromNumpy, DrawsFromItsOwn])
def test_numbers_that_are_drawn(kind) -> None:
    model = make(kind)
    before = random.getstate(), numpy.random.get_state()[1].tolist(), model.generator.getstate()
    refused(model, batch(), "draws from")
    assert before == (
        random.getstate(),
        numpy.random.get_state()[1].tolist(),
        model.generator.getstate(),
    )


def test_tables_of_a_module_that_the_forward_changes() -> None:
    refused(make(Registers), batch(), "registers buffer late")
    refused(make(Freezes), batch(), "whether a parameter is trained")
    agrees(make(Replaces), batch())


def test_what_does_not_matter_is_traced() -> None:
    model = make(OnlyWrites)
    agrees(model, batch())
    model = make(OnlyWrites)
    trace(model, batch())
    assert model.previous is None
    assert model.flag is False


def test_a_loss_with_parameters() -> None:
    loss = Scaled()
    refused(make(Scores), batch(), "would not be trained", at=Scaled.forward, loss_fn=loss)
    refused(make(Scores), batch(), "would not be trained", loss_fn=lambda o, b: loss(o, b))
    loss.temperature.requires_grad_(False)
    agrees(make(Scores), batch(), loss)


def test_a_closure_that_counts() -> None:
    steps = 0

    def loss(scores, given):
        nonlocal steps
        steps += 1
        return F.cross_entropy(scores, given["y"]) * steps

    refused(make(Scores), batch(), "steps from 1 to 2", loss_fn=loss)
    assert steps == 0


def test_objects_in_the_batch() -> None:
    class Divided(Net):
        def forward(self, x, y, items):
            return super().forward(x, y) / (items if isinstance(items, int) else 1)

    assert [(c.path, c.text) for c in trace(make(Divided), batch(items=8)).constants] == [
        (("items",), "8")
    ]
    refused(make(Divided), batch(items=object()), "batch['items'] is a object")


class Making(OrderedDict[str, type]):
    """Makes what is looked up in it, as the table of activations of transformers does."""

    def __getitem__(self, key: str):
        return super().__getitem__(key)()


def test_a_trace_leaves_everything_as_it_was() -> None:
    class Hooking(Net):
        """Installs hooks at its first forward, as transformers does."""

        def __init__(self) -> None:
            super().__init__()
            self.installed = False
            self.table = Making(one=nn.ReLU, other=nn.Bilinear)  # of which one needs arguments

        def forward(self, x, y):
            if not self.installed:
                self.encoder.layers[0].register_forward_hook(lambda m, given, made: made * 2)
                self.installed = True
            return super().forward(x, y)

    model = make(Hooking).train()
    model.encoder.layers[1].eval()
    flags = [m.training for m in model.modules()]
    state = {n: t.clone() for n, t in model.state_dict().items()}
    random_state = torch.get_rng_state()
    first, second = (trace(model, batch()) for _ in range(2))
    assert first == second
    assert not model.encoder.layers[0]._forward_hooks
    assert not model.installed
    assert list(model.table.values()) == [nn.ReLU, nn.Bilinear]
    assert flags == [m.training for m in model.modules()]
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    with pytest.raises(TraceError):
        trace(model, {"x": batch()["x"], "y": batch()["y"][:1]})
    assert not model.encoder.layers[0]._forward_hooks
    agrees(model, batch())


def test_the_judge_can_fail() -> None:
    with pytest.raises(pytest.fail.Exception):
        refused(make(OnlyWrites), batch(), "anything")
