"""Run by torchrun: experts that have replicas and move while they train, against the eager module.

Which experts are hot changes from step to step; the module's router adds what the batch says.
"""

import json
import sys
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist

import plait
from plait.runtime.launch.session import session
from plait.runtime.state.optimizer_state import local_items
from plait.tests.runtime.state.experts.net import EXPERTS, OPTIMIZER, WIDTH, Net, eager

HOT = ((0, 1, 2, 3), (0, 1, 2, 3), (4, 5), (4, 5), (0, 1, 2, 3), (0, 1, 2, 3))  # by step


def batch(step):
    generator = torch.Generator().manual_seed(step)
    hot = torch.zeros(EXPERTS, dtype=torch.float64)
    hot[list(HOT[step])] = 4.0
    x, y = (torch.randn(8, 32, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    return {"x": x, "hot": hot.expand(8, 32, EXPERTS).contiguous(), "y": y}


def everything(program):
    """All weights and states of the optimizer, whole."""
    tensors = program.state_dict()
    for name, items in sorted(local_items(program.updates).items()):
        parameter = program.store.parameters[name]
        for key, value in items.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.leaf.shape:
                tensors[f"{name} {key}"] = program.store.gather(parameter, value)
    return {name: tensor.clone() for name, tensor in tensors.items()}


def moved(program):
    """Whether all stays as it is, bit by bit, when experts go to other homes and back."""
    first = everything(program)
    for order in (
        torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(1)).tolist(),
        range(EXPERTS),
    ):
        for path, placement in program.experts.placements.items():
            count = len(placement.homes[0])
            homes = tuple(tuple(order[i : i + count]) for i in range(0, EXPERTS, count))
            empty = tuple((-1,) * len(row) for row in placement.replicas)
            shares = tuple((1.0,) * count + (0.0,) * len(row) for row in empty)
            program.experts.place({path: type(placement)(homes, empty, shares)})
        second = everything(program)
        if first.keys() != second.keys() or not all(first[n].equal(second[n]) for n in first):
            return False
    return True


def continued(program, module, folder):
    """What losses differ by where a program without replicas goes on from a checkpoint, and the program
    itself from the same one."""
    losses = []
    program.step(batch(0))
    program.save(folder)
    other = plait.parallelize(
        deepcopy(module), batch(0), pin="*:dp=4", cluster="2x2xh100", **OPTIMIZER
    )
    for one in (program, other, program):
        one.load(folder)
        losses.append([one.step(batch(step)).item() for step in (1, 2, 3)])
    return max(abs(a - b) for row in losses[1:] for a, b in zip(losses[0], row, strict=True))


def run(module, case, folder):
    program = plait.parallelize(
        deepcopy(module),
        batch(0),
        pin=case["pin"],
        expert_slots=case["slots"],
        cluster="2x2xh100",
        **OPTIMIZER,
        **case["options"],
    )
    losses, ratios, homes, replicas = [], [], set(), 0
    for step in range(len(HOT)):
        losses.append(float(program.step(batch(step))))
        ratios.append(max(program.metrics.expert_ratios.values()))
        for placement in program.experts.placements.values():
            homes.add(placement.homes)
            replicas += placement.has_replicas
    row = {"losses": losses, "ratios": ratios, "homes": len(homes), "replicas": replicas}
    row["evaluated"] = float(program.eval(batch(0)))
    values = program.state_dict()
    row["moved"] = moved(program)
    row["continued"] = continued(program, module, folder)
    return row, values


def main() -> None:
    torch.set_num_threads(1)
    with session() as rank:
        torch.manual_seed(0)
        module = Net().double()
        losses, trained = eager(deepcopy(module), map(batch, range(len(HOT))))
        weights = trained.state_dict()
        with torch.no_grad():
            evaluated = trained.eval()(**batch(0)).item()
        rows = {}
        for case in json.loads(sys.argv[2]):
            row, values = run(module, case, Path(sys.argv[1]).parent / str(len(rows)))
            row["loss_error"] = max(
                abs(a - b) for a, b in zip(row.pop("losses"), losses, strict=True)
            )
            row["evaluation_error"] = abs(row.pop("evaluated") - evaluated)
            row["weight_error"] = max(
                float((values[n] - w).abs().max() / w.abs().max()) for n, w in weights.items()
            )
            rows[case["pin"]] = row
        if rank == 0:
            Path(sys.argv[1]).write_text(json.dumps(rows))
        dist.barrier()


main()
