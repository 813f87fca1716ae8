"""Independent check of a solution: it adds up layer by layer and shares no code with the search."""

from __future__ import annotations

from collections.abc import Iterator

from plait.benchmarks.rivals.layers.objective import Objective
from plait.benchmarks.rivals.layers.problem import LayerProblem, LayerSolution, LayerStage

TOLERANCE = 1e-9  # relative, of sums in another order


def faults(problem: LayerProblem, solution: LayerSolution, objective: Objective) -> list[str]:
    """Every rule that a solution breaks, as text; empty for a valid one."""
    if len(solution.counts) != len(problem.stages):
        return [f"{len(solution.counts)} stages have counts, of {len(problem.stages)}"]
    violations, seconds, synchronised = list[str](), list[float](), list[float]()
    for number, (stage, counts) in enumerate(zip(problem.stages, solution.counts, strict=True)):
        violations += [f"stage {number}: {fault}" for fault in _faults(stage, counts)]
        if violations:
            continue
        chosen = [
            choice
            for layers, layer_counts in zip(stage.layers, counts, strict=True)
            for choice, count in zip(layers.choices, layer_counts, strict=True)
            for _ in range(count)
        ]
        used_bytes = stage.other_bytes + sum(choice.peak_bytes for choice in chosen)
        if used_bytes > stage.budget_bytes:
            violations.append(f"stage {number}: holds {used_bytes} B of {stage.budget_bytes} B")
        seconds.append(stage.seconds + sum(c.seconds for c in chosen))
        synchronised.append(
            stage.synchronised_seconds + sum(c.synchronised_seconds for c in chosen)
        )
    if not violations:
        step = float(objective.step(seconds, synchronised, problem.micro_batches))
        if abs(step - solution.step_seconds) > TOLERANCE * step:
            violations.append(f"a step takes {step} s, not {solution.step_seconds} s")
        if solution.bound_seconds > step * (1 + TOLERANCE):
            violations.append(
                f"the bound of {solution.bound_seconds} s is above the step's {step} s"
            )
    return violations


def _faults(stage: LayerStage, counts: tuple[tuple[int, ...], ...]) -> Iterator[str]:
    if len(counts) != len(stage.layers):
        yield f"{len(counts)} layers have counts, of {len(stage.layers)}"
        return
    for layers, layer_counts in zip(stage.layers, counts, strict=True):
        if (
            len(layer_counts) != len(layers.choices)
            or min(layer_counts, default=0) < 0
            or sum(layer_counts) != layers.count
        ):
            yield f"{layer_counts} are no counts of {layers.count} layers {layers.name}"
