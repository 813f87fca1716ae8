"""Programs for the ranks at hand: compiled on rank 0, sent to all, opened from a folder that is gone
afterwards."""

from __future__ import annotations

import contextlib
import linecache
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from ...ir.errors import InfeasibleError, MismatchError, UsageError
from ...ir.lowering.cast import in_precision
from ...ir.model.model import Model
from ...ir.plan.plan import Plan
from ...ir.plan.program import GeneratedProgram
from ...planner.question.pins import Pin
from ...planner.question.training import training_of_plan
from ..plans.plan_object import load_plan
from ..plans.plan_request import plan_request

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...ir.capture import ForwardOutputs
    from ...runtime.execution.batch import Batch
    from ...runtime.execution.variants import Mode, Open, Variant
    from ...runtime.program import Program

EVALUATES = "sgd"  # the optimizer of a program that makes no step: it has no states
UNLIMITED = 1 << 60  # bytes: a forward alone keeps next to nothing


@contextlib.contextmanager
def program_folder(program: GeneratedProgram) -> Iterator[Path]:
    """A program's files in a folder of this process; their lines are there for tracebacks later."""
    from ...codegen import write_program
    from ...runtime.launch.scratch import scratch_folder

    with scratch_folder("program") as folder:
        write_program(program, folder)
        for name, text in program.files:
            path = str(folder / name)
            linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
        yield folder


class _Compiled(NamedTuple):
    """A program of another shape or mode, and what the model gives its caller."""

    program: GeneratedProgram
    outputs: ForwardOutputs | None


class VariantPrograms:
    """Compiles a module for other batches than its plan's, and for evaluation.

    A batch of a shape that one of `others` is for trains under that plan. Elsewhere layers keep the
    strategies of `plan`, so that most tensors lie where they are; where those cannot split another batch
    (a last one of odd size), the search is free.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        plan: Plan,
        others: Sequence[Plan],
    ) -> None:
        self.module, self.loss_fn, self.plan, self.others = module, loss_fn, plan, others

    def __call__(self, mode: Mode, batch: Batch, open_: Open) -> Variant:
        """The program for a batch; all ranks together. Raises what tracing and planning raise."""
        from ...runtime.execution.variants import Variant
        from ...runtime.launch.session import on_first_rank

        compiled = on_first_rank(lambda: self.compiled(mode, batch))
        with program_folder(compiled.program) as folder:
            return Variant(open_(folder, compiled.program.table), compiled.outputs)

    def compiled(self, mode: Mode, batch: Batch) -> _Compiled:
        from ...codegen import compile_program

        model, outputs = self.traced(mode, batch)
        samples = _samples(batch)
        if samples != model.batch:
            model = plan_request(model, 1, {"global_batch": samples}).model
        plan = self.plan_for(mode, model, samples)
        return _Compiled(compile_program(plan, in_precision(model, plan.precision)), outputs)

    def traced(self, mode: Mode, batch: Batch) -> tuple[Model, ForwardOutputs | None]:
        """The module on a batch, as in `eval()` unless it trains, and its outputs."""
        from ...ir.capture import ForwardOutputs, evaluating, trace, trace_outputs

        precision = self.plan.precision
        if mode == "train":
            return trace(self.module, batch, self.loss_fn, precision=precision), None
        with evaluating(self.module, self.loss_fn):
            if mode == "evaluate":
                return trace(self.module, batch, self.loss_fn, precision=precision), None
            outputs = ForwardOutputs()
            return trace_outputs(self.module, batch, outputs, precision=precision), outputs

    def plan_for(self, mode: Mode, model: Model, samples: int) -> Plan:
        """The plan of a batch: the one that was given for it, else this plan's strategies, else the
        best."""
        for other in self.others if mode == "train" else ():
            if other.is_for(in_precision(model, other.precision)):
                return self.as_first(other)
        if self.others and mode == "train":
            warnings.warn("none of the other plans is for a batch of this shape", stacklevel=2)
        pinned = self.options(mode, model, samples)
        free = {k: v for k, v in pinned.items() if k not in ("pin", "micro_batches")}
        if mode != "train":
            free["micro_batches"] = 1
        try:
            return self.search(model, pinned)
        except (UsageError, InfeasibleError):
            return self.search(model, free)

    def search(self, model: Model, options: Mapping[str, Any]) -> Plan:
        from ...planner import plan as search

        cluster = self.plan.cluster
        request = plan_request(model, cluster.devices, options)
        bounds = self.bounds(model) if "pin" in options else None
        plan = search(request.model, cluster, replace(request.options, bounds=bounds))
        return plan if options["optimizer"] == EVALUATES else self.as_first(plan)

    def as_first(self, plan: Plan) -> Plan:
        """A plan whose states and sums are those of the first program, which steps."""
        precision = self.plan.gradient_precision
        mine = self.plan
        return replace(
            plan,
            optimizer=mine.optimizer,
            gradient_precision=precision,
            expert_slots=mine.expert_slots,
        )

    def options(self, mode: Mode, model: Model, samples: int) -> dict[str, Any]:
        """Options that ask for this plan's strategies again."""
        common = {
            "global_batch": samples,
            "precision": self.plan.precision,
            "pin": self.pins(model),
            "expert_slots": self.plan.expert_slots,
        }
        if mode != "train":
            return common | {
                "micro_batches": 1,
                "memory": UNLIMITED,
                "memory_actions": ("keep",),
                "optimizer": EVALUATES,
            }
        training, parts = training_of_plan(self.plan), self.plan.micro_batches
        profile = training.pop("probed_optimizer", training["optimizer"])
        return {
            **common,
            **training,
            "optimizer": profile,
            "micro_batches": parts if samples % parts == 0 else None,
            "memory": self.plan.memory_limit_bytes,
        }

    def pins(self, model: Model) -> list[Pin]:
        """This plan's strategy for every call that both models have."""
        strategies = {
            self.plan.calls[call]: self.plan.strategy_of(layers)
            for layers in self.plan.layers
            for call in range(layers.first, layers.last)
        }
        paths = dict.fromkeys(call.path for call in model.calls)
        pins = [Pin("*", self.plan.strategies[0])]
        if len(self.plan.strategies) > 1:
            pins += [Pin(path, strategies[path]) for path in paths if path in strategies]
        return pins

    def bounds(self, model: Model) -> tuple[int, ...] | None:
        """This plan's first call of every stage, where the models have the same calls."""
        same = tuple(call.path for call in model.calls) == self.plan.calls
        if not same or self.plan.chunks_per_stage > 1 or len(self.plan.stages) == 1:
            return None
        return (*(span[0] for span in self.plan.model_chunks), len(model.calls))


def read_other_plans(chosen: Sequence[str | Path | Plan], ranks: int) -> tuple[Plan, ...]:
    """Plans for batches of other shapes, read from files or given.

    Raises MismatchError for another number of ranks, UsageError where one compresses: errors of
    compression belong to one plan.
    """
    plans = [one if isinstance(one, Plan) else load_plan(one) for one in chosen]
    for plan in plans:
        if plan.mesh.size != ranks:
            raise MismatchError(
                f"a plan for other batches is for {plan.mesh.size} ranks, not {ranks}"
            )
        if plan.compression:
            raise UsageError("a plan for other batches compresses: leave out --compress for it")
    return tuple(plans)


def attach(
    program: Program,
    module: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    plan: Plan | None,
    others: Sequence[Plan] = (),
    steady: frozenset[str] = frozenset(),
) -> None:
    """Let an opened program watch its module and, where it has a plan, compile it for other batches,
    under `others` where those are for them. `steady`: see `Guard`."""
    from ...runtime.execution.guard import Guard
    from ...runtime.state.module.user_module import StaleWarning

    program.stale = StaleWarning(program, module)  # before the guard, which counts hooks
    program.guard = Guard(module, loss_fn, steady)
    if plan is not None:
        program.meter.plan = plan
        program.variants.compile = VariantPrograms(module, loss_fn, plan, others)


def _samples(batch: Batch) -> int:
    from ...ir.capture.batch import batch_size, leaves

    return batch_size([tensor for _, tensor in leaves(batch)])
