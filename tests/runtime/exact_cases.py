"""Small models whose training is more than their operators: what one process trains, every plan must.

A case is (model, batches by step, loss function); a case is run under strategies, and either trains as
one process with torch's own optimizer does, or is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.tests.runtime import exact_modules as modules
from plait.tests.runtime.exact_nets import CLASSES, SAMPLES, WIDTH, D, Net, Scores

ROWS = (torch.arange(CLASSES) > 4).to(D).unsqueeze(1)
WEIGHTS = torch.linspace(0.5, 2.0, CLASSES, dtype=D)


# backwards of the user's own


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.factor * gradient, None


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0.1).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        gradient = gradient.clone()
        gradient[x.abs() > 1] = 0
        return gradient


class Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output, loss):
        ctx.save_for_backward(loss)
        return output

    @staticmethod
    def backward(ctx, gradient):
        (loss,) = ctx.saved_tensors
        return gradient, torch.ones_like(loss) * 0.3


class Adversarial(Net):
    def __init__(self) -> None:
        super().__init__()
        self.domain = nn.Linear(WIDTH, 2)

    def forward(self, x, y, source):
        h = self.hidden(x)
        domain = F.cross_entropy(self.domain(Reversed.apply(h, 0.7)), source)
        return F.cross_entropy(self.head(h), y) + domain


class Attached(Net):
    def forward(self, x, y):
        h = self.hidden(x)
        h = Attach.apply(h, h.softmax(-1).sum(0).mean() / 8)
        return F.cross_entropy(self.head(h), y)


class Hooked(Net):
    """A hook that the forward registers on an activation."""

    def forward(self, x, y):
        h = self.hidden(x)
        h.register_hook(lambda g: g.clamp(-1e-2, 1e-2))
        return F.cross_entropy(self.head(h), y)


def halved(module, lower, upper):
    return tuple(
        None if g is None else g * 0.5 + u.tanh() for g, u in zip(lower, upper, strict=True)
    )


def with_module_hooks() -> nn.Module:
    model = Net()
    for layer in model.layers:
        layer.register_full_backward_hook(halved)
    return model


def with_hook(hook: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Net()
        model.head.weight.register_hook(hook)
        model.layers[0].up.weight.register_hook(lambda g: g * 2)
        return model

    return make


def mask_rows(parameter: Tensor) -> None:
    parameter.grad.mul_(ROWS)


def with_accumulation_hook() -> nn.Module:
    model = Net()
    model.head.weight.register_post_accumulate_grad_hook(mask_rows)
    return model


# the order of samples


class Rolled(Net):
    def forward(self, x, y):
        return F.cross_entropy(self.head(self.hidden(0.7 * x + 0.3 * x.roll(1, 0))), y)


class Permuted(Net):
    def forward(self, x, y, order):
        share = torch.linspace(0.5, 1.0, SAMPLES, dtype=D).unsqueeze(1)
        mixed = share * x + (1 - share) * x[order]
        h = self.head(self.hidden(mixed))
        return 0.7 * F.cross_entropy(h, y) + 0.3 * F.cross_entropy(h, y[order])


class Summed(Net):
    """Every sample has its place in the batch, and what came before it."""

    def forward(self, x, y):
        x = x + x.cumsum(0) * 0.1 + x.flip(0) * 0.2
        return F.cross_entropy(self.head(self.hidden(x)), y)


class Masked(Net):
    def forward(self, x, y, mask):
        scores = (x @ x.transpose(1, 2) / 4 + mask).softmax(-1)
        return F.cross_entropy(self.head(self.hidden(scores @ x)).flatten(0, 1), y.flatten())


class RolledHidden(Net):
    def forward(self, x, y):
        h = self.hidden(x)
        return F.cross_entropy(self.head(h + h.roll(1, 0)), y)


class Contrasted(Net):
    """In-batch negatives."""

    def forward(self, x, y):
        h = self.hidden(x)
        scores = h @ self.embed(x).t()
        return F.cross_entropy(scores, torch.arange(SAMPLES)) + F.cross_entropy(self.head(h), y)


class Pairs(Net):
    def forward(self, x, y):
        h = self.head(self.hidden(x))
        return (h[:, None] - h[None]).square().mean() + F.cross_entropy(h, y)


# everything outside tensors


class Divided(Net):
    def forward(self, x, y, items):
        return F.cross_entropy(self.head(self.hidden(x)), y, reduction="sum") / items


class Annealed(Net):
    """A number that a training loop changes."""

    scale = 1.0

    def forward(self, x, y):
        return F.cross_entropy(self.head(self.hidden(x)) * self.scale, y)


def anneal(model: nn.Module) -> None:
    model.scale = 0.5


class Counted(Net):
    """A buffer that counts steps, which the last stage alone reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=D))

    def forward(self, x, y):
        self.seen += 1
        return F.cross_entropy(self.head(self.hidden(x)) * (1 + self.seen * 0.1), y)


class Replacing(Net):
    """A buffer that the forward replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x, y):
        self.mean = self.mean * 0.9 + x.mean(0) * 0.1
        return F.cross_entropy(self.head(self.hidden(x - self.mean)), y)


def weighted(scores: Tensor, batch: Any) -> Tensor:
    labels = batch["y"].masked_fill(batch["y"] == 3, -100)
    return F.cross_entropy(scores, labels, WEIGHTS, label_smoothing=0.1)


def smoothed(scores: Tensor, batch: Any) -> Tensor:
    return F.nll_loss(scores.log_softmax(-1), batch["y"], WEIGHTS)


class Case(NamedTuple):
    """`refused`: words under which it is refused, with what the message must say; `between` is done to
    the user's model after every step."""

    make: Callable[[], nn.Module]
    more: Callable[[int], dict[str, Any]] = lambda step: {}
    loss_fn: Any = None
    refused: Mapping[str, str] = MappingProxyType({})
    shape: tuple[int, ...] = (SAMPLES,)
    between: Callable[[nn.Module], None] = lambda model: None


STRATEGIES = ("dp=2", "zero1=2", "zero3=2", "tp=2", "pp=2;2", "dp=2;2")


def order(step: int) -> dict[str, Any]:
    made = torch.Generator().manual_seed(step + 7)
    return {"order": torch.randperm(SAMPLES, generator=made)}


def source(step: int) -> dict[str, Any]:
    made = torch.Generator().manual_seed(step + 3)
    return {"source": torch.randint(0, 2, (SAMPLES,), generator=made)}


def mask(step: int) -> dict[str, Any]:
    return {"mask": torch.full((8, 8), float("-inf"), dtype=D).triu(1)}


def split_in_time(operator: str) -> dict[str, str]:
    return dict.fromkeys(("pp=2;2", "dp=2;2"), operator)


CASES: dict[str, Case] = {
    "adversarial": Case(Adversarial, source),
    "step in every layer": Case(lambda: Net(Step.apply)),
    "attached loss": Case(Attached),
    "hook on an activation": Case(Hooked),
    "hooks on modules": Case(with_module_hooks),
    "masking hook": Case(with_hook(lambda g: g * ROWS)),
    "clamping hook": Case(
        with_hook(lambda g: g.clamp(-1e-2, 1e-2)), refused=split_in_time("clamp")
    ),
    "hook after accumulation": Case(with_accumulation_hook),
    "rolled": Case(Rolled),
    "permuted": Case(Permuted, order),
    "summed": Case(Summed),
    "square mask": Case(Masked, mask, shape=(SAMPLES, SAMPLES)),
    "rolled hidden": Case(RolledHidden, refused=split_in_time("aten.roll")),
    "contrasted": Case(Contrasted, refused=split_in_time("aten.")),
    "pairs": Case(Pairs, refused=split_in_time("aten.sub")),
    "weighted loss": Case(Scores, loss_fn=weighted),
    "weighted likelihood": Case(Scores, loss_fn=smoothed),
    "replacing": Case(Replacing),
    "a tensor that divides": Case(Divided, lambda step: {"items": torch.tensor([8, 3, 100][step])}),
    "counted for the last stage": Case(Counted),
    "a number that divides": Case(
        Divided,
        lambda step: {"items": [8, 3, 100][step]},
        refused=dict.fromkeys(STRATEGIES, "batch['items'] is 3"),
    ),
    "a number that is annealed": Case(
        Annealed, refused=dict.fromkeys(STRATEGIES, "scale is 0.5; it was 1.0"), between=anneal
    ),
    "penalised gradient": Case(modules.Penalised),
    "hook scaled by a buffer": Case(modules.HookedByStep),
    "learned step sizes": Case(modules.Quantised),
    "parametrized weights": Case(modules.Parametrized),
    "queue": Case(modules.Queue, refused=split_in_time("aten.index_put")),
    "balanced router": Case(modules.Balanced, refused=split_in_time("aten.sign")),
    "unreached weights": Case(modules.Taught),
    "recent activations": Case(modules.Recent, refused=split_in_time("aten.mul")),
}
LONG = tuple(list(CASES)[-7:])  # drawn by `make test-all` alone
# on four ranks, where several axes and micro-batches split the same samples
WIDE_STRATEGIES = ("dp=2,zero3=2;2", "pp=2,dp=2;2", "dp=2,tp=2;2", "zero1=4;2")
WIDE = (
    "rolled",
    "permuted",
    "summed",
    "square mask",
    "weighted loss",
    "adversarial",
    "masking hook",
)


def drawn(ranks: int, share: int) -> list[tuple[str, str]]:
    """Cases with strategies for so many ranks: one of `share` strategies, in turn."""
    names, strategies = (list(CASES), STRATEGIES) if ranks == 2 else (list(WIDE), WIDE_STRATEGIES)
    return [
        (n, strategy)
        for i, n in enumerate(names)
        for strategy in strategies[i % share :: share]
        if share == 1 or n not in LONG
    ]


def batch(case: Case, step: int) -> dict[str, Any]:
    made = torch.Generator().manual_seed(step)
    x = torch.randn(*case.shape, WIDTH, dtype=D, generator=made)
    return {"x": x, "y": torch.randint(0, CLASSES, case.shape, generator=made), **case.more(step)}


def build(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.make().double()
