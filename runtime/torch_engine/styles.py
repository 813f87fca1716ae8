"""Tensor-parallel styles from a found sharding: which linear layers are split by columns, which by rows.

    weight [out, in] over tp     S(0): ColwiseParallel     S(1): RowwiseParallel     R: left alone
    embedding [words, width]     S(0): RowwiseParallel     S(1): ColwiseParallel

A layer split by columns hands its shard on where a layer split by rows follows in the same layer, and
gathers it elsewhere. A norm of heads between them is whole but sees shards, so that its gradient is
summed: SequenceParallel. What no style says is refused by the parameter's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
)

from ...ir.analysis.axes import analyse
from ...ir.analysis.bound_sharding import bind
from ...ir.analysis.parallel_styles import StyledFunction
from ...ir.errors import UsageError
from ...ir.model.model import Model
from ...ir.plan.plan import Layers, Plan
from ...ir.plan.sharding import Sharding

AXIS = "tp"
COLUMNS, ROWS = 0, 1  # the dimension of a linear layer's weight that is split


class SplitLayers(NamedTuple):
    """Layers on a mesh with a tensor axis, and that axis's number."""

    layers: Layers
    sharding: Sharding
    axis: int


def split_layers(plan: Plan) -> Iterator[SplitLayers]:
    """The layers that have a tensor axis."""
    for layers in plan.layers:
        sharding = plan.shardings[layers.sharding]
        names = [axis.name for axis in sharding.mesh.axes]
        if AXIS in names:
            yield SplitLayers(layers, sharding, names.index(AXIS))


class StyledPlan:
    """What a plan does along its tensor axis, by the names of parameters.

    `shards`: the dimension that is split; `gathered`, `sliced`, `beside`: as of a `StyledFunction`.
    """

    def __init__(self, plan: Plan, model: Model) -> None:
        self.shards: dict[str, int] = {}
        self.gathered, self.sliced, self.beside = set[str](), set[str](), set[str]()
        functions = {function.name: function for function in model.functions}
        walked: dict[int, StyledFunction] = {}
        for layers, sharding, place in split_layers(plan):
            if layers.sharding not in walked:
                function = functions[sharding.function]
                bound = bind(sharding, function, analyse(function))
                tokens = sharding.strategy.sequence_parallel
                walked[layers.sharding] = StyledFunction(bound, AXIS, tokens)
            for call in model.calls[layers.first : layers.last]:
                self._add(walked[layers.sharding], sharding, place, call.parameters)
        for parameter in model.parameters:
            for names in (self.gathered, self.sliced, self.beside):
                names.update(parameter.aliases if parameter.name in names else ())
            if parameter.name in self.shards:
                self.shards |= dict.fromkeys(parameter.aliases, self.shards[parameter.name])

    def _add(
        self, walked: StyledFunction, sharding: Sharding, axis: int, names: tuple[str, ...]
    ) -> None:
        for reason in walked.unsaid(names):
            raise UsageError(
                f"no ParallelStyle splits {reason} over {AXIS}; plan with --engine torch or with "
                "--roles dp,zero2,zero3, or run the plan as a generated program"
            )
        for name, layout in zip(names, sharding.boundary.inputs, strict=False):
            placement = layout[axis]
            if isinstance(placement, tuple):
                self.shards[name] = placement[0]
        for places, into in (
            (walked.gathered, self.gathered),
            (walked.sliced, self.sliced),
            (walked.beside, self.beside),
        ):
            into.update(names[place] for place in places)


def tie_again(module: nn.Module, model: Model) -> None:
    """Give every name of a tied parameter the same tensor, which styles have replaced one by one."""
    for parameter in model.parameters:
        for alias in parameter.aliases if parameter.kind == "parameter" else ():
            path, _, name = alias.rpartition(".")
            shared = module.get_parameter(parameter.name)
            module.get_submodule(path).register_parameter(name, shared)


def parallel_styles(module: nn.Module, plan: Plan, model: Model) -> dict[str, ParallelStyle]:
    """Styles by module path, as `parallelize_module` takes them.

    Raises UsageError naming the parameter that no style splits as the plan does.
    """
    styled = StyledPlan(plan, model)
    shards = styled.shards
    split = {
        path: kind
        for path, child in module.named_modules()
        if (kind := _kind(path, child, shards)) is not None
    }
    said = {f"{path}.{name}" for path in split for name in ("weight", "bias")}
    strange = [name for name in shards if name not in said]
    if strange:
        raise UsageError(
            f"{strange[0]} is split over {AXIS}, which no ParallelStyle says; plan with "
            "--roles dp,zero2,zero3, or run the plan as a generated program"
        )
    styles = dict(_styles(module, split, list(plan.calls), styled))
    return styles | dict(_between(module, styles, styled.beside - set(shards)))


def _between(
    module: nn.Module, styles: Mapping[str, ParallelStyle], used: set[str]
) -> Iterator[tuple[str, ParallelStyle]]:
    """Styles of modules with whole parameters beside layers whose shards they see."""
    handing_on = {
        path.rpartition(".")[0]
        for path, style in styles.items()
        if isinstance(style, ColwiseParallel) and style.output_layouts == (Shard(-1),)
    }
    for path, child in module.named_modules():
        if path in styles or path.rpartition(".")[0] not in handing_on:
            continue
        names = [f"{path}.{name}" for name, _ in child.named_parameters(recurse=False)]
        if used.intersection(names):
            yield path, SequenceParallel(sequence_dim=0, use_local_output=True)


def _kind(path: str, module: nn.Module, shards: Mapping[str, int]) -> int | None:
    """Columns or rows of a linear layer, or of an embedding; None where it is whole."""
    dimension = shards.get(f"{path}.weight")
    if dimension is None or not isinstance(module, nn.Linear | nn.Embedding):
        return None
    return dimension if isinstance(module, nn.Linear) else 1 - dimension


def _styles(
    module: nn.Module, split: Mapping[str, int], calls: list[str], styled: StyledPlan
) -> Iterator[tuple[str, ParallelStyle]]:
    """Styles in the order of the module; a layer is a call of the plan, else the whole rest."""
    by_layer: dict[str, list[str]] = {}
    for path in split:
        owners = [c for c in calls if c and (path == c or path.startswith(f"{c}."))]
        by_layer.setdefault(max(owners, key=len, default=""), []).append(path)
    for layer, paths in by_layer.items():
        for place, path in enumerate(paths):
            before, after = (paths[:place], paths[place + 1 :]) if layer else ((), ())
            rows_follow = any(split[p] == ROWS for p in after)
            columns_before = any(split[p] == COLUMNS for p in before)
            weight = f"{path}.weight"
            yield (
                path,
                _style(
                    module.get_submodule(path),
                    split[path],
                    rows_follow and weight not in styled.gathered,
                    columns_before and weight not in styled.sliced,
                ),
            )


def _style(child: nn.Module, kind: int, hands_on: bool, takes_shard: bool) -> ParallelStyle:
    """The style of one module: columns that hand their shard on, rows that take one."""
    embedding = isinstance(child, nn.Embedding)
    if kind == COLUMNS:
        hands_on = hands_on and not embedding
        return ColwiseParallel(output_layouts=Shard(-1) if hands_on else Replicate())
    takes_shard = takes_shard and not embedding
    return RowwiseParallel(input_layouts=Shard(-1) if takes_shard else Replicate())
