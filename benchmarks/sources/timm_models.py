"""Models of timm (`pip install timm`): its transforms need torchvision, its models do not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLES, CLASSES = 4, 10


class Standin(MetaPathFinder, Loader):
    """Modules of torchvision whose every name is a mock."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        inside = fullname.partition(".")[0] == "torchvision"
        return ModuleSpec(fullname, self, is_package=True) if inside else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = type("Standin", (ModuleType,), {"__getattr__": lambda self, name: _name(name)})
        return module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__path__ = []


def _name(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock(name=name)


if importlib.util.find_spec("torchvision") is None:
    sys.meta_path.append(Standin())
import timm  # noqa: E402


class Classifier(nn.Module):
    """A model and its cross-entropy."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.body(pixels), labels)


def _classifier(name: str, size: int = 32, **sizes: Any) -> Callable[[], Any]:
    def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
        body = timm.create_model(name, pretrained=False, num_classes=CLASSES, **sizes)
        labels = torch.randint(0, CLASSES, (SAMPLES,))
        return Classifier(body).train(), (torch.randn(SAMPLES, 3, size, size), labels)

    return make


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}

MODELS = {
    "vit_drop_path": _classifier("vit_tiny_patch16_224", **VIT, drop_path_rate=0.1),
    "deit3": _classifier("deit3_small_patch16_224", **VIT),
    "eva02": _classifier("eva02_tiny_patch14_224", **VIT),
    "swin_s3": _classifier(
        "swin_s3_tiny_224",
        64,
        img_size=64,
        window_size=(4, 4),
        patch_size=4,
        embed_dim=16,
        depths=(1, 2),
        num_heads=(2, 4),
    ),
    "convnext": _classifier(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), drop_path_rate=0.1
    ),
    "resnet": _classifier("resnet18", layers=(1, 1, 1, 1), channels=(8, 16, 16, 32)),
    "resnext": _classifier("resnext50_32x4d", layers=(1, 1, 1, 1), channels=(64, 64, 64, 64)),
    "efficientnet": _classifier("efficientnet_lite0"),
    "mobilenetv3": _classifier("mobilenetv3_small_050"),
    "regnety": _classifier("regnety_002"),
    "mixer": _classifier("mixer_s32_224", 64, img_size=64),
    "gmlp": _classifier("gmlp_ti16_224", img_size=32),
    "cait": _classifier("cait_xxs24_224", **VIT),
    "xcit": _classifier("xcit_nano_12_p8_224", **VIT),
    "coatnet": _classifier("coatnet_nano_rw_224", 64, img_size=64),
    "densenet": _classifier("densenet121", growth_rate=8, block_config=(2, 2)),
    "ghostnet": _classifier("ghostnet_050"),
}
