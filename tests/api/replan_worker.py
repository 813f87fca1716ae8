"""One rank of a run whose gate grows sparse between steps, against one process, in float64.

Argument: a pin. Prints the largest relative difference of losses and parameters, and the strategies of
the plans that were made on the way.
"""

import sys

import torch
from torch import nn

import plait

WIDTH, EXPERTS, ROWS, STEPS = 12, 4, 8, 6
CHOSEN = {0: EXPERTS, 2: 2, 4: 1}  # experts that a row goes to, from which step on
ADAMW = {"lr": 0.05, "weight_decay": 0.1}


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


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        {"input": torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)}
        for _ in range(STEPS)
    ]


def loss_fn(output, batch):
    return (output - 1).square().mean()


def grow_sparse(module, step):
    for layer in module:
        layer.chosen = CHOSEN[step]


def eager():
    """Losses and parameters of one process."""
    module, losses = model(), []
    optimizer = torch.optim.AdamW(module.parameters(), **ADAMW)
    for step, batch in enumerate(batches()):
        if step in CHOSEN:
            grow_sparse(module, step)
        loss = loss_fn(module(**batch), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, module.state_dict()


def main(pin):
    module, steps = model(), batches()
    settings = {"optimizer": torch.optim.AdamW, "optimizer_args": ADAMW, "pin": pin}
    program = plait.parallelize(module, steps[0], loss_fn=loss_fn, **settings)
    losses, plans = [], []
    for step, batch in enumerate(steps):
        if step and step in CHOSEN:
            grow_sparse(module, step)
            program = plait.replan(program)
            plans.append(program.plan.strategy_text)
        losses.append(program.step(batch).item())
    assert (program.batches, program.samples) == (STEPS, STEPS * ROWS)
    expected, whole = eager()
    state = program.state_dict()
    rows = [abs(loss - other) / abs(other) for loss, other in zip(losses, expected, strict=True)]
    rows += [((state[n] - whole[n]).abs().max() / whole[n].abs().max()).item() for n in whole]
    print(f"{max(rows):.3e}", *plans)


if __name__ == "__main__":
    main(*sys.argv[1:])
