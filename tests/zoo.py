"""Small versions of the models that tests trace: real model classes, random weights."""

import torch


def text(batch: int, seq: int, vocab: int = 96) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, vocab, (batch, seq))
    return {"input_ids": ids, "labels": torch.randint(0, vocab, (batch, seq))}


def gpt2(layers=2, batch=8, seq=12, **config):
    from transformers import GPT2Config, GPT2LMHeadModel

    made = GPT2Config(
        n_embd=32, n_layer=layers, n_head=4, vocab_size=96, n_positions=16,
        bos_token_id=0, eos_token_id=0, **config,
    )  # fmt: skip
    return GPT2LMHeadModel(made), text(batch, seq)


def llama(layers=2, batch=8, seq=12, **config):
    from transformers import LlamaConfig, LlamaForCausalLM

    made = LlamaConfig(
        hidden_size=32, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=48, vocab_size=96, **config,
    )  # fmt: skip
    return LlamaForCausalLM(made), text(batch, seq)


def bert(layers=2, batch=8, seq=12, **config):
    from transformers import BertConfig, BertForMaskedLM

    made = BertConfig(
        hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=48,
        vocab_size=96, max_position_embeddings=16, **config,
    )  # fmt: skip
    mask = torch.ones(batch, seq, dtype=torch.int64)
    mask[:, -3:] = 0
    return BertForMaskedLM(made), {**text(batch, seq), "attention_mask": mask}


def vit(layers=2, batch=8, **config):
    from transformers import ViTConfig, ViTForImageClassification

    made = ViTConfig(
        hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=48,
        image_size=16, patch_size=8, num_labels=6, **config,
    )  # fmt: skip
    return ViTForImageClassification(made), pictures(batch, 16)


def pictures(batch: int, size: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, size, size),
            "labels": torch.randint(0, 6, (batch,))}  # fmt: skip


def t5(layers=2, batch=8, seq=12, **config):
    from transformers import T5Config, T5ForConditionalGeneration

    made = T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=layers, num_heads=4, vocab_size=96,
        decoder_start_token_id=0, **config,
    )  # fmt: skip
    return T5ForConditionalGeneration(made), text(batch, seq)


def mixtral(layers=2, batch=8, seq=12, **config):
    from transformers import MixtralConfig, MixtralForCausalLM

    made = MixtralConfig(
        hidden_size=32, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=2,
        intermediate_size=48, vocab_size=96, num_local_experts=4, **config,
    )  # fmt: skip
    return MixtralForCausalLM(made), text(batch, seq)


def resnet(layers=2, batch=8, **config):
    from transformers import ResNetConfig, ResNetForImageClassification

    made = ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[layers, layers], num_labels=6, **config
    )
    return ResNetForImageClassification(made), pictures(batch, 32)


ZOO = {
    "gpt2": gpt2, "llama": llama, "bert": bert, "vit": vit, "t5": t5, "mixtral": mixtral,
    "resnet": resnet,
}  # fmt: skip
