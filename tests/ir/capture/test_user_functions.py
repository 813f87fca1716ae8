"""A backward that the user wrote is the backward of the traced model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from plait.ir.capture import trace
from plait.tests.ir.capture.judged import CLASSES, WIDTH, Net, agrees, batch, make, refused


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.factor * gradient, None


class ReturnsItsInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0.1).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        gradient = gradient.clone()
        gradient[x.abs() > 1] = 0
        return gradient


class SetUp(torch.autograd.Function):
    @staticmethod
    def forward(x, y, scale=2.0):
        return x * y * scale, x + y

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, y, ctx.scale = inputs
        ctx.save_for_backward(x, y, output[0])

    @staticmethod
    def backward(ctx, first, second):
        x, y, product = ctx.saved_tensors
        assert ctx.needs_input_grad == (True, True, False)
        return first * y + product, second.sign() * x, None


class Balanced(torch.autograd.Function):
    """The usual way to attach a balance loss: it enters in backward alone."""

    @staticmethod
    def forward(ctx, output, loss):
        ctx.save_for_backward(loss)
        return output

    @staticmethod
    def backward(ctx, gradient):
        (loss,) = ctx.saved_tensors
        return gradient, torch.ones_like(loss) * 0.3


class TopTwo(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        values, places = x.topk(2, -1)
        ctx.save_for_backward(places)
        ctx.mark_non_differentiable(places)
        ctx.width = x.shape[-1]
        return values, places

    @staticmethod
    def backward(ctx, gradient, none):
        (places,) = ctx.saved_tensors
        wide = gradient.new_zeros(*gradient.shape[:-1], ctx.width)
        return wide.scatter(-1, places, gradient * 2) + none.sum()


class Broadcast(torch.autograd.Function):
    """Its backward leaves the sum over samples to autograd."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        return gradient * scale, gradient * x * 0.5


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return x * 2, x * 3

    @staticmethod
    def backward(ctx, one, other):
        return one if other is None else other


reverse = Reversed.apply  # a reference taken before any trace


class Adversarial(Net):
    def __init__(self) -> None:
        super().__init__()
        self.domain = nn.Linear(WIDTH, 2)

    def forward(self, x, y, source):
        h = self.hidden(x)
        domain = F.cross_entropy(self.domain(reverse(h, 0.7)), source)
        return F.cross_entropy(self.head(h), y) + domain


class Attached(Net):
    def forward(self, x, y):
        h = self.hidden(x)
        h = Balanced.apply(h, (h.softmax(-1).mean(0) ** 2).sum())
        return F.cross_entropy(self.head(h), y)


class Pair(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x, y):
        h = self.hidden(x)
        one, two = SetUp.apply(h, self.embed(x))
        h = Broadcast.apply(one + two, self.scale)
        values, _ = TopTwo.apply(h)
        return F.cross_entropy(self.head(h), y) + values.square().mean()


class Unused(Net):
    """One of two outputs is not used: its gradient is zero."""

    def forward(self, x, y):
        _, two = SetUp.apply(self.hidden(x), self.embed(x))
        return F.cross_entropy(self.head(two), y)


class Frozen(Net):
    def forward(self, x, y):
        with torch.no_grad():
            h = Reversed.apply(self.hidden(x), 1.0)
        return F.cross_entropy(self.head(Reversed.apply(x, 1.0) + h), y)


class Checkpointed(Net):
    def forward(self, x, y):
        h = checkpoint(self.encoder, self.embed(x), use_reentrant=True)
        return F.cross_entropy(self.head(Reversed.apply(h, 0.5)), y)


def test_reversed_gradients() -> None:
    agrees(make(Adversarial), batch(source=torch.randint(0, 2, (4,))))


@pytest.mark.parametrize("function", [StraightThrough.apply, ReturnsItsInput.apply])
def test_functions_in_every_layer_share_one_function(function) -> None:
    traced = agrees(make(lambda: Net(function)), batch())
    assert len(traced.functions) == len(trace(make(Net), batch()).functions)


@pytest.mark.parametrize("kind", [Attached, Pair, Unused, Frozen, Checkpointed])
def test_functions_of_many_forms(kind) -> None:
    agrees(make(kind), batch())


def test_a_function_in_the_loss() -> None:
    class Scores(Net):
        def forward(self, x, y):
            return self.head(self.hidden(x))

    agrees(
        make(Scores),
        batch(),
        lambda scores, given: F.cross_entropy(Reversed.apply(scores, -2.0), given["y"]),
    )


def test_an_equal_forward_with_another_backward_is_another_function() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x, y):
            for number, layer in enumerate(self.layers):
                x = Reversed.apply(layer(x), 0.5 + number)
            return F.cross_entropy(self.head(x), y)

    agrees(make(Two), batch())


def test_what_cannot_be_recorded_names_the_line() -> None:
    refused(make(lambda: Net(InPlace.apply)), batch(), "mark_dirty", "InPlace")
    refused(make(lambda: Net(lambda h: Half.apply(h)[0])), batch(), "set_materialize_grads")


def test_tracing_leaves_functions_as_they_were() -> None:
    trace(make(Adversarial), batch(source=torch.randint(0, 2, (4,))))
    x = torch.ones(3, requires_grad=True)
    Reversed.apply(x, 2.0).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((3,), -2.0))
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)


def test_the_judge_can_fail() -> None:
    model = make(Adversarial)
    sample = batch(source=torch.randint(0, 2, (4,)))
    trace(model, sample)
    backward, Reversed.backward = Reversed.backward, staticmethod(lambda ctx, g: (g, None))
    try:
        traced = trace(model, sample)
    finally:
        Reversed.backward = backward
    assert isinstance(Tensor, type)
    with pytest.raises(AssertionError):
        _judge(traced, model, sample)


def _judge(traced, model, given) -> None:
    from plait.ir.capture.execute import execute
    from plait.tests.ir.capture import eager

    _, gradients, _ = execute(traced, eager.state_tensors(model), eager.tensors(traced, given))
    model(**given).backward()
    assert max(eager.difference(gradients, model).values()) < 1e-9
