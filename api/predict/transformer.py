"""A plain decoder in PyTorch: GPT or Llama layers, dense or with experts, attention plain
or latent, fused or not."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ir.capture.operators.elementary import OPS
from .architecture import Architecture, Latent, LayerKind, StateSpace

ATTENTION_TILE = 128  # keys that a fused kernel loads at once (FlashAttention-2, Dao 2023)
STATE_CHUNK = 256  # tokens that meet in products, states between them (chunk_size of Mamba-2)
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
    def __init__(self, a: Architecture, windowed: bool = False) -> None:
        super().__init__()
        self.a, self.width, self.windowed = a, a.head_size, windowed
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
        attend_to = attend_window if self.windowed else attend
        context = attend_to(self.a, q, k, v)
        return self.out(context.transpose(1, 2).reshape(batch, tokens, -1))


class LatentAttention(nn.Module):
    """Queries, keys and values are products of vectors of low rank."""

    def __init__(self, a: Architecture, latent: Latent) -> None:
        super().__init__()
        self.a, self.latent = a, latent
        width = latent.plain + latent.rotary
        self.query_down = None
        if latent.query_rank:
            self.query_down = Linear(a.hidden, latent.query_rank, bias=False)
            self.query_norm = nn.RMSNorm(latent.query_rank)
        self.query = Linear(latent.query_rank or a.hidden, a.heads * width, bias=False)
        self.key_down = Linear(a.hidden, latent.key_rank, bias=False)
        self.key_norm = nn.RMSNorm(latent.key_rank)
        self.rotary = Linear(a.hidden, latent.rotary, bias=False)
        self.key = Linear(latent.key_rank, a.heads * latent.plain, bias=False)
        self.value = Linear(latent.key_rank, a.heads * latent.value, bias=False)
        self.out = Linear(a.heads * latent.value, a.hidden, bias=False)
        self.adapter = None
        if a.adapter_rank:
            self.adapter = Adapter(self.query.in_features, a.heads * width, a.adapter_rank)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        latent = self.key_norm(self.key_down(x))
        low = x if self.query_down is None else self.query_norm(self.query_down(x))
        query = self.query(low) if self.adapter is None else self.query(low) + self.adapter(low)
        q, k, v = (
            p.view(batch, tokens, self.a.heads, -1).transpose(1, 2)
            for p in (query, self.key(latent), self.value(latent))
        )
        turned = rotate(self.rotary(x).unsqueeze(1), angles)
        shared = turned.expand(batch, self.a.heads, tokens, self.latent.rotary)
        context = attend(self.a, q, torch.cat((k, shared), -1), v)
        return self.out(context.transpose(1, 2).reshape(batch, tokens, -1))


def attend(a: Architecture, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention [batch heads tokens width], fused or with its scores written."""
    if a.fused_attention:
        grouped = q.shape[1] != k.shape[1]
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    times = q.shape[1] // k.shape[1]
    if times > 1:
        k, v = (x.repeat_interleave(times, 1) for x in (k, v))
    weights = functional.softmax(q @ k.transpose(2, 3), -1)
    return functional.dropout(weights, DROPOUT) @ v


def attend_window(a: Architecture, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The work of attention to a window of tokens: kernels meet a window and the part of a tile beside
    it, which are stood for by the first keys."""
    near = min(a.window + ATTENTION_TILE // 2, a.tokens)
    k, v = k[:, :, :near], v[:, :, :near]
    grouped = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): `angles` [2 tokens width/2], cosines and sines."""
    near, far = x.chunk(2, -1)
    cosines, sines = angles
    return torch.cat((near * cosines - far * sines, far * cosines + near * sines), -1)


class FeedForward(nn.Module):
    def __init__(self, a: Architecture, width: int) -> None:
        super().__init__()
        self.gate = Linear(a.hidden, width, bias=False) if a.gated else None
        self.up = Linear(a.hidden, width, bias=not a.gated)
        self.down = Linear(width, a.hidden, bias=not a.gated)

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
        self.shared = FeedForward(a, a.shared_hidden) if a.shared_hidden else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.a.hidden)
        share, choice = torch.topk(functional.softmax(self.router(rows), -1), self.a.choices)
        output = OPS.experts(
            rows, choice, share, self.gate_up, self.down, "silu", self.a.experts, []
        )
        output = output.view(x.shape)
        return output if self.shared is None else output + self.shared(x)


class StateMixer(nn.Module):
    """A state-space layer by chunks of tokens: inside a chunk tokens meet as in attention of a group's
    keys, between chunks through states (the products of Mamba-2's kernels)."""

    def __init__(self, a: Architecture, state: StateSpace) -> None:
        super().__init__()
        self.state, self.chunk = state, gcd(STATE_CHUNK, a.tokens)
        inner, keys = state.heads * state.width, state.groups * state.size
        self.gate, self.up = (Linear(a.hidden, inner, bias=False) for _ in range(2))
        self.query, self.key = (Linear(a.hidden, keys, bias=False) for _ in range(2))
        self.step = Linear(a.hidden, state.heads, bias=False)
        self.norm, self.out = nn.RMSNorm(inner), Linear(inner, a.hidden, bias=False)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        values = functional.silu(self.up(x)).view(batch, tokens, self.state.heads, -1)
        values = values * functional.softplus(self.step(x)).unsqueeze(-1)
        q, k, v = (
            y.reshape(
                -1,
                self.chunk,
                self.state.groups,
                y.numel() // x[..., 0].numel() // self.state.groups,
            ).transpose(1, 2)
            for y in (functional.silu(self.query(x)), functional.silu(self.key(x)), values)
        )
        near = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = near + q @ (k.transpose(2, 3) @ v)
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, -1)
        return self.out(self.norm(mixed * functional.silu(self.gate(x))))


class Layer(nn.Module):
    def __init__(self, a: Architecture, kind: LayerKind) -> None:
        super().__init__()
        norm = nn.RMSNorm if a.gated else nn.LayerNorm
        self.attention = self.feed = None
        if kind.mixer != "none":
            self.before, self.attention = norm(a.hidden), make_mixer(a, kind)
        if kind.feed != "none":
            self.between = norm(a.hidden)
            self.feed = Mixture(a) if kind.feed == "experts" else FeedForward(a, a.ffn)
        self.drop = nn.Dropout(0.0 if a.fused_attention else DROPOUT)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        if self.attention is not None:
            x = x + self.drop(self.attention(self.before(x), angles))
        if self.feed is not None:
            x = x + self.drop(self.feed(self.between(x)))
        return x


def make_mixer(a: Architecture, kind: LayerKind) -> nn.Module:
    if kind.mixer == "state" and a.state is not None:
        return StateMixer(a, a.state)
    return LatentAttention(a, a.latent) if a.latent else Attention(a, kind.mixer == "window")


class Decoder(nn.Module):
    """Embedding, a layer of every kind of `kinds`, head and loss over next tokens:
    ids [batch tokens] -> []."""

    def __init__(self, a: Architecture, kinds: Sequence[LayerKind]) -> None:
        super().__init__()
        self.a = a
        self.embedding = nn.Embedding(a.vocabulary, a.hidden)
        self.positions = None if a.gated else nn.Embedding(a.tokens, a.hidden)
        self.layers = nn.ModuleList(Layer(a, kind) for kind in kinds)
        self.norm = (nn.RMSNorm if a.gated else nn.LayerNorm)(a.hidden)
        self.head = Linear(a.hidden, a.vocabulary, bias=False)
        if a.tied:
            self.head.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not a.adapter_rank or ".adapter." in name)
        turned = a.latent.rotary if a.latent else a.head_size
        self.register_buffer("angles", torch.empty(2, a.tokens, turned // 2))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions.weight
        for layer in self.layers:
            x = layer(x, self.angles)
        scores = self.head(self.norm(x)).view(-1, self.a.vocabulary)
        return functional.cross_entropy(scores.float(), labels.view(-1))
