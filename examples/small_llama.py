"""A small Llama and a batch: a SOURCE for the command line, `examples/small_llama.py:make`."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def make() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """(model, global batch of 16 samples); initialised the same on every rank."""
    config = LlamaConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=256,
        vocab_size=512,
    )
    tokens = torch.randint(0, 512, (16, 64))
    return LlamaForCausalLM(config).train(), {"input_ids": tokens, "labels": tokens}
