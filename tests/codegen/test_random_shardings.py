"""Whatever a sharding says, the program does: random splits per layer and random layouts between
layers, on real ranks against one process."""

import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.dataflow import analyse_dataflow
from plait.ir.plan.sharding import Boundary
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.verification.verify import Job, verify
from plait.tests.codegen.sources import sourced
from plait.tests.ir.lowering import lockstep


class Shuffled:
    """A plan of one model whose every call is split at random, on two axes of devices."""

    def __init__(self, made, model, seed: int) -> None:
        self.plan, self.model, self.rng = made, model, random.Random(seed)
        self.axes = analyse_dataflow(model).axes
        self.functions = {f.name: f for f in model.functions}
        self.mesh = made.shardings[0].mesh
        self.given: dict[str, tuple] = {}  # layouts of values and of their gradients, by name
        self.tangent: dict[str, tuple] = {}

    def layout(self, function, value: int, partial: bool = True) -> tuple:
        floating = partial and function.types[value].is_float
        axes, mesh = self.axes[function.name], self.mesh
        made = lockstep.random_layout(axes, value, floating, mesh, self.rng)
        return self.settled(made)

    def settled(self, layout: tuple) -> tuple:
        pairs = zip(layout, self.mesh.axes, strict=True)
        return tuple("R" if axis.size == 1 else state for state, axis in pairs)

    def gradient(self, layout: tuple) -> tuple:
        """A held tensor's gradient lies as it does, whole or left to be added up where it is whole."""
        drawn = (self.rng.choice("RP") if state == "R" else state for state in layout)
        return self.settled(tuple(drawn))

    def plan_of(self):
        layers, shardings = [], []
        for run in self.plan.layers:
            for i in range(run.first, run.last):
                sharding = self.sharding(i, self.plan.shardings[run.sharding])
                layers.append(replace(run, first=i, last=i + 1, sharding=len(shardings)))
                shardings.append(sharding)
        return replace(self.plan, layers=tuple(layers), shardings=tuple(shardings))

    def sharding(self, number: int, planned):
        call = self.model.calls[number]
        function = self.functions[call.function]
        parameters = {
            p: self.layout(function, i.value, partial=False)
            for p, i in zip(call.parameters, function.state_inputs(), strict=True)
        }
        names = (*call.parameters, *call.arguments, *(("",) if function.random else ()))
        inputs, gradients = [], []
        for name, item in zip(names, function.inputs, strict=True):
            if item.kind in ("parameter", "buffer"):
                inputs.append(parameters[name])
                gradients.append(None if item.gradient is None else self.gradient(parameters[name]))
            elif item.kind == "key":
                inputs.append(("R",) * len(self.mesh.axes))
                gradients.append(None)
            else:
                if name not in self.given:  # from the batch
                    self.given[name] = self.layout(function, item.value, partial=False)
                inputs.append(self.given[name])
                gradients.append(None if item.gradient is None else self.tangent[name])
        outputs, tangents = [], []
        for position, (name, item) in enumerate(zip(call.results, function.outputs, strict=True)):
            self.given[name] = self.layout(function, item.value)
            self.tangent[name] = self.layout(function, item.value)
            if name == self.model.loss:
                self.given[name] = planned.boundary.outputs[position]
                self.tangent[name] = planned.boundary.tangents[position]
            outputs.append(self.given[name])
            tangents.append(None if item.tangent is None else self.tangent[name])
        options = lockstep.random_choices(self.axes[function.name], self.mesh, self.rng)
        names = tuple(tuple(option.name for option in row) for row in options)
        made = Boundary(tuple(inputs), tuple(gradients), tuple(outputs), tuple(tangents))
        return replace(planned, op_splits=names, boundary=made)


def jobs(name: str, folder: Path, strategy: str, ranks: int, seeds: range) -> list[Job]:
    model, source, file = sourced(name, folder, "3")
    options = PlanOptions(pins=pin_all(strategy), memory_actions=("keep",), micro_batches=1)
    answer = plan(model, load_cluster(f"local:{ranks}"), options)
    jobs_drawn = []
    for seed in seeds:
        program = folder / f"{name}_{ranks}_{seed}"
        write_program(compile_program(Shuffled(answer, model, seed).plan_of(), model), program)
        named = f"{name} on {ranks}, seed {seed}"
        jobs_drawn.append(Job(named, str(program), source, file, steps=2))
    return jobs_drawn


CASES = [
    ("tp=2", 2, "mixtral"),
    ("tp=2", 2, "llama"),
    ("dp=2,tp=2", 4, "mixtral"),
    ("dp=2,tp=2", 4, "llama"),
]


@pytest.mark.long
@pytest.mark.ranks
@pytest.mark.parametrize("case", CASES)
def test_random_layers_compute_what_one_process_computes(case, tmp_path):
    strategy, ranks, name = case
    for verdict in verify(jobs(name, tmp_path, strategy, ranks, range(2)), ranks, 300):
        assert verdict.passed, str(verdict)
