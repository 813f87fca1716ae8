"""Models whose training steps take about a second on one core: SOURCEs for `cpu_accuracy.py`."""

import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

Batch = dict[str, torch.Tensor]
VOCABULARY, TOKENS = 2048, 128


def llama() -> tuple[nn.Module, Batch]:
    """A decoder with gated MLPs and grouped heads."""
    config = LlamaConfig(
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=1024,
        vocab_size=VOCABULARY,
        max_position_embeddings=TOKENS,
    )
    return LlamaForCausalLM(config).train(), _tokens(8)


def gpt2() -> tuple[nn.Module, Batch]:
    """A decoder with dropout and biases."""
    config = GPT2Config(n_embd=384, n_layer=6, n_head=6, vocab_size=VOCABULARY, n_positions=TOKENS)
    return GPT2LMHeadModel(config).train(), _tokens(8)


class Layers(nn.Module):
    """Linear layers with a nonlinearity between; the loss is that of a classifier."""

    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = functional.gelu(layer(x))
        return functional.cross_entropy(self.head(x), labels)


def mlp() -> tuple[nn.Module, Batch]:
    """A wide perceptron."""
    batch = {"x": torch.randn(512, 1024), "labels": torch.randint(0, 1000, (512,))}
    return Layers(1024, 8, 1000), batch


def _tokens(batch: int) -> Batch:
    tokens = torch.randint(0, VOCABULARY, (batch, TOKENS))
    return {"input_ids": tokens, "labels": tokens}
