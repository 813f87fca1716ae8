"""Models with dropout: reproducible, and the gradient belongs to the mask that was drawn."""

import pytest
import torch

from plait.ir.capture import trace
from plait.ir.capture.execute import execute
from plait.tests import zoo
from plait.tests.ir.capture import eager


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_gradients_under_dropout(name: str) -> None:
    torch.manual_seed(0)
    module, batch = getattr(zoo, name)(batch=2)
    module = module.double().train()
    # the padding token's row has no gradient although the loss depends on it
    batch["input_ids"].clamp_(min=1)
    model = trace(module, batch)
    assert sum(f.random for f in model.functions) == 2
    loss, gradients, _ = eager.run(model, module, batch, seed=3, step=1)
    again, _, _ = eager.run(model, module, batch, seed=3, step=1)
    other, _, _ = eager.run(model, module, batch, seed=3, step=2)
    assert loss == again
    assert abs(loss - other) > 1e-6
    direction = {n: torch.randn_like(g) for n, g in gradients.items()}
    losses = []
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            for n, p in module.named_parameters():
                p.add_(direction[n], alpha=step)
            losses.append(eager.run(model, module, batch, seed=3, step=1, gradients=False)[0])
            for n, p in module.named_parameters():
                p.sub_(direction[n], alpha=step)
    slope = (losses[0] - losses[1]) / 2e-5
    expected = sum((direction[n] * g).sum() for n, g in gradients.items())
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-9)


def test_layers_and_operators_draw_different_masks() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(512))
            self.layers = torch.nn.ModuleList(torch.nn.Dropout(0.5) for _ in range(2))

        def forward(self, x):
            one, other = self.layers[0](x * self.scale), self.layers[1](x * self.scale)
            return (one * other).mean()

    module = Twice()
    batch = torch.ones(64, 512)
    model = trace(module, batch)
    loss, _, _ = execute(model, dict(module.named_parameters()), [batch])
    # equal masks would give 2, disjoint ones 0
    assert 0.9 < loss < 1.1


def test_what_is_counted_over_all_samples_is_drawn_before_any_micro_batch() -> None:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 8)

        def forward(self, x):
            mask = torch.rand(x.shape[0], 8) < 0.5
            return (self.layer(x).square() * mask).sum() / mask.sum()

    model = trace(Masked(), torch.ones(4, 8))
    assert model.functions[0].random
    assert model.batch_only_calls() == {0}


def test_evaluation_mode_draws_nothing() -> None:
    module, batch = zoo.gpt2()
    assert not any(f.random for f in trace(module.eval(), batch).functions)
