"""Frozen parameters, caches and diagonals that a forward writes, against the module in eager torch."""

import math

import pytest
import torch
from torch import nn

from plait.ir.capture import trace
from plait.ir.capture.execute import execute
from plait.ir.errors import TraceError
from plait.tests.ir.capture.judged import agrees


class Averaged(nn.Module):
    """A frozen copy follows the trained weights, by data or in place."""

    def __init__(self, by_data: bool) -> None:
        super().__init__()
        self.trained, self.copy = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()
        self.copy.requires_grad_(False)
        self.by_data = by_data

    @torch.no_grad()
    def follow(self) -> None:
        for copied, of in zip(self.copy.parameters(), self.trained.parameters(), strict=True):
            if self.by_data:
                copied.data.mul_(0.9).add_(of.data, alpha=0.1)
                copied.data = copied.data * 1.0
            else:
                copied.lerp_(of, 0.1)

    def forward(self, x):
        self.follow()
        return (self.trained(x) - self.copy(x)).square().mean()


@pytest.mark.parametrize("by_data", [False, True])
def test_frozen_parameters_may_be_written(by_data: bool) -> None:
    module, x = Averaged(by_data), torch.randn(4, 6, dtype=torch.float64)
    model = trace(module, x)
    before = {n: t.detach().clone() for n, t in module.named_parameters()}
    loss, gradients, written = execute(model, before, [x])
    expected = module(x)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients["trained.weight"], module.trained.weight.grad)
    torch.testing.assert_close(written["copy.weight"], module.copy.weight.detach())


class Copying(nn.Module):
    """Buffers that become the batch, a weight, what another buffer was, and twice one activation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6).double()
        for name, rows in {"batch": 4, "weight": 6, "before": 4, "now": 4, "twin": 4}.items():
            self.register_buffer(name, torch.rand(rows, 6, dtype=torch.float64))

    def forward(self, x):
        h = self.linear(x) + self.now
        self.before.copy_(self.now)
        for buffer in (self.now, self.twin):
            buffer.copy_(h.detach())
        self.batch.copy_(x)
        self.weight.copy_(self.linear.weight.detach())
        return h.square().mean()


def test_buffers_become_copies() -> None:
    module, x = Copying(), torch.randn(4, 6, dtype=torch.float64)
    model = trace(module, x)
    before = {n: t.detach().clone() for n, t in module.state_dict().items()}
    _, _, written = execute(model, before, [x])
    module(x)
    torch.testing.assert_close(written, dict(module.named_buffers()))


class Cached(nn.Module):
    """Angles that the first forward keeps; with `scaled` it computes something else as well."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.linear, self.angles, self.scaled = nn.Linear(6, 6).double(), None, scaled

    def forward(self, x):
        hidden = self.linear(x)
        if self.angles is None:
            self.angles = torch.arange(6).double().cos(), torch.arange(6).double().sin()
            if self.scaled:
                hidden = hidden * 2
        cosine, sine = self.angles
        return (hidden * cosine + hidden.flip(-1) * sine).square().mean()


def test_constants_that_the_first_step_keeps() -> None:
    module, x = Cached(False), torch.randn(4, 6, dtype=torch.float64)
    model = trace(module, x)
    assert module.angles is None
    state = {n: t.detach() for n, t in module.named_parameters()}
    torch.testing.assert_close(execute(model, state, [x]).loss, module(x).detach())
    with pytest.raises(TraceError, match="computes something else"):
        trace(Cached(True), x)


class Queue(nn.Module):
    """Keys of the last steps, written behind a pointer that is read as a number of Python."""

    def __init__(self, by_item: bool) -> None:
        super().__init__()
        self.linear, self.by_item = nn.Linear(6, 6).double(), by_item
        self.register_buffer("queue", torch.rand(6, 8, dtype=torch.float64))
        self.register_buffer("pointer", torch.tensor([2]))

    def forward(self, x):
        keys = self.linear(x)
        first = self.pointer.item() if self.by_item else int(self.pointer)
        assert isinstance(first, int)
        assert isinstance(len(keys), int)
        loss = (keys @ self.queue.clone()).square().mean() + keys[:, first].mean()
        self.queue[:, first : first + len(keys)] = keys.detach().t()
        self.pointer[0] = (first + len(keys)) % self.queue.shape[1]
        return loss + self.queue[:3, 1 + first : first + 3].mean()


@pytest.mark.parametrize("by_item", [False, True])
def test_a_pointer_of_a_queue_is_no_constant(by_item: bool) -> None:
    module, x = Queue(by_item), torch.randn(4, 6, dtype=torch.float64)
    model = trace(module, x)
    before = {n: t.detach().clone() for n, t in module.state_dict().items()}
    before["pointer"] += 2
    module.pointer += 2
    loss, gradients, written = execute(model, before, [x])
    expected = module(x)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients["linear.weight"], module.linear.weight.grad)
    torch.testing.assert_close(written, dict(module.named_buffers()))
    with pytest.raises(RuntimeError, match=r"keys.detach\(\).t.*span of 4 .* not within the 8"):
        execute(model, before | {"pointer": torch.tensor([5])}, [x])


class Calibrated(nn.Module):
    """A scale that the first step sets and others follow, where a flag says so; weights by the step."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6).double()
        self.register_buffer("scale", torch.ones(1, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("begun", torch.zeros(1))
        self.register_buffer("enabled", torch.ones(1, dtype=torch.uint8))

    def forward(self, x):
        h = self.linear(x)
        if self.enabled[0] == 1:
            if self.begun == 0:
                self.scale.copy_(h.detach().abs().mean())
                self.begun.fill_(1)
            else:
                self.scale.lerp_(h.detach().abs().mean(), 0.1)
        self.step += 1
        decay = math.exp(-self.step.item() / 7)
        decay = decay if isinstance(decay, float) else 0.0
        return (
            (h / self.scale).square().mean()
            + decay * h.std()
            + min(1.0, self.step.item() / 9) * h.sum()
        )


def test_a_first_step_sets_what_others_follow() -> None:
    module, x = Calibrated(), torch.randn(4, 6, dtype=torch.float64)
    model = trace(module, x)
    numbers = [v for constant in model.parameters for v in constant.values or ()]
    assert not any(isinstance(v, bool) for v in numbers)  # a file has numbers
    state = {n: t.detach().clone() for n, t in module.state_dict().items()}
    for _ in range(2):
        module.zero_grad()
        loss, gradients, written = execute(model, state, [x])
        expected = module(x)
        expected.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients["linear.weight"], module.linear.weight.grad)
        state |= written
    torch.testing.assert_close(state, {n: t.detach() for n, t in module.state_dict().items()})
    with pytest.raises(RuntimeError, match=r"self.enabled\[0\] == 1.*made for the values"):
        execute(model, state | {"enabled": torch.zeros(1, dtype=torch.uint8)}, [x])


def diagonals(x):
    square = x @ x.t()
    square.fill_diagonal_(0.5)
    torch.diagonal(square).add_(1).pow_(2)
    counts = torch.bincount((x[:, 0] > 0).long(), minlength=3)
    related = torch.cov(x, correction=0).square().sum() + torch.corrcoef(x.t())[0, 1]
    rows = x.new_zeros(3, 6)
    rows.index_reduce_(0, torch.tensor([1, 1]), x[:2], "mean", include_self=False)
    highest = rows.index_reduce(0, torch.tensor([2, 0, 2, 0]), x, "amax")
    return square.exp().mean() * counts.max() + related + highest.square().sum()


def spectra(x):
    signal, window = x.reshape(2, 12), torch.hann_window(6, dtype=x.dtype) + 0.1
    spectrum = torch.stft(signal, 8, 3, 6, window, normalized=True, return_complex=True)
    back = torch.istft(spectrum * 2, 8, 3, 6, window, normalized=True, length=12)
    whole = torch.stft(signal[0], 6, center=False, onesided=False, return_complex=False)
    return back.square().mean() + spectrum.abs().mean() + whole[..., 1].square().sum()


@pytest.mark.parametrize("computed", [diagonals, spectra])
def test_functions_in_terms_of_others(computed) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6).double()

        def forward(self, x):
            return computed(self.linear(x))

    module, x = Net(), torch.randn(4, 6, dtype=torch.float64) / 4
    loss, gradients, _ = execute(
        trace(module, x), {n: t.detach() for n, t in module.named_parameters()}, [x]
    )
    expected = module(x)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients["linear.weight"], module.linear.weight.grad)


def test_a_parameter_is_frozen_on_the_way_and_refused_where_it_stays_so() -> None:
    class Frozen(nn.Module):
        def __init__(self, again: bool) -> None:
            super().__init__()
            self.linear, self.again = nn.Linear(6, 6), again

        def forward(self, x):
            first = self.linear(x).square().mean()
            self.linear.weight.requires_grad_(False)
            second = self.linear(self.linear(x)).mean()
            if self.again:
                self.linear.weight.requires_grad_(True)
            return first + second + self.linear(x).sin().mean()

    agrees(Frozen(True).double(), {"x": torch.randn(4, 6, dtype=torch.float64)})
    with pytest.raises(TraceError, match=r"requires_grad_\(False\)`: the forward changes whether"):
        trace(Frozen(False), torch.randn(4, 6))
