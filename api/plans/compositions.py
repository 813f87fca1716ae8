"""Random compositions of strategy, micro-batches, memory action, schedule and compression, verified.

What a test did not think of is drawn: see `plait verify --fuzz` and `benchmarks/compositions.py`.
"""

from __future__ import annotations

import functools
import random
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ...ir.errors import PlaitError
from ...ir.lowering.cast import HALF_PRECISIONS, in_precision, precision_of
from ...ir.plan.plan import Optimizer
from ...ir.plan.schedules.registry import SCHEDULES
from ...ir.plan.strategy import parse_strategy
from ..formats import files
from ..formats.model_source import ModelSource

if TYPE_CHECKING:
    from ...ir.model.model import Model
    from ...ir.plan.plan import Plan
    from ...runtime.verification.verify import Verdict

AMPLE_BYTES = 1 << 50
BATCH_ROLES = ("dp", "zero1", "zero2", "zero3")
SEQUENCE_ROLES = ("cp", "sp")
FRACTIONS = ("@1/4", "@1/2", "@3/4")
# fmt: off
MEMORY_ACTIONS = (
    "keep", "save 75%", "save 50%", "save 30%", "recompute", "offload", "offload 50%",
    "offload inputs", "split 2", "split 4", "split 8",
)
# fmt: on
MIXED_SHARE = 0.25  # of compositions whose layers differ in strategy


class Composition(msgspec.Struct, frozen=True):
    """One way of training: `layer` is a call with a strategy of its own, "" for none."""

    strategy: str
    layer: str = ""
    layer_strategy: str = ""
    micro_batches: int = 1
    memory: str = "keep"
    schedule: str = "1f1b"
    compress: str = "none"
    optimizer: str = "adamw"
    precision: str = "fp64"

    def __str__(self) -> str:
        rest = (
            f"{self.layer}:{self.layer_strategy}" if self.layer else "",
            f"{self.micro_batches} micro-batches" if self.micro_batches > 1 else "",
            self.memory,
            self.schedule if self.schedule != "1f1b" else "",
            f"compress {self.compress}" if self.compress != "none" else "",
            self.optimizer.rpartition(":")[2],
            self.precision,
        )
        return "; ".join(filter(None, (self.strategy, *rest)))


class Choices(NamedTuple):
    """What compositions are drawn from; one value fixes it."""

    memory: Sequence[str] = MEMORY_ACTIONS
    schedules: Sequence[str] = (*(("1f1b", "interleaved") * 2), *SCHEDULES)
    compress: Sequence[str] = ("none",)
    optimizers: Sequence[str] = ("adamw",)
    precisions: Sequence[str] = ("fp64",)


class Trial(NamedTuple):
    """A composition for a model, on a number of ranks."""

    composition: Composition
    source: ModelSource
    model: Model


class Outcome(NamedTuple):
    """What became of a trial: refused for a reason, or a verdict (None where refused)."""

    trial: Trial
    refused: str
    verdict: Verdict | None

    @property
    def mismatch(self) -> bool:
        """Whether the program ran and its numbers differ."""
        verdict = self.verdict
        return verdict is not None and not verdict.passed and not verdict.failure


def draw(rng: random.Random, model: Model, ranks: int, choices: Choices) -> Composition:
    """A random composition for a model; it may be one that the planner refuses."""
    strategy = _strategy(rng, model, ranks)
    layer, layer_strategy = "", ""
    if rng.random() < MIXED_SHARE:
        calls = [c for i, c in enumerate(model.calls) if i not in model.batch_only_calls()]
        layer = rng.choice(calls).path
        layer_strategy = _strategy(rng, model, ranks, parse_strategy(strategy).stages)
    most = max(1, model.batch // parse_strategy(strategy).batch_degree())
    counts = [n for n in (1, 2, 4) if most % n == 0]
    memory, schedule = rng.choice(choices.memory), rng.choice(choices.schedules)
    compress, precision = rng.choice(choices.compress), rng.choice(choices.precisions)
    return Composition(
        strategy,
        layer,
        layer_strategy,
        rng.choice(counts),
        memory,
        schedule if parse_strategy(strategy).stages > 1 else "1f1b",
        compress,
        rng.choice(choices.optimizers),
        "fp32" if compress != "none" else precision,
    )


def _strategy(rng: random.Random, model: Model, ranks: int, stages: int | None = None) -> str:
    """A random strategy of `ranks` devices, of a number of stages where one is asked for."""
    axes: list[str] = []
    rest = ranks
    if stages is None:
        most = min(ranks, len(model.calls) - len(model.batch_only_calls()))
        stages = rng.choice([n for n in (1, 1, 2, ranks) if ranks % n == 0 and n <= most])
    if stages > 1:
        axes.append(f"pp={stages}")
        rest //= stages
    experts = any(op.target.startswith("plait.experts") for f in model.functions for op in f.ops)
    roles = [*BATCH_ROLES, "tp", "tp", *SEQUENCE_ROLES, *(["ep"] * 2 if experts else [])]
    inner: dict[str, int] = {}
    while rest > 1:
        size = rng.choice([n for n in (2, rest) if rest % n == 0])
        role = rng.choice(roles)
        inner[role] = inner.get(role, 1) * size
        rest //= size
    order = (*BATCH_ROLES, "ep", *SEQUENCE_ROLES, "tp")
    axes += [f"{role}={inner[role]}" for role in order if role in inner]
    if "tp" in inner and "sp" not in inner and rng.random() < 0.4:
        axes.append("sp")
    fraction = rng.choice(FRACTIONS) if "zero3" in inner and rng.random() < 0.3 else ""
    return ",".join(axes or ["dp=1"]).replace(
        f"zero3={inner.get('zero3')}", f"zero3={inner.get('zero3')}{fraction}"
    )


def plan_of(trial: Trial, ranks: int) -> Plan:
    """The plan of a trial on gloo ranks of this machine. Raises what planning raises."""
    from ...cost_model.hardware import load_cluster
    from ...planner import PlanOptions, plan
    from ...planner.question.pins import Pin, pin_all

    composition = trial.composition
    pins = pin_all(composition.strategy)
    if composition.layer:
        pins += (Pin(composition.layer, parse_strategy(composition.layer_strategy)),)
    optimizer = _optimizer(trial)
    options = PlanOptions(
        memory_bytes=AMPLE_BYTES,
        pins=pins,
        micro_batches=composition.micro_batches,
        memory_actions=(composition.memory,),
        schedule=composition.schedule,
        compress=composition.compress,
        precision=composition.precision,
        optimizer=optimizer if isinstance(optimizer, str) else optimizer.name,
        probed_optimizer=None if isinstance(optimizer, str) else optimizer,
    )
    return plan(_model_in_precision(trial), load_cluster(f"local:{ranks}"), options)


def _optimizer(trial: Trial) -> str | Optimizer:
    """A trial's optimizer by the planner's name for it, else as a probe finds it."""
    from ...planner.question.options import OPTIMIZERS
    from ...runtime.verification.training import training_of
    from .optimizer_profile import optimizer_profile

    name = trial.composition.optimizer
    if name in OPTIMIZERS:
        return name
    training = training_of(name, 1, 0)
    return optimizer_profile(trial.model, training.optimizer, training.arguments, None)


def _model_in_precision(trial: Trial) -> Model:
    """The model of a trial in its precision, traced in it where there is a module."""
    precision, model = trial.composition.precision, trial.model
    if precision == precision_of(model.parameters):
        return model
    if not trial.source.is_file and precision in HALF_PRECISIONS:
        return _traced_in(trial.source, model.batch, precision)
    return in_precision(model, precision)


@functools.lru_cache(maxsize=64)
def _traced_in(source: ModelSource, batch: int | None, precision: str) -> Model:
    return source.load(batch, precision)


def verify_trials(
    trials: Sequence[Trial], ranks: int, scratch: Path, timeout_seconds: float
) -> list[Outcome]:
    """Plan, compile and verify trials, all in one launch of ranks.

    A PlaitError of planning is a refusal; any other error, and any difference, a mismatch.
    """
    from ...runtime.verification.verify import Job, Verdict, verify

    jobs: dict[int, Job] = {}
    outcomes: dict[int, Outcome] = {}
    model_files: dict[int, str] = {}
    for number, trial in enumerate(trials):
        name = f"{number + 1}. {trial.composition}"
        try:
            folder = Path(scratch, f"program_{number}")
            _compile(trial, ranks, folder)
        except PlaitError as error:
            outcomes[number] = Outcome(trial, str(error), None)
            continue
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            outcomes[number] = Outcome(trial, "", Verdict(name, failure=text))
            continue
        file = model_files.get(id(trial.model))
        if file is None:
            file = model_files[id(trial.model)] = str(Path(scratch, f"model_{number}.json"))
            files.write(Path(file), trial.model, "plait/model")
        jobs[number] = Job(
            name,
            str(folder),
            trial.source.source,
            file,
            batch=trial.source.batch or trial.model.batch,
            seq=trial.source.seq,
            optimizer=trial.composition.optimizer,
            precision=trial.composition.precision,
            lossy=trial.composition.compress != "none",
        )
    verdicts = verify(list(jobs.values()), ranks, timeout_seconds) if jobs else []
    for number, verdict in zip(jobs, verdicts, strict=True):
        outcomes[number] = Outcome(trials[number], "", verdict)
    return [outcomes[number] for number in range(len(trials))]


def _compile(trial: Trial, ranks: int, folder: Path) -> None:
    from ...codegen import compile_program, write_program

    write_program(compile_program(plan_of(trial, ranks), _model_in_precision(trial)), folder)
