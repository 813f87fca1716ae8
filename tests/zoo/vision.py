"""Models of pictures, alone and with text."""

from plait.tests.zoo.batches import CLASSES, captioned, pictures
from plait.tests.zoo.decoders import SIZES


def vit(layers=2, batch=8, **config):
    from transformers import ViTConfig, ViTForImageClassification

    hf_config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=8,
        num_labels=CLASSES,
        **config,
    )
    return ViTForImageClassification(hf_config), pictures(batch, 16)


def dinov2(layers=2, batch=8, **config):
    from transformers import Dinov2Config, Dinov2ForImageClassification

    hf_config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=16,
        patch_size=8,
        num_labels=CLASSES,
        **config,
    )
    return Dinov2ForImageClassification(hf_config), pictures(batch, 16)


def swin(layers=2, batch=8, **config):
    """Attention inside windows that every second layer shifts."""
    from transformers import SwinConfig, SwinForImageClassification

    hf_config = SwinConfig(
        embed_dim=16,
        depths=[layers, layers],
        num_heads=[2, 4],
        window_size=4,
        image_size=32,
        patch_size=4,
        num_labels=CLASSES,
        **config,
    )
    return SwinForImageClassification(hf_config), pictures(batch, 32)


def segformer(layers=2, batch=8, **config):
    """Keys of fewer places than queries; convolutions inside the MLP."""
    from transformers import SegformerConfig, SegformerForImageClassification

    hf_config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[layers, layers],
        sr_ratios=[4, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[2, 4],
        mlp_ratios=[2, 2],
        num_labels=CLASSES,
        **config,
    )
    return SegformerForImageClassification(hf_config), pictures(batch, 32)


def convnext(layers=2, batch=8, **config):
    from transformers import ConvNextConfig, ConvNextForImageClassification

    hf_config = ConvNextConfig(
        hidden_sizes=[16, 32],
        depths=[layers, layers],
        num_stages=2,
        image_size=32,
        num_labels=CLASSES,
        **config,
    )
    return ConvNextForImageClassification(hf_config), pictures(batch, 32)


def resnet(layers=2, batch=8, **config):
    from transformers import ResNetConfig, ResNetForImageClassification

    hf_config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[layers, layers],
        num_labels=CLASSES,
        **config,
    )
    return ResNetForImageClassification(hf_config), pictures(batch, 32)


def _towers(layers):
    text = {
        **SIZES,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
        "bos_token_id": 94,
        "eos_token_id": 95,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
    }
    return text, vision


def clip(layers=2, batch=8, seq=12, **config):
    """A tower for text, one for pictures, and a loss that compares every pair of a batch."""
    from transformers import CLIPConfig, CLIPModel

    text, vision = _towers(layers)
    hf_config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, **config)
    return CLIPModel(hf_config), captioned(batch, 16, seq)


def siglip(layers=2, batch=8, seq=12, **config):
    from transformers import SiglipConfig, SiglipModel

    text, vision = _towers(layers)
    hf_config = SiglipConfig(text_config=text, vision_config=vision, **config)
    return SiglipModel(hf_config), captioned(batch, 16, seq)
