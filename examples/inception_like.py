"""A small network of branches that join again, in plain PyTorch: `examples/inception_like.py:make`."""

import torch
from torch import nn
from torch.nn import functional


def convolution(inputs: int, outputs: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Block(nn.Module):
    """Four branches over one input, joined along the channels."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.point = convolution(inputs, width, 1)
        self.narrow = nn.Sequential(convolution(inputs, width, 1), convolution(width, width, 3))
        self.wide = nn.Sequential(convolution(inputs, width, 1), convolution(width, width, 5))
        self.pooled = convolution(inputs, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = functional.avg_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([self.point(x), self.narrow(x), self.wide(x), self.pooled(near)], 1)


class Inception(nn.Module):
    """The loss of pictures `[batch, 3, size, size]` of 10 classes."""

    def __init__(self, blocks: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stem = convolution(3, 4 * width, 3)
        self.blocks = nn.ModuleList(Block(4 * width, width) for _ in range(blocks))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, pictures: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.stem(pictures)
        for block in self.blocks:
            x = block(x)
        return functional.cross_entropy(self.head(x.mean((2, 3))), labels)


def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """(model, global batch of 16 pictures)."""
    pictures, labels = torch.randn(16, 3, 16, 16), torch.randint(0, 10, (16,))
    return Inception().train(), {"pictures": pictures, "labels": labels}
