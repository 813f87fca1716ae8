"""Run by torchrun: trains a recommender on batches of two sizes, beside the eager module."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import torch

import plait
from plait.ir.capture import materialize
from plait.runtime.launch.session import session
from plait.tests.paths import EXAMPLES

DLRM = f"{EXAMPLES / 'dlrm.py'}:make"
STEPS = 4


def main() -> None:
    torch.set_num_threads(1)
    with session() as rank:
        source = materialize(DLRM, seed=0)
        eager, batch = source.model, source.batch
        half = tuple(t[:8] for t in batch)
        module = deepcopy(eager)
        factory = type(source.model).forward.__globals__["optimizer"]
        pins = ["*:dp=2", "tables.0:tp=2", "tables.1:zero1=2"]
        program = plait.parallelize(module, batch, optimizer=factory, pin=pins)
        before = {n: p.detach().clone() for n, p in eager.tables.named_parameters()}
        optimizer = factory(eager.parameters())
        for step in range(STEPS):
            now = half if step % 2 else batch
            optimizer.zero_grad()
            eager(*now).backward()
            optimizer.step()
            program.step(now)
        state = program.state_dict()
        moved = {n: (state[f"tables.{n}"] != old).any(1).sum().item() for n, old in before.items()}
        ids = batch[1]
        read = {f"{i}.weight": len(ids[:, i].unique()) for i in range(ids.shape[1])}
        error = max((state[n] - p.detach()).abs().max().item() for n, p in eager.named_parameters())
        if rank == 0:
            row = {"moved": moved, "read": read, "error": error}
            Path(sys.argv[1]).write_text(json.dumps(row))


main()
