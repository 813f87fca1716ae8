"""Run by torchrun: training with experts that get centroids of nearly equal rows."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import torch

import plait
from plait.runtime.launch.session import session
from plait.tests.runtime.state.experts.net import EXPERTS, OPTIMIZER, WIDTH, Net, eager

STEPS, TOKENS, PROTOTYPES = 40, 128, 16


def batch(step):
    """Tokens near some prototypes, of which the module is to learn a function."""
    fixed, drawn = (torch.Generator().manual_seed(seed) for seed in (0, step + 1))
    prototypes, matrix = (
        torch.randn(n, WIDTH, generator=fixed, dtype=torch.float64) for n in (PROTOTYPES, WIDTH)
    )
    index = torch.randint(PROTOTYPES, (8, TOKENS), generator=drawn)
    noise = torch.randn(8, TOKENS, WIDTH, generator=drawn, dtype=torch.float64)
    x = prototypes[index] + 0.05 * noise
    hot = torch.zeros(8, TOKENS, EXPERTS, dtype=torch.float64)
    return {"x": x, "hot": hot, "y": (x @ matrix / 4).tanh()}


def main() -> None:
    torch.set_num_threads(1)
    with session() as rank:
        torch.manual_seed(0)
        module = Net().double()
        losses, _ = eager(deepcopy(module), map(batch, range(STEPS)))
        rows = {"eager": {"losses": losses}}
        for compress in ("none", "lsh-moe", "lsh-moe:rate=2"):
            program = plait.parallelize(
                deepcopy(module),
                batch(0),
                pin="*:ep=4",
                compress=compress,
                cluster="2x2xh100",
                **OPTIMIZER,
            )
            before = program.groups.sent_bytes["all_to_all"]
            losses = [program.step(batch(step)).item() for step in range(STEPS)]
            sent = program.groups.sent_bytes["all_to_all"] - before
            rows[compress] = {"losses": losses, "sent_bytes": sent}
        if rank == 0:
            Path(sys.argv[1]).write_text(json.dumps(rows))


main()
