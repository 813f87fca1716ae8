"""Strategies that users of an engine choose from, by the settings that they know.

    megatron:tp=2,pp=8,ep=32,vpp=4,cp=2     torchtitan:dp=2,tp=8     deepspeed:ep=8,zero=2

What is left of the devices are data ranks; `ep` of them hold experts, inside of the others. Of tensor
ranks `etp` split one expert (all where it is not set), so that the others count among those `ep`.
`order=tp-cp-ep-dp-pp` names the axes from the inside out, as Megatron's `--order` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

from ...ir.errors import UsageError
from ...ir.plan.strategy import SEQUENCE_FLAG, Strategy
from ..question.strategy_space import divisors

ORDER = "tp-sp-cp-ep-zero-dp-pp"  # from the inside out; zero: the axis that shards states


class EngineBaseline(NamedTuple):
    """What an engine's users set. `data_roles`: what they choose from for data ranks; `open`: axes
    that take every size where they are not set; `has_flag`: sp is Megatron's, without a size."""

    settings: tuple[str, ...]
    data_roles: tuple[str, ...]
    open: tuple[str, ...] = ()
    has_flag: bool = True


ENGINE_BASELINES = {
    "megatron": EngineBaseline(
        ("tp", "pp", "dp", "cp", "ep", "etp", "vpp", SEQUENCE_FLAG, "order"),
        ("dp", "zero1"),
        ("tp", "pp"),
    ),
    "torchtitan": EngineBaseline(
        ("tp", "pp", "dp", "cp", "ep", "vpp", "zero", SEQUENCE_FLAG, "order"), ("zero3", "zero2")
    ),
    "deepspeed": EngineBaseline(
        ("tp", "pp", "ep", "zero", "sp", "order"), ("zero3", "zero2", "zero1"), has_flag=False
    ),
}


def parse_settings(name: str, text: str) -> dict[str, str]:
    """`tp=2,ep=4,sp` as a mapping; raises UsageError for what the engine's users do not set."""
    engine = ENGINE_BASELINES[name]
    settings: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in engine.settings:
            *most, last = engine.settings
            raise UsageError(f"{name} takes {', '.join(most)} and {last}, not {key}")
        if key in settings or (key != "order" and value and not value.isdigit()):
            raise UsageError(f"{name}: {part} is no setting, or is there twice")
        settings[key] = value
    return settings


def model_chunks_of(settings: Mapping[str, str]) -> int | None:
    """Model chunks per stage that the settings name; None where they are open."""
    return _size(settings, "vpp", 0) or None


def engine_strategies(
    name: str, settings: Mapping[str, str], devices: int, node: int
) -> Iterator[Strategy]:
    """The strategies of these settings, tensor axes inside a node where they are open."""
    engine = ENGINE_BASELINES[name]
    tensor = _sizes(settings, "tp", [n for n in divisors(devices) if n <= node], engine)
    stages = _sizes(settings, "pp", divisors(devices), engine)
    for tp, pp in product(tensor, stages):
        model = tp * pp * _size(settings, "cp") * _ulysses(settings, engine)
        if devices % model == 0:
            yield from _with_data_ranks(name, settings, devices // model, (tp, pp))


def _with_data_ranks(
    name: str, settings: Mapping[str, str], data: int, sizes: tuple[int, int]
) -> Iterator[Strategy]:
    """The strategies that spread `data` ranks over replicas, shards and experts."""
    engine, (tp, pp) = ENGINE_BASELINES[name], sizes
    experts, uneven = divmod(_size(settings, "ep") * _size(settings, "etp", tp), tp)
    if uneven or not experts or data % experts:
        raise UsageError(
            f"{name}: {_size(settings, 'ep')} expert ranks do not lie inside {data} data ranks"
            + (
                f" and {tp} tensor ranks"
                if "etp" in settings
                else "; etp=1: tensor ranks hold some"
            )
        )
    roles = engine.data_roles
    if "zero" in settings:
        roles = tuple(r for r in roles if r == f"zero{settings['zero']}")
    replicas = _size(settings, "dp", 0)
    for role in roles:
        shards = data // experts
        if replicas and role == "dp" and replicas not in (shards, data):
            continue
        axes = {"pp": pp, "ep": experts, "cp": _size(settings, "cp"), "tp": tp}
        axes |= {"sp": _ulysses(settings, engine)}
        if replicas and name != "megatron" and role != "dp":
            if shards % replicas:
                continue
            axes |= {"dp": replicas, role: shards // replicas}
        elif not replicas or replicas in (shards, data):
            axes[role] = shards
        else:
            continue
        yield from _ordered(axes, settings, tp > 1 and engine.has_flag)


def _ordered(axes: dict[str, int], settings: Mapping[str, str], flag: bool) -> Iterator[Strategy]:
    """The strategy of these axes, with and without sequence parallelism where that is open."""
    text = settings.get("order", ORDER)
    order = text.split("-")
    if order[-1] != "pp" or set(order) - set(ORDER.split("-")):
        raise UsageError(f"order={text}: name {ORDER}, from the inside out, pp last")
    places = {role: place for place, role in enumerate(order)}

    def outwards(role: str) -> int:
        kind = "zero" if role.startswith("zero") else role
        return -places.get(kind, places.get("dp", 0))

    names = sorted((r for r, n in axes.items() if n > 1), key=outwards)
    sizes = tuple((role, axes[role]) for role in names)
    if SEQUENCE_FLAG not in settings or not flag:
        yield Strategy(sizes)
    if flag:
        yield Strategy((*sizes, (SEQUENCE_FLAG, 1)))


def _size(settings: Mapping[str, str], name: str, default: int = 1) -> int:
    return int(settings.get(name) or default)


def _ulysses(settings: Mapping[str, str], engine: EngineBaseline) -> int:
    return 1 if engine.has_flag else _size(settings, "sp")


def _sizes(
    settings: Mapping[str, str], name: str, every: list[int], engine: EngineBaseline
) -> list[int]:
    if name in settings or name not in engine.open:
        return [_size(settings, name)]
    return every
