"""A loop with accelerate on a plan:
`torchrun --nproc-per-node 2 examples/accelerate_loop.py plan.json`."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import plait

sys.path.insert(0, str(Path(__file__).resolve().parent))
from small_llama import make


def main():
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model, batch = make()
    samples = [
        dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)
    ]
    model = plait.apply(model, sys.argv[1], batch)  # in its plan's form: not to be prepared
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer, loader = accelerator.prepare(optimizer, DataLoader(samples, batch_size=8))
    losses = []
    for _ in range(3):
        for local in loader:
            loss = model(**local).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(accelerator.gather(loss.detach()).mean().item())
    if accelerator.is_main_process:
        print("losses", *losses)


if __name__ == "__main__":
    main()
