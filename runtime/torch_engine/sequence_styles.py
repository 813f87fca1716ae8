"""Styles of sequence parallelism: between split operators every tensor rank has its share of tokens.

first layer    takes its share of whole tokens        last layer    gathers them again
attention      gathers tokens where the block begins, whose code reads their number
other blocks   gather them where their columns begin; rows scatter their sums over tokens
norms          work on shares; their gradients are summed: SequenceParallel
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os.path import commonpath
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleInputOutput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
)

from ...ir.errors import UsageError

TOKENS, WHOLE = Shard(1), Replicate()
Styles = dict[str, ParallelStyle]


class ModuleCall(NamedTuple):
    """What a module is called with, and what it returns."""

    positional: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any


class SplitBlock(NamedTuple):
    """Linear layers split by columns, and the one split by rows that follows."""

    columns: tuple[str, ...]
    rows: str

    @property
    def holders(self) -> tuple[str, str]:
        """The modules that hold all of them, and all columns."""
        return _holder((*self.columns, self.rows)), _holder(self.columns)


def _holder(paths: Sequence[str]) -> str:
    return commonpath([path.replace(".", "/") for path in paths]).replace("/", ".")


def blocks(layer: str, styles: Mapping[str, ParallelStyle]) -> Iterator[SplitBlock]:
    """The blocks of a layer, in order; raises UsageError for columns that no rows follow."""
    columns: list[str] = []
    for path, style in styles.items():
        if not path.startswith(f"{layer}."):
            continue
        if isinstance(style, ColwiseParallel):
            columns.append(path)
        elif isinstance(style, RowwiseParallel) and columns:
            yield SplitBlock(tuple(columns), path)
            columns = []
    if columns:
        raise UsageError(f"{columns[0]}: no rows follow these columns; plan its tp without sp")


def sequence_styles(
    module: nn.Module,
    layers: Sequence[str],
    styles: Styles,
    calls: Mapping[str, ModuleCall],
    ranks: int,
) -> Styles:
    """Styles with tokens split over `ranks` between the operators of `layers`; `calls`: of every module,
    once.

    Raises UsageError for parameters that would see shares of tokens and that no style names, and for
    tokens that have no equal shares.
    """
    changed = dict(styles)
    for layer in layers:
        tokens = hidden_states(calls[layer]).shape[1]
        if tokens % ranks:
            raise UsageError(
                f"{layer}: {tokens} tokens have no equal shares for tp={ranks},sp, which PyTorch's "
                "styles send; plan its tp without sp, or for another number of tokens"
            )
        gathered: list[str] = []
        for block in blocks(layer, styles):
            leaving = tokens_of(calls[block.rows])
            changed[block.rows] = RowwiseParallel(input_layouts=Shard(-1), output_layouts=leaving)
            holder = _gathering(module, layer, block, styles)
            if holder is not None:
                gathered.append(holder)
                changed[holder] = _input(calls[holder], TOKENS, WHOLE)
                continue
            for path in block.columns:
                arriving = tokens_of(calls[path])
                changed[path] = ColwiseParallel(input_layouts=arriving, output_layouts=Shard(-1))
        changed |= dict(_norms(module, layer, changed, gathered, calls))
    return changed | _ends(layers, calls)


def tokens_of(call: ModuleCall) -> Shard:
    """The dimension that is split of a module's input: tokens, or samples and tokens flattened, in which
    every rank's tokens lie together until the rows that follow scatter them."""
    return Shard(max(call.positional[0].dim() - 2, 0))


def _gathering(
    module: nn.Module, layer: str, block: SplitBlock, styles: Mapping[str, ParallelStyle]
) -> str | None:
    """The module inside a layer that gathers a block's tokens, with parameters of split layers and norms
    between them alone; None where columns gather their own."""
    for holder in block.holders:
        names = module.get_submodule(holder).named_parameters(holder)
        inside = holder != layer and holder not in block.columns
        if inside and all(name.rpartition(".")[0] in styles for name, _ in names):
            return holder
    return None


def _norms(
    module: nn.Module,
    layer: str,
    styles: Styles,
    gathered: Sequence[str],
    calls: Mapping[str, ModuleCall],
) -> Iterator[tuple[str, ParallelStyle]]:
    """Styles of a layer's modules whose own parameters see shares of tokens."""
    for name, child in module.get_submodule(layer).named_modules(prefix=layer):
        inside = any(name == path or name.startswith(f"{path}.") for path in gathered)
        split = isinstance(styles.get(name), ColwiseParallel | RowwiseParallel)
        if inside or split or not list(child.parameters(recurse=False)):
            continue
        if list(child.children()) or name == layer:
            raise UsageError(f"{name}: no ParallelStyle says what its own parameters see of tokens")
        dimension = tokens_of(calls[name]).dim
        yield name, SequenceParallel(sequence_dim=dimension, use_local_output=True)


def _layouts(values: Any, placement: Placement, like: Any) -> tuple[Placement | None, ...]:
    """The placement of every value that has the shape of hidden states, None of others."""
    return tuple(
        placement if isinstance(v, Tensor) and v.shape == like.shape else None for v in values
    )


def hidden_states(call: ModuleCall) -> Tensor:
    """The first tensor of three dimensions that a module is called with; raises UsageError."""
    given = (*call.positional, *call.keywords.values())
    for value in given:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 3:
            return value
    raise UsageError("a layer takes no hidden states of samples, tokens and width: plan without sp")


def _input_options(call: ModuleCall, before: Placement, after: Placement) -> dict[str, Any]:
    """How hidden states among a module's arguments are laid out before and after."""
    like, named = hidden_states(call), call.keywords
    options: dict[str, Any] = {
        "input_kwarg_layouts": {},
        "desired_input_kwarg_layouts": {},
        "use_local_output": True,
    }
    if call.positional:
        options["input_layouts"] = _layouts(call.positional, before, like)
        options["desired_input_layouts"] = _layouts(call.positional, after, like)
    for name, layout in zip(named, _layouts(named.values(), before, like), strict=True):
        if layout is not None:
            options["input_kwarg_layouts"][name] = before
            options["desired_input_kwarg_layouts"][name] = after
    return options


def _input(call: ModuleCall, before: Placement, after: Placement) -> PrepareModuleInput:
    return PrepareModuleInput(**_input_options(call, before, after))


def _output_options(call: ModuleCall) -> dict[str, Any]:
    several = isinstance(call.output, tuple)
    output = call.output if several else (call.output,)
    like = hidden_states(call)
    return {
        "output_layouts": _layouts(output, TOKENS, like),
        "desired_output_layouts": _layouts(output, WHOLE, like),
    }


def _ends(layers: Sequence[str], calls: Mapping[str, ModuleCall]) -> Styles:
    """The first layer takes its share of tokens, the last gives whole ones."""
    first, last = layers[0], layers[-1]
    options, leave = _input_options(calls[first], WHOLE, TOKENS), _output_options(calls[last])
    if first == last:
        options["use_local_input"] = options.pop("use_local_output")
        return {first: PrepareModuleInputOutput(**options, **leave)}
    return {first: PrepareModuleInput(**options), last: PrepareModuleOutput(**leave)}
