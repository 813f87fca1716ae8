"""One call under torchrun: `torchrun --nproc-per-node 4 examples/parallelize.py`."""

import sys
from pathlib import Path

import torch

import plait

sys.path.insert(0, str(Path(__file__).resolve().parent))
from small_llama import make

torch.manual_seed(0)
model, batch = make()
program = plait.parallelize(
    model, batch, optimizer=torch.optim.AdamW, optimizer_args={"lr": 1e-3}, plan="auto"
)
for step in range(3):
    loss = program.step(batch)
    if torch.distributed.get_rank() == 0:
        print(f"step {step}  loss {loss.item():.6f}")
