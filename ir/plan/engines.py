"""Engines that run a plan, and what each of them can: the space that the search stays within.

    torch         fully_shard, replicas, parallelize_module, pipelining, checkpoints, offload by layer
    torchtitan    the same by one configuration for all layers, with expert ranks
    megatron      Megatron-Core: tensor, context, expert and pipeline ranks, distributed optimizer
    deepspeed     ZeRO, AutoTP, AutoEP, Ulysses
    accelerate    FSDP2 and ParallelismConfig
    galvatron     its strategy of every layer

What an engine cannot is a `Rule` with its reason in the engine's own words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from ..errors import UsageError
from ..unknown_name import unknown_name
from .flat_shard import FULL
from .memory_action import MemoryAction
from .schedules.registry import SCHEDULES, splits_backward
from .strategy import ROLES, SEQUENCE_FLAG, Strategy

ActionKind = Literal["keep", "recompute", "save", "offload", "split"]
ACTIONS: tuple[ActionKind, ...] = ("keep", "recompute", "save", "offload", "split")
Mixes = Literal["all", "memory", "none"]  # what may differ between the layers of one stage


class Rule(NamedTuple):
    """What a strategy must not be, and why."""

    reason: str
    broken: Callable[[Strategy], bool]


class Engine(msgspec.Struct, frozen=True):
    """What an engine can run. `roles`, kinds of memory `actions` and `schedules` are those of plans;
    `mixes`: what may differ between layers; `even`: stages have equal numbers of layers; `extras`:
    compressed messages, fractions of weights and mixtures of devices are for generated programs;
    `styles`: tensor ranks split what a ParallelStyle of PyTorch says; `absent`: roles, and why;
    `whole_backward`: roles beside which no schedule runs backward in two parts; `host_steps`: its
    optimizer can step on the host."""

    name: str
    about: str
    roles: tuple[str, ...] = tuple(ROLES)
    actions: tuple[ActionKind, ...] = ACTIONS
    schedules: tuple[str, ...] = ("1f1b", "interleaved")
    mixes: Mixes = "all"
    even: bool = False
    extras: bool = False
    styles: bool = False
    absent: tuple[tuple[str, str], ...] = ()
    whole_backward: tuple[str, ...] = ()
    host_steps: bool = False
    rules: tuple[Rule, ...] = ()

    def refusal(self, strategy: Strategy) -> str | None:
        """Why the engine cannot run a strategy; None where it can."""
        strange = [r for r, n in strategy.axes if r not in self.roles and n > 1]
        if strange:
            about = dict(self.absent).get(strange[0], ROLES[strange[0]].about)
            return f"{self.name} has no {strange[0]} ({about})"
        if strategy.sequence_parallel and SEQUENCE_FLAG not in self.roles:
            return f"{self.name} keeps whole activations between tensor operators: no sp beside tp"
        if not self.extras and strategy.fraction != FULL:
            return f"{self.name} shards whole weights, not fractions of them"
        broken = (rule.reason for rule in self.rules if rule.broken(strategy))
        return next(broken, None)

    def schedule_refusal(self, strategy: Strategy, schedule: str) -> str | None:
        """Why the engine cannot run the stages of a strategy under a schedule; None where it can."""
        if strategy.stages == 1:
            return None
        if schedule not in self.schedules:
            return f"{self.name} has no schedule {schedule}; it has {', '.join(self.schedules)}"
        role = next((r for r in self.whole_backward if strategy.size(r) > 1), None)
        if role is None or not splits_backward(schedule):
            return None
        return (
            f"{self.name} runs no {schedule} beside {role}: its second part of backward finds no "
            f"weights, which {role} has sharded again by then; take --schedule 1f1b"
        )

    def allows_action(self, action: MemoryAction) -> bool:
        """Whether layers may save their activations so; a part of them needs `save` as well."""
        partial = action.on_host and action.partial
        return action_kind(action) in self.actions and ("save" in self.actions or not partial)

    def check(self, strategy: Strategy) -> None:
        """Raise UsageError for a strategy that the engine cannot run."""
        reason = self.refusal(strategy)
        if reason is not None:
            raise UsageError(f"{strategy}: {reason}")


def action_kind(action: MemoryAction) -> ActionKind:
    """The kind of a memory action."""
    if action.chunked:
        return "split"
    if action.on_host:
        return "offload"
    return "save" if action.partial else "keep" if str(action) == "keep" else "recompute"


def _batch_roles(strategy: Strategy) -> tuple[str, ...]:
    return tuple(r for r, n in strategy.axes if n > 1 and ROLES[r].batch and not ROLES[r].experts)


def _only(*allowed: tuple[str, ...]) -> Callable[[Strategy], bool]:
    """Whether the roles that split the batch are none of these."""
    return lambda strategy: bool(_batch_roles(strategy)) and _batch_roles(strategy) not in allowed


def _order(*roles: str) -> Callable[[Strategy], bool]:
    """Whether axes stand in another order than these, outermost first."""

    def broken(strategy: Strategy) -> bool:
        places = [roles.index(r) for r, n in strategy.axes if n > 1 and r in roles]
        return places != sorted(places)

    return broken


def _beside(role: str, *others: str) -> Callable[[Strategy], bool]:
    """Whether an axis of a role stands beside one of others."""
    return lambda s: s.size(role) > 1 and any(s.size(other) > 1 for other in others)


def _without(role: str, *others: str) -> Callable[[Strategy], bool]:
    """Whether an axis of a role stands beside none of others."""
    return lambda s: s.size(role) > 1 and not any(s.size(other) > 1 for other in others)


def _plain_tensor_axis(strategy: Strategy) -> bool:
    return strategy.size("tp") > 1 and not strategy.sequence_parallel


def _experts_beside_plain_tensor_axis(strategy: Strategy) -> bool:
    return strategy.size("ep") > 1 and _plain_tensor_axis(strategy)


def _replicas_alone(strategy: Strategy) -> bool:
    model_degree = strategy.size("tp") * strategy.size("cp")
    return _batch_roles(strategy) == ("dp",) and model_degree > 1


def _tokens_between_tensor_operators(strategy: Strategy) -> bool:
    return strategy.sequence_parallel


def _tokens_between_operators_of_stages(strategy: Strategy) -> bool:
    return strategy.sequence_parallel and strategy.stages > 1


def _ulysses(strategy: Strategy) -> bool:
    return strategy.size("sp") > 1


ZEROS = ("zero1", "zero2", "zero3")
HYBRID = (("dp",), *((z,) for z in ZEROS), *(("dp", z) for z in ZEROS))
ORDER = Rule(
    "its mesh is pp, dp, zero, ep, cp, tp from the outside in",
    _order("pp", "dp", *ZEROS, "ep", "cp", "sp", "tp"),
)
ONE_ZERO = Rule(
    "of what splits the batch it has dp, one zero stage, or dp outside of one", _only(*HYBRID)
)
NO_ULYSSES = Rule("sp has no size: it splits tokens between tp's operators", _ulysses)

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            "plait", "generated programs", schedules=tuple(SCHEDULES), extras=True, host_steps=True
        ),
        Engine(
            "torch",
            "PyTorch's own: plait.apply",
            roles=("pp", "dp", *ZEROS, "tp", "sp"),
            actions=("keep", "recompute", "offload"),
            schedules=("gpipe", "1f1b", "interleaved", "zb-h1", "zbv", "dualpipev"),
            mixes="memory",
            styles=True,
            absent=(("cp", "its context_parallel has attention for kernels of CUDA alone"),),
            whole_backward=("zero3",),
            rules=(
                ORDER,
                ONE_ZERO,
                Rule(
                    "its pipelining exports modules, in which no style gathers shares of tokens: no "
                    "tp=N,sp beside pp",
                    _tokens_between_operators_of_stages,
                ),
                NO_ULYSSES,
            ),
        ),
        Engine(
            "torchtitan",
            "torchtitan's configuration",
            roles=("pp", "dp", "zero2", "zero3", "ep", "cp", "tp", "sp"),
            actions=("keep", "recompute", "save"),
            schedules=("gpipe", "1f1b", "interleaved", "zbv", "dualpipev"),
            mixes="none",
            whole_backward=("zero3",),
            rules=(
                ORDER,
                ONE_ZERO,
                Rule(
                    "its expert ranks are those that shard states: ep stands beside zero2 or zero3",
                    _without("ep", "zero2", "zero3"),
                ),
                NO_ULYSSES,
            ),
        ),
        Engine(
            "megatron",
            "Megatron-Core and Megatron Bridge",
            host_steps=True,
            roles=("pp", "dp", *ZEROS, "ep", "cp", "tp", "sp"),
            actions=("keep", "recompute"),
            mixes="none",
            rules=(
                ORDER,
                ONE_ZERO,
                NO_ULYSSES,
                Rule(
                    "Megatron-FSDP (zero2, zero3) goes without pipeline stages",
                    _beside("pp", "zero2", "zero3"),
                ),
                Rule(
                    "experts with tp need sequence parallelism: write tp=N,sp",
                    _experts_beside_plain_tensor_axis,
                ),
            ),
        ),
        Engine(
            "deepspeed",
            "DeepSpeed: ZeRO, AutoTP, AutoEP, Ulysses",
            host_steps=True,
            roles=("pp", "dp", *ZEROS, "ep", "sp", "tp"),
            actions=("keep", "recompute"),
            schedules=("1f1b",),
            mixes="none",
            even=True,
            rules=(
                ORDER,
                Rule(
                    "its pipelines go with replicas and zero1 alone",
                    _beside("pp", "zero2", "zero3", "ep", "sp", "tp"),
                ),
                Rule(
                    "it has replicas, or one zero stage over all of them",
                    _only(("dp",), *((z,) for z in ZEROS)),
                ),
                Rule("AutoTP goes with zero stages 0 to 2", _beside("tp", "zero3")),
                Rule(
                    "AutoTP keeps whole activations between operators: no sp beside tp",
                    _tokens_between_tensor_operators,
                ),
                Rule("Ulysses and AutoTP do not go together", _beside("tp", "sp")),
            ),
        ),
        Engine(
            "accelerate",
            "accelerate: FSDP2 and ParallelismConfig",
            roles=("dp", "zero2", "zero3", "cp", "tp"),
            actions=("keep", "recompute"),
            schedules=("1f1b",),
            mixes="none",
            even=True,
            rules=(
                ORDER,
                ONE_ZERO,
                Rule(
                    "replicas alone go with neither tp nor cp: shard states over zero2 or zero3",
                    _replicas_alone,
                ),
            ),
        ),
        Engine(
            "galvatron",
            "Galvatron's strategy of every layer",
            roles=("pp", "dp", "zero2", "zero3", "sp", "tp"),
            actions=("keep", "recompute"),
            schedules=("1f1b",),
            rules=(
                ORDER,
                Rule("it has one of dp, zero2 and zero3", _only(("dp",), ("zero2",), ("zero3",))),
                Rule("tensor ranks split tokens as well: write tp=N,sp", _plain_tensor_axis),
                Rule("a layer has tensor ranks or Ulysses", _beside("tp", "sp")),
            ),
        ),
    )
}


def engine_named(name: str) -> Engine:
    """An engine; raises UsageError for an unknown name."""
    if name not in ENGINES:
        raise UsageError(unknown_name("engine", name, ENGINES))
    return ENGINES[name]
