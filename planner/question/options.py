"""The options of planning: each field is declared once, for the search and for users."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import inf
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from ...cost_model.communication.compressed_collective import state_vectors
from ...ir.compression.registry import COMPRESSED_OPTIMIZERS, algorithm
from ...ir.compression.settings import WithVariants
from ...ir.errors import UsageError
from ...ir.lowering.cast import PRECISIONS
from ...ir.plan.engines import ENGINES, Engine, engine_named
from ...ir.plan.flat_shard import Fraction
from ...ir.plan.memory_action import MemoryAction
from ...ir.plan.plan import Optimizer
from ...ir.plan.routing import Routing, parse_routing
from ...ir.plan.schedules.registry import SCHEDULES, schedule_named
from ...ir.plan.strategy import ROLES, SEARCHED_ROLES
from ...ir.text.units import parse_memory
from ...ir.unknown_name import unknown_name
from .pins import Pin, parse_pin

# fmt: off
_KNOWN: dict[str, int] = {  # state tensors that are as large as their parameter
    "adamw": 2, "adam": 2, "sgd": 0, "momentum": 1, "rmsprop": 1, "adagrad": 1, "lion": 1,
    "adafactor": 1, "muon": 1, "lamb": 2, "lars": 1, "shampoo": 2, "soap": 4,
    **{name: state_vectors(optimizer) for name, optimizer in COMPRESSED_OPTIMIZERS.items()},
}
# fmt: on
OPTIMIZERS = WithVariants(_KNOWN, lambda name: state_vectors(COMPRESSED_OPTIMIZERS[name]))
PER_TENSOR = ("adafactor", "muon", "lamb", "lars", "shampoo", "soap")  # step on whole tensors
STALE = re.compile(r"stale-([0-8])")  # schedules that an optimizer does, by steps of delay
OBJECTIVES = ("time", "dollars", "energy")
QUALITIES = ("lossless", "safe", "all")  # see `compression/collectives`
MEMORY_ACTIONS = ("keep", "recompute", "offload", "split")  # kinds of actions, or one action
SIMPLER_WITHIN = 0.005  # of a step: less than a third of what repeats of a measurement differ by
HEADROOM = 0.03  # of a device: errors of predicted peaks of tensors (docs/results/accuracy.md)
FRACTIONS: tuple[Fraction, ...] = ((3, 4), (1, 2), (1, 4))  # of a weight, sharded over zero3


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """Declares a field of `PlanOptions` as an option: flag of `plait plan`, keyword of `plait.plan`.

    `group` is where help lists it; `name` is the keyword where the field is called otherwise (`memory`
    for `memory_bytes`); `parse`
    turns the text of a flag into the field's value and returns other values as they are.
    """

    help: str
    group: str
    name: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    parse: Callable[[Any], Any] | None = None
    repeatable: bool = False


def comma_separated(value: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return tuple(value)


def parse_pins(value: str | Sequence[str | Pin]) -> tuple[Pin, ...]:
    """`"dp=2,tp=2"` or `["*:dp=4", "exit:zero3=4"]` as pins; raises UsageError."""
    items = [value] if isinstance(value, str) else value
    return tuple(parse_pin(item) if isinstance(item, str) else item for item in items)


class PlanOptions(msgspec.Struct, frozen=True):
    """Choices of the user; None lets the planner decide or take the model's own.

    A field with an `Option` is declared here alone: command line, Python keywords and help are read
    off it (`api/options.py`). The others are set by programs only: `bounds`, the first call of every
    model chunk and the number of calls, and `model_chunks` per stage, where a strategy file fixes
    them; `fractions`, shares of weights that may be sharded over zero3 where a function is called
    rarely; `probed_optimizer`, the states and the demand of an optimizer that is not one of the known
    names, by what it does.
    """

    engine: Annotated[
        str,
        Option(
            group="training",
            choices=tuple(ENGINES),
            help="what will run the plan: its abilities and its speed",
        ),
    ] = "plait"
    global_batch: Annotated[
        int | None, Option(group="training", help="samples per step; default: those of the batch")
    ] = None
    memory_bytes: Annotated[
        int | None,
        Option(
            group="memory", name="memory", parse=parse_memory, help="limit per device, as in 72GiB"
        ),
    ] = None
    headroom: Annotated[
        float,
        Option(
            group="memory",
            metavar="SHARE",
            help="of a device's memory that plans leave free where no limit is given",
        ),
    ] = HEADROOM
    simpler_within: Annotated[
        float,
        Option(
            group="search",
            metavar="SHARE",
            help="of a step that a plan with fewer kinds of layers may be slower than the fastest",
        ),
    ] = SIMPLER_WITHIN
    precision: Annotated[
        str | None,
        Option(
            group="training",
            choices=tuple(PRECISIONS),
            help="floating-point type, with float32 master weights for bf16 and fp16; default: the "
            "model's own",
        ),
    ] = None
    gradient_precision: Annotated[
        str,
        Option(
            group="training",
            choices=("fp32",),
            help="sum gradients over micro-batches and ranks in float32; default: in the type of "
            "their parameters",
        ),
    ] = ""
    optimizer: Annotated[
        str,
        Option(
            group="training",
            help="adamw, sgd, muon, ..., or one that communicates itself: 1-bit-adam, cser, ... "
            "(docs/design/compression.md)",
        ),
    ] = "adamw"
    optimizer_on: Annotated[
        str,
        Option(
            group="training",
            choices=("device", "host"),
            help="where the optimizer steps: on the device, or on its host, with states, the values "
            "that it steps on and their gradients in host memory",
        ),
    ] = "device"
    roles: Annotated[
        tuple[str, ...],
        Option(
            group="strategies", parse=comma_separated, help="comma-separated roles that may be used"
        ),
    ] = SEARCHED_ROLES
    memory_actions: Annotated[
        tuple[str, ...],
        Option(
            group="memory",
            parse=comma_separated,
            help="comma-separated actions on activations that may be used",
        ),
    ] = MEMORY_ACTIONS
    compress: Annotated[
        str,
        Option(
            group="strategies",
            metavar="NAME",
            help="none, auto, or an algorithm (sdp4bit, zero++, int8-activations)",
        ),
    ] = "none"
    routing: Annotated[
        Routing,
        Option(
            group="training",
            metavar="HISTOGRAM",
            parse=parse_routing,
            help="of tokens over experts: balanced, zipf:1.2, capacity:1.25 (what is beyond is "
            "dropped), or a file of counts by expert",
        ),
    ] = Routing()
    expert_slots: Annotated[
        int,
        Option(
            group="training",
            metavar="N",
            help="slots of a rank for replicas of experts, which are placed by how often they are "
            "chosen, between steps; 0: experts stay where they are",
        ),
    ] = 0
    quality: Annotated[
        str,
        Option(
            group="strategies",
            choices=QUALITIES,
            help="what --compress auto may do to the numbers it sends",
        ),
    ] = "safe"
    micro_batches: Annotated[
        int | None, Option(group="strategies", help="fix the number of micro-batches")
    ] = None
    schedule: Annotated[
        str,
        Option(
            group="strategies",
            metavar="NAME",
            help=f"of the pipeline: auto, {', '.join(SCHEDULES)}; or stale-1: gradients are used a "
            "step late, up to stale-8 (sgd, momentum)",
        ),
    ] = "auto"
    pins: Annotated[
        tuple[Pin, ...],
        Option(
            group="strategies",
            name="pin",
            metavar="GLOB:STRATEGY",
            parse=parse_pins,
            repeatable=True,
            help="force a strategy: '*:dp=4', 'block[0-3]:dp=2,tp=2', 'exit:zero3=4@1/2' (half of "
            "its weights), or Galvatron's galvatron_config.json; the last that matches a layer",
        ),
    ] = ()
    time_limit_seconds: Annotated[
        float | None,
        Option(
            group="search",
            name="time_limit",
            metavar="SECONDS",
            help="of search; then the best plan so far, exit code 4",
        ),
    ] = None
    objective: Annotated[
        str,
        Option(
            group="search",
            choices=OBJECTIVES,
            help="what is least: seconds of a step, its dollars, or its energy; the last two choose "
            "devices as well, by the [rates] of the cluster's file",
        ),
    ] = "time"
    budget: Annotated[
        float | None,
        Option(group="search", metavar="DOLLARS", help="most dollars that a step may cost"),
    ] = None
    at_least: Annotated[
        float | None,
        Option(group="search", metavar="SAMPLES", help="fewest samples a second that are trained"),
    ] = None
    seed: Annotated[int, Option(group="search", help="of random choices, kept in the plan")] = 0
    bounds: tuple[int, ...] | None = None
    model_chunks: int | None = None
    fractions: tuple[Fraction, ...] = FRACTIONS
    probed_optimizer: Optimizer | None = None

    def memory_limit(self, device_bytes: int) -> int:
        """Bytes that a plan may use of a device that has `device_bytes`."""
        return self.memory_bytes or round(device_bytes * (1 - self.headroom))

    @property
    def target(self) -> Engine:
        """The engine that will run the plan."""
        return engine_named(self.engine)

    @property
    def engine_actions(self) -> tuple[str, ...]:
        """Those of the memory actions that the engine has."""
        engine = self.target
        return tuple(
            text
            for text in self.memory_actions
            if (text in engine.actions)
            or (text not in MEMORY_ACTIONS and engine.allows_action(MemoryAction.parse(text)))
        )

    @property
    def may_step_on_host(self) -> bool:
        """Whether the optimizer can step on the devices' hosts."""
        compressed = self.optimizer in COMPRESSED_OPTIMIZERS
        return self.target.host_steps and not compressed and not self.expert_slots

    @property
    def chooses_devices(self) -> bool:
        """Whether fewer devices than the cluster's may be the answer."""
        limited = self.budget is not None or self.at_least is not None
        return self.objective != "time" or limited

    def resolved(self) -> PlanOptions:
        """These options where gradients that come steps late (`stale-1`, or `stale-0`: at once) are an
        optimizer that sends them itself. Raises UsageError."""
        late = STALE.fullmatch(self.schedule)
        if late is None:
            return self
        if self.optimizer not in ("sgd", "momentum"):
            raise UsageError(
                f"--schedule {self.schedule} is for --optimizer sgd or momentum, whose steps add "
                f"gradients up, not {self.optimizer}"
            )
        optimizer = "stale-sgd" if late[1] == "1" else f"stale-sgd:delay={late[1]}"
        return replace(self, schedule="auto", optimizer=optimizer)

    def check(self) -> None:
        unknown = [r for r in self.roles if r not in ROLES]
        if unknown:
            raise UsageError(unknown_name("role", unknown[0], ROLES))
        strange = [a for a in self.memory_actions if a not in MEMORY_ACTIONS and not _is_action(a)]
        if strange or not self.memory_actions:
            raise UsageError(unknown_name("memory action", "".join(strange[:1]), MEMORY_ACTIONS))
        if self.micro_batches is not None and self.micro_batches < 1:
            raise UsageError(f"{self.micro_batches} is no number of micro-batches")
        if self.expert_slots < 0:
            raise UsageError(f"{self.expert_slots} is no number of slots for experts")
        if not 0 <= self.headroom < 1:
            raise UsageError(f"headroom {self.headroom:g} is no share of memory, as 0.03 is")
        if not 0 <= self.simpler_within < inf:
            raise UsageError(
                f"simpler-within {self.simpler_within:g} is no share of a step, as 0.005 is"
            )
        if self.schedule != "auto":
            schedule_named(self.schedule)
        staged = any(pin.strategy.stages > 1 for pin in self.pins)
        if self.schedule not in ("auto", "1f1b") and self.pins and not staged:
            raise UsageError(
                f"schedule {self.schedule} is of a pipeline, and pin {self.pins[0].strategy} has no "
                "stages: add pp, as in pp=2"
            )
        if self.objective not in OBJECTIVES:
            raise UsageError(unknown_name("objective", self.objective, OBJECTIVES))
        for what, amount in (("budget", self.budget), ("at_least", self.at_least)):
            if amount is not None and not 0 < amount < inf:
                raise UsageError(f"{what} {amount} is not above 0")
        limit = self.time_limit_seconds
        if limit is not None and not limit > 0:
            raise UsageError(f"a time limit of {limit} is not a number of seconds")
        if self.optimizer not in OPTIMIZERS and self.probed_optimizer is None:
            if ":" in self.optimizer:
                algorithm(self.optimizer)  # says which setting is wrong
            raise UsageError(unknown_name("optimizer", self.optimizer, OPTIMIZERS))
        if self.optimizer_on == "host" and not self.may_step_on_host:
            engines = ", ".join(name for name, engine in ENGINES.items() if engine.host_steps)
            raise UsageError(
                f"--optimizer-on host is for {engines}, "
                "an optimizer that leaves sums of gradients to them "
                f"(not {self.optimizer}), and experts that stay (no --expert-slots)"
            )
        self._check_engine()

    def _check_engine(self) -> None:
        """Raise UsageError for what the engine cannot do."""
        engine = self.target
        extras = {
            "sends no compressed messages; --compress": self.compress not in ("none", "auto"),
            "has no replicas of experts; --expert-slots": self.expert_slots > 0,
        }
        for text, asked in extras.items():
            if asked and not engine.extras:
                raise UsageError(f"{engine.name} {text} is plait's")
        if self.schedule not in ("auto", *engine.schedules):
            raise UsageError(f"{engine.name} has no schedule {self.schedule}")
        if not self.engine_actions:
            few = ", ".join(self.memory_actions)
            raise UsageError(f"{engine.name} has no memory action {few}")
        for pin in self.pins:
            if pin.memory is not None and not engine.allows_action(pin.memory):
                raise UsageError(f"{pin.glob}: {engine.name} has no memory action {pin.memory}")


def _is_action(text: str) -> bool:
    try:
        MemoryAction.parse(text)
    except ValueError:
        return False
    return True
