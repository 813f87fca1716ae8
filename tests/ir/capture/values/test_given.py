"""What code is told of the batch that was given is a constant that every step checks."""

import pytest
import torch
from torch import nn

from plait.ir.capture import trace
from plait.ir.capture.execute import execute


class Grids(nn.Module):
    """Rows and columns of pictures [height, width], whose patches follow each other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.rows = nn.Linear(6, 6).double(), nn.Embedding(8, 6).double()

    def forward(self, patches, grid):
        parts = [self.rows(torch.arange(h)).repeat_interleave(w, 0) for h, w in grid.tolist()]
        first = patches[: int(grid[0].prod())].mean()
        return (self.linear(patches) + torch.cat(parts)).square().mean() + first


def test_sizes_of_pictures_are_constants_that_a_step_checks() -> None:
    torch.manual_seed(0)
    module, patches = Grids(), torch.randn(14, 6, dtype=torch.float64)
    grid = torch.tensor([[2, 4], [3, 2]])
    model = trace(module, (patches, grid))
    state = {n: t.detach() for n, t in module.named_parameters()}
    loss, gradients, _ = execute(model, state, [patches, grid])
    expected = module(patches, grid)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients["rows.weight"], module.rows.weight.grad)
    with pytest.raises(RuntimeError, match=r"h, w in grid.tolist.*made for the values"):
        execute(model, state, [patches, grid.flip(0)])


class HalfInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.norm(self.linear(x)) + x
            heads = [self.linear(x)[None]] * 3
            mixed = torch.nn.functional.scaled_dot_product_attention(*heads, dropout_p=1e-6)
            mixed = 0.1 * self.linear(mixed)
            with torch.autocast("cpu", enabled=False):
                hidden = self.linear(hidden.float() + mixed[0])
        return torch.nn.functional.mse_loss(hidden, x)


def test_casts_of_autocast_are_operators() -> None:
    torch.manual_seed(0)
    module, x = HalfInside(), torch.randn(4, 6)
    model = trace(module, x)
    state = {n: t.detach() for n, t in module.named_parameters()}
    loss, gradients, _ = execute(model, state, [x])
    expected = module(x)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(
        gradients["linear.weight"], module.linear.weight.grad, rtol=5e-2, atol=2e-3
    )


def test_rows_of_a_mask_of_the_batch_are_dealt_to_samples() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6).double()

        def forward(self, x, mask):
            return self.linear(x)[~mask].reshape(x.shape[0], -1, 6).cumsum(1).square().mean()

    module, x = Patches(), torch.randn(3, 4, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]]).bool()
    model = trace(module, (x, mask))
    state = {n: t.detach() for n, t in module.named_parameters()}
    torch.testing.assert_close(execute(model, state, [x, mask]).loss, module(x, mask).detach())
    with pytest.raises(RuntimeError, match="2 rows of every sample"):
        execute(model, state, [x, mask | torch.tensor([True, False, False, False])])
