"""Models of sound: convolutions over samples, then a transformer."""

import torch

from plait.tests.zoo.batches import CLASSES, waves
from plait.tests.zoo.decoders import SIZES

FEATURES = {
    "conv_dim": [16, 16],
    "conv_kernel": [8, 4],
    "conv_stride": [4, 4],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
}


def wav2vec2(layers=2, batch=8, samples=204, **config):
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    hf_config = Wav2Vec2Config(
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_labels=CLASSES,
        classifier_proj_size=16,
        apply_spec_augment=False,
        **FEATURES,
        **SIZES,
        **config,
    )
    return Wav2Vec2ForSequenceClassification(hf_config), waves(batch, samples)


def hubert(layers=2, batch=8, samples=204, **config):
    from transformers import HubertConfig, HubertForSequenceClassification

    hf_config = HubertConfig(
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_labels=CLASSES,
        classifier_proj_size=16,
        apply_spec_augment=False,
        **FEATURES,
        **SIZES,
        **config,
    )
    return HubertForSequenceClassification(hf_config), waves(batch, samples)


def whisper(layers=2, batch=8, seq=12, **config):
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    hf_config = WhisperConfig(
        d_model=32,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        vocab_size=96,
        num_mel_bins=8,
        max_source_positions=24,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        **config,
    )
    inputs = {
        "input_features": torch.randn(batch, 8, 48),
        "labels": torch.randint(0, 96, (batch, seq)),
    }
    return WhisperForConditionalGeneration(hf_config), inputs
