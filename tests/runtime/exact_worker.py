"""Run on 2 or 4 ranks: cases under strategies against the user's module in eager."""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

import plait
from plait.runtime.launch.session import session
from plait.tests.runtime import exact_cases as cases

STEPS = 3
LEARNING = {"lr": 1e-2}


def eager(case: cases.Case) -> tuple[list[float], dict, dict]:
    """Losses, and the state before and after."""
    model = cases.build(case)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), **LEARNING)
    losses = []
    for step in range(STEPS):
        given = cases.batch(case, step)
        optimizer.zero_grad()
        output = model(**given)
        loss = output if case.loss_fn is None else case.loss_fn(output, given)
        loss.backward()
        optimizer.step()
        case.between(model)
        losses.append(float(loss.detach()))
    return losses, before, model.state_dict()


def trained(case: cases.Case, strategy_text: str) -> tuple[list[float], dict]:
    strategy, _, micro = strategy_text.partition(";")
    model, sample = cases.build(case), cases.batch(case, 0)
    options = {"micro_batches": int(micro)} if micro else {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "plan.json")
        plait.plan(
            model,
            sample,
            cluster=f"local:{dist.get_world_size()}",
            loss_fn=case.loss_fn,
            pin=f"*:{strategy}",
            **options,
        ).save(file)
        program = plait.parallelize(
            model,
            sample,
            loss_fn=case.loss_fn,
            optimizer=torch.optim.AdamW,
            optimizer_args=LEARNING,
            plan=file,
        )
    losses = []
    for step in range(STEPS):
        losses.append(float(program.step(cases.batch(case, step))))
        case.between(model)
    return losses, program.state_dict()


def compared(results: tuple[list[float], dict], expected: tuple[list[float], dict, dict]) -> str:
    """`same`, or how far the worst number is off."""
    losses, before, after = expected
    loss = max(abs(a - b) / abs(b) for a, b in zip(results[0], losses, strict=True))
    if loss > 1e-9:
        return f"losses {results[0]} not {losses}"
    for name, tensor in after.items():
        moved = (tensor - before[name]).abs().max().clamp(min=1e-6)
        error = (results[1][name] - tensor).abs().max() / moved
        if error > 1e-6:
            return f"{name} is off by {float(error):.1e} of what it moved"
    return "same"


def verdict(case: cases.Case, strategy_text: str, expected: tuple[list[float], dict, dict]) -> str:
    wanted = case.refused.get(strategy_text)
    try:
        differences = compared(trained(case, strategy_text), expected)
    except plait.PlaitError as error:
        text = " ".join(str(error).split())
        fine = wanted is not None and wanted in text
        return "refused as it should be" if fine else f"refused: {type(error).__name__}: {text}"
    return differences if wanted is None else f"not refused, {differences}"


def main(share: int) -> None:
    with session("gloo") as rank:
        expected = functools.cache(lambda name: eager(cases.CASES[name]))
        for name, strategy_text in cases.drawn(dist.get_world_size(), share):
            line = verdict(cases.CASES[name], strategy_text, expected(name))
            if rank == 0:
                print(f"{name} | {strategy_text} | {line}", flush=True)
            dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]))
