"""A small network of two layers of experts, and what its eager module trains."""

import torch
from torch import nn

EXPERTS, WIDTH, CHOICES = 8, 16, 2
OPTIMIZER = {"optimizer": torch.optim.AdamW, "optimizer_args": {"lr": 0.01}}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        config = MixtralConfig(hidden_size=WIDTH, intermediate_size=24, num_local_experts=EXPERTS)
        config._experts_implementation = "grouped_mm"
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = MixtralExperts(config)
        for weight in self.experts.parameters():
            nn.init.normal_(weight, std=0.2)

    def forward(self, x, hot):
        rows = x.flatten(0, 1)
        shares = (self.gate(rows) + hot.flatten(0, 1)).softmax(-1)
        share, choice = shares.topk(CHOICES, -1)
        mixed = self.experts(rows, choice, share / share.sum(-1, keepdim=True))
        return x + mixed.view_as(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, hot, y):
        h = self.first(x)
        for layer in self.layers:
            h = layer(h, hot)
        return (self.head(h) - y).square().mean()


def eager(module, batches):
    """Losses of the module with its own optimizer, and itself."""
    for layer in module.layers:
        layer.experts.config._experts_implementation = "eager"
    optimizer, losses = torch.optim.AdamW(module.parameters(), lr=0.01), []
    for batch in batches:
        optimizer.zero_grad()
        loss = module(**batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, module
