"""Denoisers and autoencoders of diffusers (`pip install diffusers`), with the loss of a noise target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

SAMPLES = 4


class Denoise(nn.Module):
    """Noise is drawn, added by a schedule, and predicted."""

    def __init__(self, body: nn.Module, **conditions: Any) -> None:
        super().__init__()
        self.body, self.conditions = body, conditions
        steps = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100), 0)
        self.register_buffer("signal", steps)

    def forward(self, latents: Tensor, steps: Tensor, **conditions: Tensor) -> Tensor:
        noise = torch.randn_like(latents)
        signal = self.signal[steps].view(-1, *[1] * (latents.dim() - 1))
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        guess = self.body(noisy, timestep=steps, **conditions, return_dict=False)[0]
        return (guess[:, : latents.shape[1]] - noise).square().mean()


class Reconstruct(nn.Module):
    """An autoencoder with a sampled latent and its Kullback-Leibler term."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor) -> Tensor:
        latent = self.body.encode(pixels).latent_dist
        image = self.body.decode(latent.sample()).sample
        return (image - pixels).square().mean() + 1e-3 * latent.kl().mean()


def _denoiser(name: str, channels: int, size: int, *text: int, **sizes: Any) -> Callable[[], Any]:
    """A class of diffusers with its sizes; `text`: tokens and width of a text condition."""

    def make() -> tuple[nn.Module, dict[str, Tensor]]:
        body = getattr(diffusers, name)(**sizes)
        batch = {
            "latents": torch.randn(SAMPLES, channels, size, size),
            "steps": torch.randint(0, 100, (SAMPLES,)),
        }
        if text:
            batch["encoder_hidden_states"] = torch.randn(SAMPLES, *text)
        return Denoise(body).train(), batch

    return make


def _conditioned(
    name: str, channels: int, size: int, extra: Callable[[], dict[str, Tensor]], **sizes: Any
) -> Callable[[], Any]:
    def make() -> tuple[nn.Module, dict[str, Tensor]]:
        model, batch = _denoiser(name, channels, size, **sizes)()
        return model, batch | extra()

    return make


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
CROSS = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
LEVELS = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}


def vae():
    body = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return Reconstruct(body).train(), (torch.randn(SAMPLES, 3, 16, 16),)


MODELS = {
    "unet2d": _denoiser(
        "UNet2DModel",
        3,
        16,
        sample_size=16,
        in_channels=3,
        out_channels=3,
        down_block_types=DOWN,
        up_block_types=UP,
        **LEVELS,
    ),
    "unet2d_condition": _denoiser(
        "UNet2DConditionModel",
        4,
        16,
        7,
        32,
        sample_size=16,
        down_block_types=CROSS[0],
        up_block_types=CROSS[1],
        cross_attention_dim=32,
        attention_head_dim=8,
        **LEVELS,
    ),
    "dit": _conditioned(
        "DiTTransformer2DModel",
        4,
        8,
        lambda: {"class_labels": torch.randint(0, 10, (SAMPLES,))},
        **HEADS,
        in_channels=4,
        out_channels=4,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
        num_embeds_ada_norm=100,
    ),
    "pixart": _conditioned(
        "PixArtTransformer2DModel",
        4,
        8,
        lambda: {"encoder_hidden_states": torch.randn(SAMPLES, 7, 24)},
        **HEADS,
        in_channels=4,
        out_channels=4,
        sample_size=8,
        cross_attention_dim=32,
        caption_channels=24,
        use_additional_conditions=False,
        norm_num_groups=4,
    ),
    "sd3": _conditioned(
        "SD3Transformer2DModel",
        4,
        8,
        lambda: {
            "encoder_hidden_states": torch.randn(SAMPLES, 7, 24),
            "pooled_projections": torch.randn(SAMPLES, 16),
        },
        **HEADS,
        in_channels=4,
        out_channels=4,
        sample_size=8,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    ),
    "sana": _denoiser(
        "SanaTransformer2DModel",
        4,
        8,
        7,
        24,
        **HEADS,
        in_channels=4,
        out_channels=4,
        sample_size=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=24,
    ),
    "lumina2": _conditioned(
        "Lumina2Transformer2DModel",
        4,
        8,
        lambda: {
            "encoder_hidden_states": torch.randn(SAMPLES, 7, 24),
            "encoder_attention_mask": torch.ones(SAMPLES, 7).bool(),
        },
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        cap_feat_dim=24,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(16, 8, 8),
    ),
    "vae": vae,
}
