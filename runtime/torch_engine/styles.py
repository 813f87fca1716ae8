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

from ...ir.errors import UsageError
from ...ir.model.model import Function, Model
from ...ir.plan.plan import Layers, Plan
from ...ir.plan.sharding import OpSplit, Sharding

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


def parameter_shards(plan: Plan, model: Model) -> dict[str, int]:
    """The dimension that the tensor axis shards, of every parameter that it shards."""
    shards: dict[str, int] = {}
    for layers, sharding, place in split_layers(plan):
        for call in model.calls[layers.first : layers.last]:
            layouts = sharding.boundary.inputs
            for name, layout in zip(call.parameters, layouts, strict=False):
                placement = layout[place]
                if isinstance(placement, tuple):
                    shards[name] = _whole_dimension(name, placement)
    tied = [(p.name, alias) for p in model.parameters for alias in p.aliases]
    return shards | {alias: shards[name] for name, alias in tied if name in shards}


def tie_again(module: nn.Module, model: Model) -> None:
    """Give every name of a tied parameter the same tensor, which styles have replaced one by one."""
    for parameter in model.parameters:
        for alias in parameter.aliases if parameter.kind == "parameter" else ():
            path, _, name = alias.rpartition(".")
            shared = module.get_parameter(parameter.name)
            module.get_submodule(path).register_parameter(name, shared)


def _whole_dimension(name: str, shard: tuple[int, int]) -> int:
    dimension, factor = shard
    if factor:
        raise UsageError(
            f"{name}: no ParallelStyle splits a factor of a dimension (a joined weight)"
        )
    return dimension


def parallel_styles(module: nn.Module, plan: Plan, model: Model) -> dict[str, ParallelStyle]:
    """Styles by module path, as `parallelize_module` takes them.

    Raises UsageError naming the parameter that no style splits as the plan does.
    """
    shards = parameter_shards(plan, model)
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
    styles = dict(_styles(module, split, list(plan.calls)))
    return styles | dict(_between(module, styles, used_on_shards(plan, model) - set(shards)))


def used_on_shards(plan: Plan, model: Model) -> set[str]:
    """Parameters that operators read which the tensor axis splits: whole ones have partial gradients."""
    functions = {function.name: function for function in model.functions}
    names: set[str] = set()
    for layers, sharding, place in split_layers(plan):
        splits = [op_splits[place] for op_splits in sharding.op_splits]
        read = _read_by_split_operators(functions[sharding.function], splits)
        for call in model.calls[layers.first : layers.last]:
            names.update(call.parameters[i] for i in read if i < len(call.parameters))
    return names


def _read_by_split_operators(function: Function, splits: list[OpSplit]) -> set[int]:
    """Positions of the inputs that a split operator of forward reads, perhaps through others."""
    source = {x.value: place for place, x in enumerate(function.inputs)}
    read: set[int] = set()
    for op, split in zip(function.forward_ops, splits, strict=False):
        sources = {source[v] for v in op.operands() if v in source}
        if not split.replicates:
            read |= sources
        elif len(sources) == 1:
            source |= dict.fromkeys(op.results, *sources)
    return read


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
    module: nn.Module, split: Mapping[str, int], calls: list[str]
) -> Iterator[tuple[str, ParallelStyle]]:
    """Styles in the order of the module; a layer is a call of the plan, else the whole rest."""
    by_layer: dict[str, list[str]] = {}
    for path in split:
        owners = [c for c in calls if c and (path == c or path.startswith(f"{c}."))]
        by_layer.setdefault(max(owners, key=len, default=""), []).append(path)
    for layer, paths in by_layer.items():
        for place, path in enumerate(paths):
            yield path, _style(module.get_submodule(path), split, paths, place, bool(layer))


def _style(
    child: nn.Module, split: Mapping[str, int], paths: list[str], place: int, in_layer: bool
) -> ParallelStyle:
    """The style of the module at `place` of its layer's split modules."""
    kind, embedding = split[paths[place]], isinstance(child, nn.Embedding)
    rows_follow = in_layer and any(split[p] == ROWS for p in paths[place + 1 :])
    columns_before = in_layer and any(split[p] == COLUMNS for p in paths[:place])
    if kind == COLUMNS:
        hands_on = rows_follow and not embedding
        return ColwiseParallel(output_layouts=Shard(-1) if hands_on else Replicate())
    if embedding:
        return RowwiseParallel(input_layouts=Replicate())
    return RowwiseParallel(input_layouts=Shard(-1) if columns_before else Replicate())
