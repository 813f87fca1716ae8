"""A plain decoder in PyTorch: GPT or Llama layers, dense or with experts, attention fused or not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ir.capture.operators.elementary import OPS
from .architecture import Architecture

DROPOUT = 0.1  # of layers that write their scores: those are of the time when all dropped


class Linear(nn.Linear):
    """A product, and a bias added after it: so the product may be a sum over ranks."""

    def forward(self, input: Tensor) -> Tensor:
        product = functional.linear(input, self.weight)
        return product if self.bias is None else product + self.bias


class Adapter(nn.Module):
    """A product of two thin matrices, trained in place of the wide one (Hu et al. 2021)."""

    def __init__(self, wide: int, out: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = Linear(wide, rank, bias=False), Linear(rank, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Attention(nn.Module):
    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a, self.width = a, a.hidden // a.heads
        inner, keys = a.heads * self.width, a.kv_heads * self.width
        bias = not a.gated
        self.query = Linear(a.hidden, inner, bias=bias)
        self.key = Linear(a.hidden, keys, bias=bias)
        self.value = Linear(a.hidden, keys, bias=bias)
        self.out = Linear(inner, a.hidden, bias=bias)
        self.adapter = Adapter(a.hidden, inner, a.adapter_rank) if a.adapter_rank else None

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        projected = (self.query(x), self.key(x), self.value(x))
        if self.adapter is not None:
            projected = (projected[0] + self.adapter(x), *projected[1:])
        q, k, v = (p.view(batch, tokens, -1, self.width).transpose(1, 2) for p in projected)
        if self.a.gated:
            q, k = rotate(q, angles), rotate(k, angles)
        context = self.attend(q, k, v)
        return self.out(context.transpose(1, 2).reshape(batch, tokens, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.a.fused_attention:
            grouped = self.a.heads != self.a.kv_heads
            return functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=grouped
            )
        times = self.a.heads // self.a.kv_heads
        if times > 1:
            k, v = (x.repeat_interleave(times, 1) for x in (k, v))
        weights = functional.softmax(q @ k.transpose(2, 3), -1)
        return functional.dropout(weights, DROPOUT) @ v


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): `angles` [2 tokens width/2], cosines and sines."""
    near, far = x.chunk(2, -1)
    cosines, sines = angles
    return torch.cat((near * cosines - far * sines, far * cosines + near * sines), -1)


class FeedForward(nn.Module):
    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.gate = Linear(a.hidden, a.ffn, bias=False) if a.gated else None
        self.up = Linear(a.hidden, a.ffn, bias=not a.gated)
        self.down = Linear(a.ffn, a.hidden, bias=not a.gated)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(functional.gelu(self.up(x), approximate="tanh"))
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Mixture(nn.Module):
    """Experts of which every token takes the few that its router likes best."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        self.router = Linear(a.hidden, a.experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(a.experts, 2 * a.expert_hidden, a.hidden))
        self.down = nn.Parameter(torch.empty(a.experts, a.hidden, a.expert_hidden))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.a.hidden)
        share, choice = torch.topk(functional.softmax(self.router(rows), -1), self.a.choices)
        output = OPS.experts(
            rows, choice, share, self.gate_up, self.down, "silu", self.a.experts, []
        )
        return output.view(x.shape)


class Layer(nn.Module):
    def __init__(self, a: Architecture) -> None:
        super().__init__()
        norm = nn.RMSNorm if a.gated else nn.LayerNorm
        self.before, self.between = norm(a.hidden), norm(a.hidden)
        self.attention = Attention(a)
        self.feed = Mixture(a) if a.experts else FeedForward(a)
        self.drop = nn.Dropout(0.0 if a.fused_attention else DROPOUT)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.before(x), angles))
        return x + self.drop(self.feed(self.between(x)))


class Decoder(nn.Module):
    """Embedding, `layers` equal layers, head and loss over next tokens: ids [batch tokens] -> []."""

    def __init__(self, a: Architecture, layers: int) -> None:
        super().__init__()
        self.a = a
        self.embedding = nn.Embedding(a.vocabulary, a.hidden)
        self.positions = None if a.gated else nn.Embedding(a.tokens, a.hidden)
        self.layers = nn.ModuleList(Layer(a) for _ in range(layers))
        self.norm = (nn.RMSNorm if a.gated else nn.LayerNorm)(a.hidden)
        self.head = Linear(a.hidden, a.vocabulary, bias=False)
        if a.tied:
            self.head.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not a.adapter_rank or ".adapter." in name)
        self.register_buffer("angles", torch.empty(2, a.tokens, a.hidden // a.heads // 2))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions.weight
        for layer in self.layers:
            x = layer(x, self.angles)
        scores = self.head(self.norm(x)).view(-1, self.a.vocabulary)
        return functional.cross_entropy(scores.float(), labels.view(-1))
