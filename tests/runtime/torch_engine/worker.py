"""One rank: a module in a plan's form on PyTorch's engine, against the eager module on the whole batch.

Both train without dropout, in float64 throughout: casts to float32 that a model's code writes are left
out on both sides. SGD with momentum sees the size of gradients, AdamW after it is what users train with;
its eps keeps gradients that are zero but for rounding from whole steps. Prints the largest relative
difference of losses and of all parameters over all ranks.
"""

import sys

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

import plait
from plait.ir.capture.sources.source import materialize
from plait.ir.errors import PlaitError

SMALLEST = 1e-2
OPTIMIZERS = {  # with their numbers of steps
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9): 3,
    lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, eps=1e-6): 2,
}


def stay_wide() -> None:
    """Let tensors in float64 ignore casts to float32."""
    plain = torch.Tensor.to

    def to(tensor, *args, **kwargs):
        narrow = torch.float32 in (*args, *kwargs.values())
        return (
            tensor if narrow and tensor.dtype == torch.float64 else plain(tensor, *args, **kwargs)
        )

    torch.Tensor.to = to
    torch.Tensor.float = lambda tensor: tensor.to(torch.float32)


def loss_of(output, batch, loss_fn):
    return loss_fn(output, batch) if loss_fn else getattr(output, "loss", output)


def call(module, batch):
    return module(**batch) if isinstance(batch, dict) else module(*batch)


def local(batch, rank: int, ranks: int):
    """The samples of one data rank."""
    if isinstance(batch, dict):
        return {k: v.chunk(ranks)[rank] for k, v in batch.items()}
    return tuple(v.chunk(ranks)[rank] for v in batch)


def train(module, batch, loss_fn) -> list[torch.Tensor]:
    losses = []
    for build, steps in OPTIMIZERS.items():
        optimizer = build(module.parameters())
        for _ in range(steps):
            if hasattr(module, "step"):
                loss = call(module.step, batch)
            else:
                loss = loss_of(call(module, batch), batch, loss_fn)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    return losses


def difference(source: str, plan: plait.Plan) -> float:
    built, judged = (materialize(source, dtype="float64") for _ in range(2))
    batch, loss_fn, judge = built.batch, built.loss_fn, judged.model.eval()
    before = {parameter: parameter.detach().clone() for parameter in judge.parameters()}
    expected = train(judge, batch, loss_fn)
    applied = plait.apply(built.model.eval(), plan, batch, loss_fn=loss_fn)
    strategy = plan.strategies[0]
    tensor, ranks = strategy.size("tp"), strategy.batch_degree()
    mine = local(batch, dist.get_rank() // tensor % ranks, ranks)
    losses = torch.stack(train(applied, mine, loss_fn))
    dist.all_reduce(losses)
    worst = [((losses / dist.get_world_size() - torch.stack(expected)).abs().max()).item()]
    whole = dict(judge.named_parameters(remove_duplicate=False))
    for name, parameter in applied.named_parameters():
        value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        scale = whole[name].abs().max().clamp(min=SMALLEST)  # biases of keys are rounding alone
        worst.append(((value - whole[name]).abs().max() / scale).item())
    seen = {whole[name] for name in names_of_all_ranks(applied)}
    missing = [p for p in judge.parameters() if p not in seen and not p.equal(before[p])]
    return largest(worst) if not missing else float("inf")


def names_of_all_ranks(module) -> set[str]:
    names = [None] * dist.get_world_size()
    dist.all_gather_object(names, [name for name, _ in module.named_parameters()])
    return {name for rank in names for name in rank}


def largest(values: list[float]) -> float:
    """The largest of all ranks' values."""
    tensor = torch.tensor(values).max()
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.item()


if __name__ == "__main__":
    source, *paths = sys.argv[1:]
    stay_wide()
    for path in paths:
        try:
            print(f"{path} {difference(source, plait.load_plan(path)):.3e}")
        except PlaitError as refusal:
            print(f"{path} refused: {refusal}")
    if dist.is_initialized():
        dist.barrier()
