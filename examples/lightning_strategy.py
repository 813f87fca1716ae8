"""A strategy of Lightning on a plan:
`torchrun --nproc-per-node 2 examples/lightning_strategy.py plan.json`.

trainer = Trainer(strategy=PlannedStrategy("plan.json", "model"), devices=2)
"""

import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

import plait

sys.path.insert(0, str(Path(__file__).resolve().parent))
from small_llama import make


class PlannedStrategy(DDPStrategy):
    """Ranks and loaders as Lightning's DDP has them; the submodule called `part` takes the form of a
    plan instead of being wrapped. `batch`: needed where the plan splits operators."""

    def __init__(self, plan, part, batch=None, **options):
        super().__init__(**options)
        self.plan, self.part, self.batch = plan, part, batch

    def configure_ddp(self):
        plait.apply(self.model.get_submodule(self.part), self.plan, self.batch)


class Language(lightning.LightningModule):
    """A language model as people write it."""

    def __init__(self, model):
        super().__init__()
        self.model, self.losses = model, []

    def training_step(self, batch, number):
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.model.parameters(), lr=1e-3)


def main():
    torch.manual_seed(0)
    model, batch = make()
    samples = [
        dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)
    ]
    module = Language(model)
    trainer = lightning.Trainer(
        strategy=PlannedStrategy(sys.argv[1], "model", batch),
        devices=2,
        accelerator="auto",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(samples, batch_size=8))
    if trainer.is_global_zero:
        print("losses", *module.losses)


if __name__ == "__main__":
    main()
