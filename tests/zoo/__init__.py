"""Small versions of the models that tests trace: real model classes, random weights."""

from plait.tests.zoo.audio import hubert, wav2vec2, whisper
from plait.tests.zoo.batches import pictures, text
from plait.tests.zoo.decoders import (
    bloom,
    falcon,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    mamba,
    mamba2,
    mistral,
    mixtral,
    olmoe,
    opt,
    phi,
    qwen2,
    qwen3,
    qwen3_moe,
)
from plait.tests.zoo.encoders import bart, bert, deberta, distilbert, electra, roberta, t5
from plait.tests.zoo.vision import clip, convnext, dinov2, resnet, segformer, siglip, swin, vit

# fmt: off
KINDS = {
    "decoder": (gpt2, llama, mistral, qwen2, qwen3, gemma2, gemma3, phi, gpt_neox, falcon, opt, bloom),
    "mixture of experts": (mixtral, qwen3_moe, olmoe),
    "state space": (mamba, mamba2),
    "encoder": (bert, roberta, distilbert, electra, deberta),
    "encoder-decoder": (t5, bart, whisper),
    "vision transformer": (vit, dinov2, swin, segformer),
    "convolutional": (convnext, resnet),
    "audio": (wav2vec2, hubert),
    "text and vision": (clip, siglip),
}
# fmt: on
KIND = {make.__name__: kind for kind, makers in KINDS.items() for make in makers}
ZOO = {make.__name__: make for makers in KINDS.values() for make in makers}

__all__ = ["KIND", "ZOO", *sorted(ZOO), "pictures", "text"]
