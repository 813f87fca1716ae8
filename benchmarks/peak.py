"""Promised against measured peak bytes of generated programs: `python benchmarks/peak.py [MODEL ...]`.

Every model of tests/zoo but mixtures of experts, and one whose weights are large enough to be compressed
as they travel, under plans of different words, memory actions, micro-batches and optimizers on one to
four gloo ranks. A row is a stage of a program: the bytes of live tensors at the worst moment of two
steps on its fullest rank, and what the plan promised.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import torch

from plait.api.plans.optimizer_profile import optimizer_profile
from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.compression.registry import COMPRESSED_OPTIMIZERS
from plait.ir.errors import PlaitError
from plait.ir.plan.plan import Plan
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.launch.launch import launch
from plait.runtime.launch.session import session
from plait.runtime.program import Program
from plait.runtime.verification.live_bytes import LiveBytes
from plait.runtime.verification.step_vectors import STEPS as PROBED_STEPS
from plait.tests import zoo
from plait.tests.faults import random_models

PATIENCE_SECONDS = 2e-3  # for gloo's threads, on a machine that has fewer processors than ranks
STEPS = 2  # the second has the optimizer's states from the start
LATER_STEPS = {"radam": PROBED_STEPS}  # of optimizers that come to all that they do after these
HIDDEN = "mixture of experts"  # it works inside one operator: the count is blind
MODELS = {
    **zoo.ZOO,
    "wide": partial(zoo.llama, hidden_size=256, intermediate_size=512),
    "slices": partial(zoo.llama, hidden_size=512, intermediate_size=32768),  # 64 MiB a weight
    "vocabulary": partial(zoo.llama, vocab_size=4096),
}
# fmt: off
OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {}), "adam": (torch.optim.Adam, {}),
    "sgd": (torch.optim.SGD, {"lr": 0.01}), "momentum": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "rmsprop": (torch.optim.RMSprop, {}), "adagrad": (torch.optim.Adagrad, {}),
    "radam": (torch.optim.RAdam, {}), "decayed adam": (torch.optim.Adam, {"weight_decay": 0.1}),
    **{name: (None, {}) for name in COMPRESSED_OPTIMIZERS},
}
# fmt: on


class Variant(NamedTuple):
    """How a model is run."""

    strategy: str
    micro_batches: int = 1
    memory: str = "keep"
    optimizer: str = "adamw"
    compress: str = "none"
    batch: int | None = None  # samples, where not the model's usual number
    schedule: str = "auto"

    @property
    def sizes(self) -> dict[str, int]:
        return {} if self.batch is None else {"batch": self.batch}


# fmt: off
VARIANTS = (
    Variant("dp=1"), Variant("dp=1", 4, "save 50%", "sgd"),
    Variant("dp=1", 2, "recompute", "momentum"), Variant("dp=2", 2),
    Variant("zero1=2", 1, "recompute", "rmsprop"), Variant("zero3=2", 2, "save 25%", "adagrad"),
    Variant("tp=2", 1, "save 75%", "adam"), Variant("pp=2", 4, "keep", "sgd"),
    Variant("dp=2,tp=2", 2), Variant("pp=2,zero2=2", 2, "recompute"),
    Variant("zero3=2,tp=2", 1, "keep", "momentum"), Variant("pp=2,tp=2", 4, "recompute"),
    Variant("dp=2", 2, "keep", "sgd", "error-feedback"),
    Variant("zero1=2", 1, "recompute", "adamw", "sdp4bit"),
    Variant("zero3=2", 2, "keep", "adamw", "zero++"), Variant("dp=2", 1, "recompute", "1-bit-adam"),
    Variant("slice=2", 2, "recompute"),
)
# fmt: on


def build(name: str, variant: Variant) -> tuple[torch.nn.Module, Any]:
    """A model by name, or `random:SEED`, and a batch."""
    if name.startswith("random:"):
        return random_models.build(int(name.partition(":")[2]), **variant.sizes)
    return MODELS[name](**variant.sizes)


class Job(msgspec.Struct, frozen=True):
    """One program: a model of the zoo, its folder, how it is run."""

    model: str
    folder: str
    variant: Variant


class Measured(msgspec.Struct, frozen=True):
    """What one rank of a stage held: the most bytes at once, in every phase of a step."""

    job: int
    stage: int
    phases: dict[str, int]
    states: int

    @property
    def peak(self) -> int:
        return max(self.phases.values())


class Row(NamedTuple):
    """The promise of a program's stage, and what its fullest rank held."""

    job: Job
    measured: Measured
    promised: int
    terms: tuple[tuple[str, int], ...]

    @property
    def slack(self) -> float:
        return self.promised / self.measured.peak - 1


def measure(job: Job, number: int, pool: GroupPool) -> Measured:
    """Train two steps of a program on this rank, counting live bytes."""
    torch.manual_seed(0)
    module, batch = build(job.model, job.variant)
    optimizer, arguments = OPTIMIZERS[job.variant.optimizer]
    with LiveBytes(patience_seconds=PATIENCE_SECONDS * (ranks(job.variant) > 1)) as live:
        program = Program.open(job.folder, module.train(), optimizer, arguments, pool=pool)
        live.restart()  # making the first values is not training
        follow_phases(program, live)
        for _ in range(LATER_STEPS.get(job.variant.optimizer, STEPS)):
            program.step(batch)
    states = sum(p.flat.nbytes for p in program.store.parameters.values())
    if program.optimizer is not None:
        buffers = (v for state in program.optimizer.state.values() for v in state.values())
        states += sum(v.nbytes for v in buffers if isinstance(v, torch.Tensor))
    return Measured(number, program.groups.stage, dict(live.peaks), states)


def follow_phases(program: Program, live: LiveBytes) -> None:
    """Have every phase of a step counted under its own name."""
    for owner, name in (
        (program.variants.first.pipeline, "forward"),
        (program.variants.first.pipeline, "backward"),
        (program.store, "synchronize"),
        (program, "optimizer_step"),
    ):
        setattr(owner, name, partial(phase, live, name, getattr(owner, name)))


def phase(live: LiveBytes, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
    live.phase = name
    return call(*arguments)


def worker(todo: str, results: str) -> None:
    """One rank of a launch: runs the jobs of a file, writes a line for each."""
    jobs = msgspec.json.decode(Path(todo).read_bytes(), type=list[Job])
    with session("gloo") as rank, Path(f"{results}.{rank}").open("ab") as file:
        pool = GroupPool(rank, PATIENT)
        for number, job in enumerate(jobs):
            file.write(msgspec.json.encode(measure(job, number, pool)) + b"\n")


def compiled(name: str, variants: Sequence[Variant], folder: Path) -> Iterator[tuple[Job, Plan]]:
    """The programs of one model, and their plans; a word that cannot split the model is left out."""
    models = {}
    for variant in variants:
        if variant.batch not in models:
            module, batch = build(name, variant)
            models[variant.batch] = module, trace(module.train(), batch)
        module, model = models[variant.batch]
        options = PlanOptions(
            pins=pin_all(variant.strategy),
            micro_batches=variant.micro_batches,
            memory_actions=(variant.memory,),
            compress=variant.compress,
            schedule=variant.schedule,
            **optimizer_options(module, variant),
        )
        try:
            answer = plan(model, load_cluster(f"local:{ranks(variant)}"), options)
        except (PlaitError, ValueError) as error:
            print(f"left out: {name} {variant}: {str(error).splitlines()[0]:.150}", file=sys.stderr)
            continue
        place = folder / f"{name.replace(':', '_')}_{variants.index(variant)}"
        write_program(compile_program(answer, model), place)
        yield Job(name, str(place), variant), answer


def optimizer_options(module: torch.nn.Module, variant: Variant) -> dict[str, Any]:
    """The options of planning for an optimizer, as a probe finds them."""
    factory, arguments = OPTIMIZERS[variant.optimizer]
    if factory is None:
        return {"optimizer": variant.optimizer}
    profile = optimizer_profile(module, factory, arguments, None)
    if isinstance(profile, str):
        return {"optimizer": profile}
    return {"optimizer": profile.name, "probed_optimizer": profile}


def ranks(variant: Variant) -> int:
    return pin_all(variant.strategy)[0].strategy.devices


def rows(names: Sequence[str], variants: Sequence[Variant], folder: Path) -> Iterator[Row]:
    """Every stage's promise against its fullest rank, for every model under every way."""
    yield from measured([one for name in names for one in compiled(name, variants, folder)], folder)


def measured(programs: Sequence[tuple[Job, Plan]], folder: Path) -> Iterator[Row]:
    """Every stage's promise against its fullest rank; ranks start once for each number of them."""
    for count in sorted({ranks(job.variant) for job, _ in programs}):
        of_count = [one for one in programs if ranks(one[0].variant) == count]
        todo, results = folder / "jobs.json", folder / f"results{count}"
        todo.write_bytes(msgspec.json.encode([job for job, _ in of_count]))
        launch(count, [__file__, "--jobs", str(todo), str(results)], timeout_seconds=3600)
        lines = [
            line for r in range(count) for line in Path(f"{results}.{r}").read_bytes().splitlines()
        ]
        reports = [msgspec.json.decode(line, type=Measured) for line in lines]
        for number, (job, made) in enumerate(of_count):
            for stage in range(len(made.stages)):
                mine = [one for one in reports if (one.job, one.stage) == (number, stage)]
                yield row(job, made, max(mine, key=lambda one: one.peak))


def row(job: Job, made: Plan, measured: Measured) -> Row:
    terms = made.stages[measured.stage].memory_terms
    return Row(job, measured, sum(n for name, n in terms if name != "runtime"), terms)


def show(row: Row) -> str:
    variant, measured = row.job.variant, row.measured
    phases = " ".join(f"{name} {amount}" for name, amount in measured.phases.items())
    terms = " ".join(f"{name} {amount}" for name, amount in row.terms if name != "runtime")
    about = f"{variant.strategy} x{variant.micro_batches} {variant.memory}"
    return (
        f"{row.job.model} {about} {variant.optimizer} {variant.compress} stage {measured.stage}: "
        f"measured {measured.peak}, promised {row.promised}, slack {row.slack:.1%}\n"
        f"    measured: states {measured.states}; peaks: {phases}\n    promised: {terms}"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--jobs", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--terms", action="store_true", help="every program, term by term")
    options = parser.parse_args(arguments)
    if options.jobs:
        worker(*options.jobs)
        return 0
    names = options.models or [name for name in MODELS if zoo.KIND.get(name) != HIDDEN]
    with tempfile.TemporaryDirectory() as folder:
        results = list(rows(names, VARIANTS, Path(folder)))
    for one in results:
        if options.terms or one.slack < 0:
            print(show(one))
    slacks = [one.slack for one in results]
    programs, models = ({getattr(one.job, name) for one in results} for name in ("folder", "model"))
    print(
        f"{len(programs)} programs of {len(models)} models, {len(results)} stages: slack median "
        f"{median(slacks):.1%}, from {min(slacks):.1%} to {max(slacks):.1%}; "
        f"{sum(s < 0 for s in slacks)} above their promise"
    )
    for variant in VARIANTS:
        of_variant = [one.slack for one in results if one.job.variant == variant]
        if of_variant:
            print(
                f"| {variant.strategy} | {variant.micro_batches} | {variant.memory} "
                f"| {variant.optimizer} | {variant.compress} | {len(of_variant)} "
                f"| {median(of_variant):.1%} | {min(of_variant):.1%} | {max(of_variant):.1%} |"
            )
    return int(any(s < 0 for s in slacks))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
