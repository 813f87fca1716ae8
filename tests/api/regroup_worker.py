"""One rank of a run that others leave, against one process with the same batches, in float64.

Arguments: plan, then LEAVING@STEP for each departure (`3@2`: rank 3 is gone before step 2; `3@2+` in the
middle of it), and `checkpoint=FOLDER` that is written after step 1. Ranks that stay print the largest
relative difference of losses and parameters, and the ranks and steps that they went on from.
"""

import os
import sys
from contextlib import suppress

import torch
import torch.distributed as dist
from torch import nn

import plait

WIDTH, ROWS, STEPS = 12, 12, 6
ADAMW = {"lr": 0.05, "weight_decay": 0.1}


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


def model():
    torch.manual_seed(0)
    return nn.Sequential(*(Layer() for _ in range(3))).double()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        {"input": torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)}
        for _ in range(STEPS)
    ]


def loss_fn(output, batch):
    return (output - 1).square().mean()


def unchanged(module, step):
    """What becomes of a module before a step: nothing."""


def eager(module, steps, change=unchanged):
    """Losses and parameters of one process."""
    losses = []
    optimizer = torch.optim.AdamW(module.parameters(), **ADAMW)
    for step, batch in enumerate(steps):
        change(module, step)
        loss = loss_fn(module(**batch), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, module.state_dict()


def difference(losses, state, expected, whole):
    """The largest relative difference of losses, by step, and parameters."""
    rows = [abs(losses[n] - loss) / abs(loss) for n, loss in enumerate(expected)]
    rows += [((state[n] - whole[n]).abs().max() / whole[n].abs().max()).item() for n in whole]
    return max(rows)


def main(plan, *arguments):
    leaving = dict(a.split("@") for a in arguments if "@" in a)
    folder = next((a.partition("=")[2] for a in arguments if a.startswith("checkpoint=")), None)
    steps = batches()
    program = plait.parallelize(
        model(),
        steps[0],
        loss_fn=loss_fn,
        optimizer=torch.optim.AdamW,
        optimizer_args=ADAMW,
        plan=plan,
    )
    first, losses, went_on = dist.get_rank(), {}, []
    when = leaving.get(str(first), "")
    while program.batches < STEPS:
        number = program.batches
        if when.rstrip("+") == str(number):
            if when.endswith("+"):
                with suppress(plait.CommunicationError):  # others may have left before
                    program.forward_backward(steps[number])
            os._exit(0)
        try:
            losses[number] = program.step(steps[number]).item()
        except plait.CommunicationError:
            program = plait.regroup(program, checkpoint=folder)
            went_on.append(
                f"{dist.get_world_size()}@{program.batches}:{program.plan.strategy_text}"
            )
            continue
        if folder is not None and number == 1:
            program.save(folder)
    print(f"{difference(losses, program.state_dict(), *eager(model(), steps)):.3e}", *went_on)


if __name__ == "__main__":
    main(*sys.argv[1:])
