"""Attention that users write for one score, beside torch's own dense operators."""

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from plait.runtime.torch_private import flex_attention_of_cpu
from plait.tests.ir.capture.judged import agrees, make


def soft(score, b, h, i, j):
    return torch.where(i >= j, 5 * torch.tanh(score / 5) - (i - j) * 0.1 * (h + 1), -float("inf"))


class Attention(nn.Module):
    def __init__(self, score_mod, masked: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 24)
        self.score_mod, self.masked = score_mod, masked

    def forward(self, x, documents):
        b, t, _ = x.shape
        q, k, v = (y.view(b, t, 2, 4).transpose(1, 2) for y in self.inner(x).chunk(3, -1))

        def mask(sample, head, i, j):
            return (i > j) & (documents[sample, i] == documents[sample, j])

        blocks = create_block_mask(mask, b, None, t, t, "cpu") if self.masked else None
        return flex_attention(q, k, v, self.score_mod, blocks).square().sum()


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("score_mod", [soft, None], ids=["scores", "plain"])
def test_any_score_and_mask_is_what_torch_computes(score_mod, masked: bool) -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    given = {"x": torch.randn(2, 6, 8, dtype=torch.float64), "documents": documents}
    with flex_attention_of_cpu():
        agrees(make(lambda: Attention(score_mod, masked)), given)
