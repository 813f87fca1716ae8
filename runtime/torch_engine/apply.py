"""A user's module in a plan's form by PyTorch's public APIs alone.

    pp                torch.distributed.pipelining, split where the plan's stages begin
    tp                parallelize_module, styles from the found sharding
    recompute         torch.utils.checkpoint around a layer's forward
    offload           torch.autograd.graph.save_on_cpu around it
    zero3             fully_shard, parameters gathered again in backward
    zero2, zero1      fully_shard, parameters kept after forward
    dp                fully_shard over a mesh whose shards are whole: gradients are averaged

Names, optimizer and loop stay the user's; every rank feeds its own samples, of equal number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from ...ir.errors import UsageError
from ...ir.model.model import Model
from ...ir.plan.engines import ENGINES
from ...ir.plan.memory_action import KEEP, MemoryAction
from ...ir.plan.plan import Plan
from ...ir.plan.strategy import ROLES, Strategy
from .local_widths import fit_widths
from .same_outputs import calls_of, evaluating, fingerprints, first_difference
from .sequence_styles import TOKENS, sequence_styles
from .shared_gradients import SharedParameters
from .stages import LossFn, PipelinedModule, chunk_places, schedule_stages, split
from .stand_ins import StandIns, stand_ins
from .styles import AXIS, parallel_styles, tie_again
from .vocabulary_loss import VocabularyLoss, computes, loss_of, vocabulary_head

PIPELINE, REPLICATE, SHARD = "pipeline", "replicate", "shard"
Batch = Mapping[str, Tensor] | tuple[Tensor, ...]


class TracedBatch(NamedTuple):
    """What a module is traced and checked with: the global batch, its trace, the user's loss."""

    batch: Batch
    model: Model
    loss_fn: LossFn = None


def check_appliable(plan: Plan) -> Strategy:
    """The one strategy of a plan that PyTorch's engine can run; raises UsageError naming what it
    cannot."""
    strategies = [plan.strategy_of(layers) for layers in plan.layers if not layers.batch_only]
    others = [s for s in strategies if str(s) != str(strategies[0])]
    if others:
        raise UsageError(
            f"PyTorch's engine has one strategy for all layers, not {others[0]} as well"
        )
    if plan.compression:
        raise UsageError(f"PyTorch's engine sends no {plan.compression[0].program} messages")
    strategy, engine = strategies[0], ENGINES["torch"]
    if (reason := engine.refusal(strategy)) is not None:
        raise UsageError(f"PyTorch's engine runs no {strategy}: {reason}; plan with --engine torch")
    if (reason := engine.schedule_refusal(strategy, plan.schedule)) is not None:
        raise UsageError(f"PyTorch's engine: {reason}, or plan with --engine torch")
    return strategy


def apply_plan(
    module: nn.Module,
    plan: Plan,
    sample: TracedBatch | None,
    device_type: str,
    compile: bool = False,
) -> nn.Module:
    """Change a module in place into the plan's form on this rank, and return it.

    `sample`: needed where the plan splits operators or has pipeline stages, of which a module of its
    own is returned. Every rank of the plan calls this, with equal parameters. Raises UsageError for
    what the engine cannot do.
    """
    strategy = check_appliable(plan)
    layers = dict(layer_actions(module, plan))
    mesh = device_mesh(strategy, device_type)
    if sample is None and (strategy.size(AXIS) > 1 or strategy.stages > 1):
        raise UsageError("the plan splits the model: give a batch, from which it is traced")
    if sample is not None and strategy.stages > 1:
        return _pipelined(module, plan, sample, mesh, compile)
    if sample is not None and strategy.size(AXIS) > 1:
        _split_operators(module, plan, sample, mesh)
    for path, action in layers.items():
        _prepare(module.get_submodule(path), action, compile)
    if strategy.batch_degree() > 1:
        _shard(module, list(layers), strategy, mesh)
    return module


def _split_operators(
    module: nn.Module, plan: Plan, sample: TracedBatch, mesh: DeviceMesh
) -> Iterable[str]:
    """Split layers over the tensor axis, and a loss over the vocabulary where the plan does without
    stages; gives the paths of what is split. Raises UsageError where a layer then computes something
    else."""
    paths = [path for path, _ in layer_actions(module, plan)]
    before = fingerprints(module, paths, sample.batch)
    expected = _own_loss(module, sample) if len(plan.stages) == 1 else None
    styles = parallel_styles(module, plan, sample.model)
    every = styles
    if check_appliable(plan).sequence_parallel:
        split = [path for path in paths if any(p.startswith(f"{path}.") for p in styles)]
        calls, ranks = calls_of(module, sample.batch), mesh[AXIS].size()
        every = sequence_styles(module, split, styles, calls, ranks)
    head = vocabulary_head(plan, sample.model, styles) if expected is not None else None
    if head is not None:
        every = every | {head: ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)}
    parallelize_module(module, mesh[AXIS], every)
    tie_again(module, sample.model)
    loss = VocabularyLoss(module, module.get_submodule(head)) if head is not None else None
    dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())

    def whole(share: Tensor) -> Tensor:
        return DTensor.from_local(share, mesh[AXIS], [TOKENS]).full_tensor()

    def check() -> str | None:
        after = fingerprints(module, paths, sample.batch, before, whole)
        return first_difference(before, after, dtype)

    different = fit_widths(module, list(styles), mesh[AXIS].size(), check)
    if different is not None:
        raise UsageError(
            f"{different} computes something else on a shard of its width: its code counts on whole "
            "widths that are no attributes of it, and PyTorch's engine cannot split it; plan with "
            "--roles dp,zero1,zero2,zero3,pp, or run the plan as a generated program"
        )
    if loss is not None and expected is not None:
        _check_loss(loss, module, sample, expected)
    return styles


def _own_loss(module: nn.Module, sample: TracedBatch) -> Tensor | None:
    """The loss that the module itself computes of the batch; None where the user's function does."""
    if sample.loss_fn is not None or any(p.is_meta for p in module.parameters()):
        return None
    with torch.no_grad(), evaluating(module):
        return loss_of(module, sample.batch)


def _check_loss(
    loss: VocabularyLoss, module: nn.Module, sample: TracedBatch, expected: Tensor
) -> None:
    """Gather logits where the module's code cannot take split ones, and say so."""
    with evaluating(module):
        loss.split = computes(loss, module, sample.batch, expected)
    if not loss.split:
        warnings.warn(
            "the module's loss takes no split logits (loss_parallel knows cross_entropy alone): they "
            "are gathered, and take the memory of the whole vocabulary",
            stacklevel=2,
        )


def _pipelined(
    module: nn.Module, plan: Plan, sample: TracedBatch, mesh: DeviceMesh, compile: bool
) -> PipelinedModule:
    """This rank's stages of a module."""
    strategy = check_appliable(plan)
    places: StandIns = {}
    if strategy.size(AXIS) > 1:
        paths = _split_operators(module, plan, sample, mesh)
        places = stand_ins(module, paths, calls_of(module, sample.batch))
    ranks = strategy.batch_degree() * plan.micro_batches
    micro_batch = first_samples(sample.batch, ranks)
    chunks, shared = split(module, plan, micro_batch, sample.loss_fn, places)
    rank = mesh[PIPELINE].get_local_rank()
    mine = {i: chunks[i] for i in chunk_places(plan).numbers(rank)}
    applied = PipelinedModule(list(mine.values()), mesh[PIPELINE])
    actions = dict(layer_actions(module, plan))
    for chunk in mine.values():
        layers = [path for path in actions if _submodule(chunk.program, path) is not None]
        for path in layers:
            _prepare(chunk.program.get_submodule(path), actions[path], compile)
        if strategy.batch_degree() > 1:
            _shard(chunk, [f"program.{path}" for path in layers], strategy, mesh)
    applied.shared = SharedParameters(shared, mesh, PIPELINE)
    schedule_stages(applied, dict(mine), plan, torch.device(mesh.device_type))
    return applied


def first_samples(batch: Batch, parts: int) -> Batch:
    """One of `parts` equal parts of a batch."""
    if isinstance(batch, Mapping):
        return {name: x.chunk(parts)[0] for name, x in batch.items()}
    return tuple(x.chunk(parts)[0] for x in batch)


def layer_actions(module: nn.Module, plan: Plan) -> Iterator[tuple[str, MemoryAction]]:
    """The plan's calls that are modules of their own, with their memory actions; a module inside
    another one of them belongs to that."""
    paths = [p for p in dict.fromkeys(plan.calls) if p and _submodule(module, p) is not None]
    for path in paths:
        if not any(path.startswith(f"{other}.") for other in paths):
            action = plan.layers_of(plan.calls.index(path)).memory
            if not ENGINES["torch"].allows_action(action):
                raise UsageError(f"{path}: PyTorch's engine has no memory action {str(action)!r}")
            yield path, action


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def device_mesh(strategy: Strategy, device_type: str) -> DeviceMesh:
    """The mesh of a strategy: stages, replicas, shards, tensor ranks, from the outside in."""
    shards = [n for r, n in strategy.axes if ROLES[r].shards]
    sizes = {
        PIPELINE: strategy.stages,
        REPLICATE: strategy.size("dp"),
        SHARD: shards[0] if shards else 1,
        AXIS: strategy.size(AXIS),
    }
    return init_device_mesh(device_type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def _prepare(layer: nn.Module, action: MemoryAction, compile: bool) -> None:
    """Let a layer save what its memory action says, and compile it where asked."""
    _save_less(layer, action)
    if compile:
        layer.compile()


def _save_less(layer: nn.Module, action: MemoryAction) -> None:
    """Let a layer's forward save what its memory action says."""
    if action == KEEP:
        return
    forward: Callable[..., Any] = layer.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    def offloaded(*args: Any, **kwargs: Any) -> Any:
        with save_on_cpu(pin_memory=layer_device(layer) == "cuda"):
            return forward(*args, **kwargs)

    layer.forward = offloaded if action.on_host else recomputed


def layer_device(layer: nn.Module) -> str:
    """The type of device that a layer's parameters are on."""
    return next((p.device.type for p in layer.parameters()), "cpu")


def _shard(module: nn.Module, layers: list[str], strategy: Strategy, mesh: DeviceMesh) -> None:
    """Shard or replicate every layer, then what stands beside them."""
    options: dict[str, Any] = {
        "mesh": mesh[REPLICATE, SHARD] if strategy.size("dp") > 1 else mesh[SHARD],
        "reshard_after_forward": strategy.size("zero3") > 1,
    }
    for path in layers:
        fully_shard(module.get_submodule(path), **options)
    fully_shard(module, **options)
