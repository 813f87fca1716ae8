"""Adapters of peft (`pip install peft`) around small language models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
from small import language, masked
from torch import nn


def _adapted(base: Callable[[], Any], adapter: Any) -> Callable[[], Any]:
    def make() -> tuple[nn.Module, Any]:
        model, batch = base()
        return peft.get_peft_model(model, adapter).train(), batch

    return make


LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}

MODELS = {
    "lora_llama": _adapted(language("llama"), peft.LoraConfig(**LORA)),
    "lora_dropout": _adapted(language("mistral"), peft.LoraConfig(**LORA, lora_dropout=0.1)),
    "dora_qwen3": _adapted(language("qwen3"), peft.LoraConfig(**LORA, use_dora=True)),
    "rslora_all_layers": _adapted(
        language("smollm3"),
        peft.LoraConfig(r=4, target_modules="all-linear", use_rslora=True, task_type="CAUSAL_LM"),
    ),
    "ia3": _adapted(
        language("llama"),
        peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            task_type="CAUSAL_LM",
        ),
    ),
    "prefix_gpt2": _adapted(
        language("gpt2"), peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    ),
    "prompt_llama": _adapted(
        language("llama"), peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    ),
    "lora_bert": _adapted(masked("bert"), peft.LoraConfig(r=4, target_modules=["query", "value"])),
    "oft_llama": _adapted(
        language("llama"),
        peft.OFTConfig(oft_block_size=8, r=0, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    ),
}
