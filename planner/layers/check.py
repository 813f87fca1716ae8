"""The judge: what is wrong with a solution. It adds up layer by layer and shares no search code."""

from __future__ import annotations

from collections.abc import Iterator

from .objective import Objective
from .problem import Problem, Solution, Stage

TOLERANCE = 1e-9  # relative, of sums in another order


def faults(problem: Problem, solution: Solution, objective: Objective) -> list[str]:
    """Every rule that a solution breaks, in words; empty for a right one."""
    if len(solution.counts) != len(problem.stages):
        return [f"{len(solution.counts)} stages have counts, of {len(problem.stages)}"]
    found, seconds, synchronised = list[str](), list[float](), list[float]()
    for number, (stage, counts) in enumerate(zip(problem.stages, solution.counts, strict=True)):
        found += [f"stage {number}: {fault}" for fault in _faults(stage, counts)]
        if found:
            continue
        chosen = [
            choice
            for layers, own in zip(stage.layers, counts, strict=True)
            for choice, count in zip(layers.choices, own, strict=True)
            for _ in range(count)
        ]
        held = stage.held_bytes + sum(choice.held_bytes for choice in chosen)
        if held > stage.budget_bytes:
            found.append(f"stage {number}: holds {held} B of {stage.budget_bytes} B")
        seconds.append(stage.seconds + sum(c.seconds for c in chosen))
        synchronised.append(
            stage.synchronised_seconds + sum(c.synchronised_seconds for c in chosen)
        )
    if not found:
        step = float(objective.step(seconds, synchronised, problem.micro_batches))
        if abs(step - solution.step_seconds) > TOLERANCE * step:
            found.append(f"a step takes {step} s, not {solution.step_seconds} s")
        if solution.bound_seconds > step * (1 + TOLERANCE):
            found.append(f"the bound of {solution.bound_seconds} s is above the step's {step} s")
    return found


def _faults(stage: Stage, counts: tuple[tuple[int, ...], ...]) -> Iterator[str]:
    if len(counts) != len(stage.layers):
        yield f"{len(counts)} layers have counts, of {len(stage.layers)}"
        return
    for layers, own in zip(stage.layers, counts, strict=True):
        if len(own) != len(layers.choices) or min(own, default=0) < 0 or sum(own) != layers.count:
            yield f"{own} are no counts of {layers.count} layers {layers.name}"
