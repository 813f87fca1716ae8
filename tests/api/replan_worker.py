"""One rank of a run whose gate grows sparse between steps, against one process, in float64.

Argument: a pin. Prints the largest relative difference of losses and parameters, and the strategies of
the plans that were made on the way.
"""

import sys

import torch
from torch import nn

import plait
from plait.tests.api.regroup_worker import (
    ADAMW,
    ROWS,
    STEPS,
    WIDTH,
    batches,
    difference,
    eager,
    loss_fn,
)

EXPERTS = 4
CHOSEN = {2: 2, 4: 1}  # experts that a row goes to from a step on, all of them before


class GatedExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.chosen = EXPERTS
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(0.2 * torch.randn(EXPERTS, WIDTH, 2 * WIDTH))
        self.down = nn.Parameter(0.2 * torch.randn(EXPERTS, 2 * WIDTH, WIDTH))

    def forward(self, x):
        share = self.gate(x).softmax(-1)
        if self.chosen < EXPERTS:
            least = share.topk(self.chosen, -1).values[..., -1:]
            share = torch.where(share >= least, share, 0.0)
            share = share / share.sum(-1, keepdim=True)
        hidden = torch.einsum("bw,ewu->ebu", x, self.up).tanh()
        return x + torch.einsum("ebu,euw,be->bw", hidden, self.down, share)


def model():
    torch.manual_seed(0)
    return nn.Sequential(GatedExperts(), GatedExperts()).double()


def grow_sparse(module, step):
    for layer in module:
        layer.chosen = CHOSEN.get(step, layer.chosen)


def main(pin):
    module, steps = model(), batches()
    settings = {"optimizer": torch.optim.AdamW, "optimizer_args": ADAMW, "pin": pin}
    program = plait.parallelize(module, steps[0], loss_fn=loss_fn, **settings)
    losses, plans = [], []
    for step, batch in enumerate(steps):
        if step in CHOSEN:
            grow_sparse(module, step)
            program = plait.replan(program)
            plans.append(program.plan.strategy_text)
        losses.append(program.step(batch).item())
    assert (program.batches, program.samples) == (STEPS, STEPS * ROWS)
    expected = eager(model(), steps, grow_sparse)
    print(f"{difference(losses, program.state_dict(), *expected):.3e}", *plans)


if __name__ == "__main__":
    main(*sys.argv[1:])
