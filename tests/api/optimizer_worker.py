"""Run by torchrun on 4 ranks: `parallelize` with optimizers of users against the eager module."""

import torch
import torch.nn.functional as F
from torch import nn

import plait
from plait.runtime.launch.session import begin
from plait.tests.runtime.state import recipes
from plait.tests.runtime.state.recipes import Recipe

LAYOUTS = (
    "dp=4", "zero1=4", "zero3=4", "dp=2,tp=2", "zero3=2,tp=2", "pp=2,dp=2", "pp=2,tp=2", "auto",
)  # fmt: skip
STEPS = 3


class Block(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, 12)

    def forward(self, x, y):
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(x), y)


def build() -> Net:
    torch.manual_seed(0)
    return Net().double()


def data(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        "x": torch.randn(8, 16, dtype=torch.float64, generator=generator),
        "y": torch.randint(0, 12, (8,), generator=generator),
    }


def norms_apart(named):
    rest = [p for n, p in named if "norm" not in n]
    return [
        {"params": [p for n, p in named if "norm" in n], "lr": 3e-2, "weight_decay": 0.0},
        {"params": [p for p in rest if p.shape[0] > 16], "weight_decay": 0.3},
        {"params": [p for p in rest if p.shape[0] <= 16], "weight_decay": 0.7},
    ]


RECIPES = {
    "muon": Recipe(recipes.MuonAndAdamW, {"lr": 1e-2}),
    "lamb": Recipe(recipes.Lamb, {"lr": 1e-2}, clip=(0.2, 2.0)),
    "adafactor": Recipe(torch.optim.Adafactor, {"lr": 1e-2}),
    "groups": Recipe(
        torch.optim.AdamW, {"lr": 1e-2}, norms_apart, recipes.one_cycle, (0.1, 2.0), 2
    ),
}


def one_process(recipe: Recipe) -> tuple[list[float], dict[str, torch.Tensor]]:
    module, losses = build(), []
    optimizer = recipe.optimizer(module)
    scheduler = recipe.scheduler(optimizer) if recipe.scheduler else None
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(recipe.accumulate):
            loss = module(**data(len(losses)))
            loss.backward()
            losses.append(loss.item())
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), *recipe.clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return losses, module.state_dict()


def many(recipe: Recipe, layout: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    module, plan = build(), "auto"
    if layout != "auto":
        more = {"micro_batches": 2} if "pp" in layout else {}
        plan = plait.plan(module, data(0), cluster="local:4", pin=f"*:{layout}", **more)
    program = plait.parallelize(
        module,
        data(0),
        optimizer=recipe.factory,
        optimizer_args=recipe.args,
        param_groups=recipe.groups,
        plan=plan,
    )
    losses: list[float] = []
    scheduler = recipe.scheduler(program.optimizer) if recipe.scheduler else None
    for _ in range(STEPS):
        for _ in range(recipe.accumulate):
            losses.append(program.forward_backward(data(len(losses))).item())
        if recipe.clip:
            program.clip_grad_norm(*recipe.clip)
        program.optimizer_step()
        if scheduler is not None:
            scheduler.step()
    return losses, program.state_dict()


def main() -> None:
    rank, _ = begin()
    for name, recipe in RECIPES.items():
        expected_losses, expected = one_process(recipe)
        for layout in LAYOUTS:
            losses, state = many(recipe, layout)
            worst = max(abs(a - b) for a, b in zip(losses, expected_losses, strict=True))
            for key, tensor in expected.items():
                worst = max(worst, ((state[key] - tensor).abs().max() / tensor.abs().max()).item())
            assert worst < 1e-9, (name, layout, worst)
            if rank == 0:
                print(name, layout, f"{worst:.1e}")
    print("done", rank)


if __name__ == "__main__":
    main()
