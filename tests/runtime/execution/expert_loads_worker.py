"""Run by torchrun: how often experts are chosen, in programs and in the eager module."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist

import plait
from plait.runtime.launch.session import session
from plait.tests import zoo


def expected(module, batch):
    """By layer, choices of each expert, from what its gate gives."""
    counts = {}

    def note(name):
        def hook(_, __, result):
            scores = result[0]
            chosen = scores.topk(module.config.num_experts_per_tok).indices.reshape(-1)
            layer = name.removesuffix(".mlp.gate")
            counts[layer] = torch.bincount(chosen, minlength=scores.shape[-1]).tolist()

        return hook

    for name, gate in module.named_modules():
        if name.endswith(".gate"):
            gate.register_forward_hook(note(name))
    module(**batch)
    return counts


def main() -> None:
    torch.set_num_threads(1)
    with session() as rank:
        torch.manual_seed(0)
        module, batch = zoo.mixtral(2)
        module.train()
        observed = {}
        for action in ("keep", "recompute"):
            program = plait.parallelize(
                deepcopy(module),
                batch,
                optimizer=torch.optim.SGD,
                optimizer_args={"lr": 0.0},
                pin="*:ep=4",
                memory_actions=(action,),
                cluster="2x2xh100",
            )
            program.step(batch)
            program.step(batch)
            rows = [None] * dist.get_world_size()
            dist.all_gather_object(rows, dict(program.metrics.expert_loads))
            observed[action] = {
                layer: [sum(counts) for counts in zip(*(row[layer] for row in rows), strict=True)]
                for layer in rows[0]
            }
        if rank == 0:
            row = {"observed": observed, "expected": expected(module, batch)}
            Path(sys.argv[1]).write_text(json.dumps(row))


main()
