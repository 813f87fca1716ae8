"""Encoders, encoder-decoders, vision, detection, audio, multimodal, time series and video."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from small import (
    IMAGE,
    SAMPLES,
    classifier,
    listener,
    masked,
    model,
    picture,
    pixels,
    text_and_labels,
    tokens,
    translator,
)
from torch import Tensor

VISION = {"depths": [1, 2], "num_heads": [2, 4], "embed_dim": 16, "window_size": 4}
STAGES = {"depths": [1, 2], "hidden_sizes": [16, 32], "num_stages": 2}
CONVOLUTIONS = {
    "conv_dim": [16, 16],
    "conv_kernel": [8, 4],
    "conv_stride": [4, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
}


def _text(config: Any) -> dict[str, Tensor]:
    ids = tokens()
    return {"input_ids": ids, "labels": ids.clone()}


def _boxes(config: Any) -> dict[str, Tensor]:
    return {"pixel_values": pixels(config)}


def _detected(output: Any, batch: Any) -> Tensor:
    return output.logits.square().mean() + output.pred_boxes.abs().mean()


def _detector(name: str, of: str, **changes: Any):
    def make():
        return *model(name, of, _boxes, **changes)(), _detected

    return make


def _features(name: str, of: str, **changes: Any):
    def make():
        made, batch = model(name, of, _boxes, **changes)()
        return made, batch, lambda output, batch: output.last_hidden_state.square().mean()

    return make


def _backbone() -> Any:
    shape = {"depths": [1, 1], "hidden_sizes": [16, 32], "embedding_size": 8}
    return transformers.ResNetConfig(**shape, out_features=["stage2"])


def _pair(config: Any) -> dict[str, Any]:
    return {"input_ids": tokens(), "pixel_values": pixels(config), "return_loss": True}


def _image_in_text(count: int):
    """Text whose first tokens are places of the image."""

    def batch(config: Any) -> dict[str, Tensor]:
        ids = tokens(count + 8)
        ids = ids.clamp(max=89)
        ids[:, :count] = config.image_token_id
        labels = ids.clone()
        labels[:, :count] = -100
        return {"input_ids": ids, "pixel_values": pixels(config), "labels": labels}

    return batch


def _series(config: Any) -> dict[str, Tensor]:
    return {
        "past_values": torch.randn(SAMPLES, 32, config.num_input_channels),
        "future_values": torch.randn(SAMPLES, 8, config.num_input_channels),
    }


def _probable_series(config: Any) -> dict[str, Tensor]:
    past, future = config.context_length + max(config.lags_sequence), config.prediction_length
    return {
        "past_values": torch.randn(SAMPLES, past),
        "past_time_features": torch.randn(SAMPLES, past, 1),
        "past_observed_mask": torch.ones(SAMPLES, past),
        "future_values": torch.randn(SAMPLES, future),
        "future_time_features": torch.randn(SAMPLES, future, 1),
    }


def _video(config: Any) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.randn(SAMPLES, 4, 3, IMAGE, IMAGE),
        "labels": torch.randint(0, 2, (SAMPLES,)),
    }


def _masked_video(config: Any) -> dict[str, Tensor]:
    places = 2 * (IMAGE // config.patch_size) ** 2
    mask = torch.zeros(SAMPLES, places, dtype=torch.bool)
    mask[:, : places // 2] = True
    return {"pixel_values": torch.randn(SAMPLES, 4, 3, IMAGE, IMAGE), "bool_masked_pos": mask}


def _sound(config: Any) -> dict[str, Tensor]:
    return {
        "input_features": torch.randn(SAMPLES, 32, config.input_feat_per_channel),
        "labels": tokens(8),
    }


SERIES = {
    "prediction_length": 8,
    "context_length": 16,
    "lags_sequence": [1, 2],
    "num_time_features": 1,
    "feature_size": 5,
    "d_model": 32,
}
PATCHES = {"num_input_channels": 2, "context_length": 32, "prediction_length": 8, "d_model": 32}
SMALL_VISION = {
    "vision_config__patch_size": 8,
    "vision_config__num_hidden_layers": 2,
    "image_token_id": 90,
}

MODELS = {
    "modernbert": masked("modernbert", local_attention=8),
    "deberta_v2": masked("deberta-v2"),
    "albert": masked("albert", embedding_size=16),
    "big_bird": masked("big_bird", attention_type="original_full"),
    "fnet": masked("fnet"),
    "longformer": model("LongformerForMaskedLM", "longformer", _text, attention_window=[8, 8]),
    "nystromformer": model(
        "NystromformerForMaskedLM",
        "nystromformer",
        _text,
        segment_means_seq_len=16,
        num_landmarks=4,
    ),
    "roformer": masked("roformer", embedding_size=32, pad_token_id=0),
    "nomic_bert": masked("nomic_bert"),
    "convbert": masked("convbert", embedding_size=16),
    "xlm_roberta_xl": masked("xlm-roberta-xl"),
    "m2m_100": translator("m2m_100", encoder_layerdrop=0.0, decoder_layerdrop=0.0),
    "m2m_100_layerdrop": translator("m2m_100", encoder_layerdrop=0.1, decoder_layerdrop=0.1),
    "pegasus": translator("pegasus"),
    "longt5": translator("longt5", local_radius=4, decoder_start_token_id=0),
    "switch_transformers": translator(
        "switch_transformers", num_sparse_encoder_layers=1, decoder_start_token_id=0
    ),
    "led": model("LEDForConditionalGeneration", "led", _text, attention_window=[8, 8]),
    "nllb_moe": translator("nllb-moe", encoder_sparse_step=2, decoder_sparse_step=2),
    "beit": classifier("beit", patch_size=8),
    "focalnet": classifier("focalnet", depths=[1, 2], embed_dim=16, hidden_sizes=[16, 32]),
    "levit": model(
        "LevitForImageClassification",
        "levit",
        picture,
        hidden_sizes=[16, 32, 32],
        depths=[1, 1, 1],
        num_attention_heads=[2, 2, 2],
        key_dim=[8, 8, 8],
    ),
    "mobilevit": classifier("mobilevit", hidden_sizes=[16, 24, 32]),
    "poolformer": classifier("poolformer", depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 32]),
    "regnet": classifier("regnet", **STAGES, embedding_size=16, groups_width=8),
    "swinv2": classifier("swinv2", **VISION, patch_size=4),
    "dinov3_vit": _features("DINOv3ViTModel", "dinov3_vit", patch_size=8),
    "vit_mae": model(
        "ViTMAEForPreTraining",
        "vit_mae",
        _boxes,
        patch_size=8,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
    ),
    "yolos": _detector(
        "YolosForObjectDetection",
        "yolos",
        patch_size=8,
        num_detection_tokens=6,
        image_size=[IMAGE, IMAGE],
        use_mid_position_embeddings=False,
    ),
    "detr": _detector("DetrForObjectDetection", "detr", num_queries=6, backbone_config=_backbone()),
    "conditional_detr": _detector(
        "ConditionalDetrForObjectDetection",
        "conditional_detr",
        num_queries=6,
        backbone_config=_backbone(),
    ),
    "rt_detr": _detector("RTDetrForObjectDetection", "rt_detr", num_queries=6),
    "wavlm": listener("wavlm", **CONVOLUTIONS),
    "unispeech": listener("unispeech", **CONVOLUTIONS),
    "wav2vec2_conformer": listener("wav2vec2-conformer", **CONVOLUTIONS, vocab_size=32),
    "speech_to_text": model(
        "Speech2TextForConditionalGeneration",
        "speech_to_text",
        _sound,
        input_feat_per_channel=16,
        conv_channels=32,
    ),
    "audio_spectrogram": model(
        "ASTForAudioClassification",
        "audio-spectrogram-transformer",
        lambda c: {
            "input_values": torch.randn(SAMPLES, 32, 32),
            "labels": torch.zeros(SAMPLES).long(),
        },
        max_length=32,
        num_mel_bins=32,
    ),
    "llava": model(
        "LlavaForConditionalGeneration",
        "llava",
        _image_in_text(16),
        **SMALL_VISION,
        vision_feature_select_strategy="full",
        image_seq_length=16,
    ),
    "paligemma": model(
        "PaliGemmaForConditionalGeneration",
        "paligemma",
        _image_in_text(16),
        **SMALL_VISION,
        projection_dim=32,
        vision_config__projection_dim=32,
    ),
    "blip": model("BlipModel", "blip", _pair, vision_config__patch_size=8),
    "align": model("AlignModel", "align", _pair),
    "owlvit": model("OwlViTModel", "owlvit", _pair, vision_config__patch_size=8),
    "git": model(
        "GitForCausalLM",
        "git",
        lambda c: {**text_and_labels(c), "pixel_values": pixels(c)},
        vision_config__patch_size=8,
    ),
    "patchtst": model(
        "PatchTSTForPrediction", "patchtst", _series, **PATCHES, patch_length=4, patch_stride=4
    ),
    "patchtsmixer": model("PatchTSMixerForPrediction", "patchtsmixer", _series, **PATCHES),
    "informer": model("InformerForPrediction", "informer", _probable_series, **SERIES),
    "autoformer": model("AutoformerForPrediction", "autoformer", _probable_series, **SERIES),
    "time_series_transformer": model(
        "TimeSeriesTransformerForPrediction", "time_series_transformer", _probable_series, **SERIES
    ),
    "videomae": model(
        "VideoMAEForPreTraining",
        "videomae",
        _masked_video,
        patch_size=8,
        num_frames=4,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    ),
    "timesformer": model(
        "TimesformerForVideoClassification", "timesformer", _video, patch_size=8, num_frames=4
    ),
    "vivit": model(
        "VivitForVideoClassification", "vivit", _video, num_frames=4, tubelet_size=[2, 8, 8]
    ),
}
