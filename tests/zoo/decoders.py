"""Decoders: dense, with experts, with sliding windows, and state-space models."""

from plait.tests.zoo.batches import text

SIZES = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 96}


def gpt2(layers=2, batch=8, seq=12, **config):
    from transformers import GPT2Config, GPT2LMHeadModel

    hf_config = GPT2Config(
        n_embd=32,
        n_layer=layers,
        n_head=4,
        vocab_size=96,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
        **config,
    )
    return GPT2LMHeadModel(hf_config), text(batch, seq)


def llama(layers=2, batch=8, seq=12, **config):
    from transformers import LlamaConfig, LlamaForCausalLM

    hf_config = LlamaConfig(
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        **{**SIZES, **config},
    )
    return LlamaForCausalLM(hf_config), text(batch, seq)


def olmo2(layers=2, batch=8, seq=12, **config):
    """Norms of all heads at once."""
    from transformers import Olmo2Config, Olmo2ForCausalLM

    hf_config = Olmo2Config(
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        pad_token_id=0,
        eos_token_id=0,
        **SIZES,
        **config,
    )
    return Olmo2ForCausalLM(hf_config), text(batch, seq)


def mixtral(layers=2, batch=8, seq=12, **config):
    from transformers import MixtralConfig, MixtralForCausalLM

    hf_config = MixtralConfig(
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_local_experts=4,
        **SIZES,
        **config,
    )
    return MixtralForCausalLM(hf_config), text(batch, seq)


def mistral(layers=2, batch=8, seq=12, **config):
    """A window of 8 tokens that slides over the sequence."""
    from transformers import MistralConfig, MistralForCausalLM

    hf_config = MistralConfig(
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        sliding_window=8,
        **SIZES,
        **config,
    )
    return MistralForCausalLM(hf_config), text(batch, seq)


def qwen2(layers=2, batch=8, seq=12, **config):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    hf_config = Qwen2Config(
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        **{**SIZES, **config},
    )
    return Qwen2ForCausalLM(hf_config), text(batch, seq)


def qwen3(layers=2, batch=8, seq=12, **config):
    """Queries and keys are normalised, heads are wider than hidden size over heads."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    hf_config = Qwen3Config(
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        **SIZES,
        **config,
    )
    return Qwen3ForCausalLM(hf_config), text(batch, seq)


def qwen3_moe(layers=2, batch=8, seq=12, **config):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    hf_config = Qwen3MoeConfig(
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        moe_intermediate_size=24,
        num_experts=8,
        num_experts_per_tok=2,
        **SIZES,
        **config,
    )
    return Qwen3MoeForCausalLM(hf_config), text(batch, seq)


def olmoe(layers=2, batch=8, seq=12, **config):
    from transformers import OlmoeConfig, OlmoeForCausalLM

    hf_config = OlmoeConfig(
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=8,
        num_experts_per_tok=2,
        pad_token_id=0,
        eos_token_id=1,
        **SIZES,
        **config,
    )
    return OlmoeForCausalLM(hf_config), text(batch, seq)


def gemma2(layers=2, batch=8, seq=12, **config):
    """Soft-capped scores and logits; every second layer has a sliding window."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    hf_config = Gemma2Config(
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=8,
        **SIZES,
        **config,
    )
    return Gemma2ForCausalLM(hf_config), text(batch, seq)


def gemma3(layers=2, batch=8, seq=12, **config):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    hf_config = Gemma3TextConfig(
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=8,
        sliding_window_pattern=2,
        **SIZES,
        **config,
    )
    return Gemma3ForCausalLM(hf_config), text(batch, seq)


def phi(layers=2, batch=8, seq=12, **config):
    """Attention and MLP side by side, half of each head rotated."""
    from transformers import PhiConfig, PhiForCausalLM

    hf_config = PhiConfig(num_hidden_layers=layers, num_attention_heads=4, **SIZES, **config)
    return PhiForCausalLM(hf_config), text(batch, seq)


def gpt_neox(layers=2, batch=8, seq=12, **config):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    hf_config = GPTNeoXConfig(num_hidden_layers=layers, num_attention_heads=4, **SIZES, **config)
    return GPTNeoXForCausalLM(hf_config), text(batch, seq)


def falcon(layers=2, batch=8, seq=12, **config):
    """One key head for all query heads."""
    from transformers import FalconConfig, FalconForCausalLM

    hf_config = FalconConfig(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        vocab_size=96,
        bos_token_id=0,
        eos_token_id=0,
        **config,
    )
    return FalconForCausalLM(hf_config), text(batch, seq)


def opt(layers=2, batch=8, seq=12, **config):
    from transformers import OPTConfig, OPTForCausalLM

    hf_config = OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        ffn_dim=48,
        vocab_size=96,
        max_position_embeddings=16,
        **config,
    )
    return OPTForCausalLM(hf_config), text(batch, seq)


def bloom(layers=2, batch=8, seq=12, **config):
    """Positions enter as a bias that grows with distance."""
    from transformers import BloomConfig, BloomForCausalLM

    hf_config = BloomConfig(hidden_size=32, n_layer=layers, n_head=4, vocab_size=96, **config)
    return BloomForCausalLM(hf_config), text(batch, seq)


def mamba(layers=2, batch=8, seq=12, **config):
    from transformers import MambaConfig, MambaForCausalLM

    hf_config = MambaConfig(
        hidden_size=32, num_hidden_layers=layers, state_size=4, vocab_size=96, **config
    )
    return MambaForCausalLM(hf_config), text(batch, seq)


def mamba2(layers=2, batch=8, seq=16, **config):
    from transformers import Mamba2Config, Mamba2ForCausalLM

    hf_config = Mamba2Config(
        hidden_size=32,
        num_hidden_layers=layers,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=8,
        vocab_size=96,
        **config,
    )
    return Mamba2ForCausalLM(hf_config), text(batch, seq)
