"""The Trainer of transformers on a plan: `torchrun --nproc-per-node 2 examples/hf_trainer.py plan.json`.

The plan: `plait plan examples/small_llama.py:make --engine torch --cluster local:2 -o plan.json`.
Arguments, loop, logging and checkpoints stay the Trainer's.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import plait

sys.path.insert(0, str(Path(__file__).resolve().parent))
from small_llama import make


class Text(Dataset):
    """The samples of one batch, again and again."""

    def __init__(self, batch, length=64):
        self.batch, self.length = batch, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {name: tensor[index % len(tensor)] for name, tensor in self.batch.items()}


class PlannedTrainer(Trainer):
    """A Trainer whose model has its plan's form already: accelerate must not wrap it again."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = lambda model, **options: model


def main():
    torch.manual_seed(0)
    model, batch = make()
    model = plait.apply(model, sys.argv[1], batch)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=8,
        max_steps=3,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = PlannedTrainer(model, arguments, train_dataset=Text(batch))
    trainer.train()
    if torch.distributed.get_rank() == 0:
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        print("losses", *losses)


if __name__ == "__main__":
    main()
