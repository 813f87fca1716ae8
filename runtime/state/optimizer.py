"""Creates a program's optimizer: any torch optimizer on what this rank holds, or a compressed one.

The optimizer is built on the module's whole tensors, so that factories and parameter groups read true
names and shapes; what it needs to see is found by a probe (`optimizer_contract`); then it is bound to
this rank's shards, or to whole tensors of which each lies on one rank (`whole_tensors`).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor, nn

from ...ir.compression.registry import algorithm
from ...ir.errors import MismatchError, UsageError
from ...ir.model.layout import REPLICATE
from ...ir.plan.program import CompressedAxis
from ..comm.group_hierarchy import GroupHierarchy
from ..comm.program_groups import MeshGroups
from ..compression.backends.codec import Codec
from ..compression.optimizers.flat import FlatOptimizer
from ..compression.optimizers.registry import OPTIMIZERS
from ..torch_private import is_fake, mark_stepped
from .initialization import InitialValues
from .optimizer_binding import (
    ParameterState,
    groups_of,
    prefer_fused,
    rebound,
    references_in_code,
    states_of,
    tensors_in,
)
from .optimizer_contract import OptimizerContract, probe_optimizer
from .parameters import ParameterStore
from .whole_tensors import EverywhereTensors, WholeTensors, sharding_axes

Factory = Callable[..., torch.optim.Optimizer]
ParameterGroups = Callable[[list[tuple[str, nn.Parameter]]], Iterable[Any]]


class OptimizerRequest(NamedTuple):
    """An optimizer as users give it: a factory with its arguments, or an instance for the module's
    parameters. `param_groups` makes the groups that the factory gets from the named parameters."""

    factory: Factory | torch.optim.Optimizer | None = None
    args: Mapping[str, Any] = {}
    param_groups: ParameterGroups | None = None


class LocalOptimizer:
    """A torch optimizer that steps on what this rank has: shards, and whole tensors that it owns.

    `leaves` are the tensors that it steps on, by name; `group_names` the names of all tensors of the
    model by parameter group, of other ranks' too.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        contract: OptimizerContract,
        whole: WholeTensors,
        leaves: Mapping[str, Tensor],
        group_names: tuple[tuple[str, ...], ...],
    ) -> None:
        self.optimizer, self.contract, self.whole = optimizer, contract, whole
        self.leaves, self.group_names = leaves, group_names
        self.stepping = False
        if isinstance(optimizer, torch.optim.Optimizer):
            optimizer.register_step_pre_hook(self.check_stepping)

    def step(self) -> None:
        """Update this rank's tensors by their gradients; all ranks together."""
        self.whole.collect_gradients()
        self.stepping = True
        try:
            if self.leaves:
                self.optimizer.step()
            else:
                mark_stepped(self.optimizer)
        finally:
            self.stepping = False
        self.whole.distribute_values()

    def check_stepping(self, *_: Any) -> None:
        """Raise UsageError where somebody steps the optimizer itself: other ranks would not see it."""
        if not self.stepping:
            raise UsageError(
                "the optimizer of a program is stepped by program.step or program.optimizer_step, "
                "which also gathers gradients and distributes what was updated"
            )


def make(
    request: OptimizerRequest, initial: InitialValues, store: ParameterStore, groups: MeshGroups
) -> LocalOptimizer | None:
    """The optimizer of this rank, or None where no parameter of the model is trainable.

    Raises MismatchError where no rank of the program sees what the optimizer must see, UsageError for
    one that needs a closure or that holds other tensors than the module's.
    """
    if not any(spec.trainable for spec in store.specs.values()):
        return None
    check_takes_no_closure(request.factory)
    names = tensor_names(initial.module, store)
    optimizer = request.factory
    if not is_instance(optimizer):
        originals = {n: p for n, p in initial.module.named_parameters() if p.requires_grad}
        optimizer = build(request, list(originals.items()))
        if any(is_fake(t) for state in states_of(optimizer).values() for t in tensors_in(state)):
            named = trainable_parameters(initial.module)  # its states need values
            names |= {tensor: names[originals[name]] for name, tensor in named}
            optimizer = build(request, named)
    elif request.args or request.param_groups is not None:
        raise UsageError(
            f"the optimizer is a {type(optimizer).__name__} that is built already: leave out "
            f"optimizer_args and param_groups, or give its class"
        )
    check_takes_no_closure(optimizer)
    check_tensors(optimizer, names)
    check_states(optimizer, initial)
    sparse = [t for t, name in names.items() if name and store.specs[name].sparse_gradient]
    device = torch.device("cpu") if store.steps_on_host else store.device
    contract = probe_optimizer(optimizer, names, device, sparse)
    check_visibility(contract, store)
    return bind(optimizer, contract, names, WholePlacement(store, groups, initial))


def is_instance(optimizer: Any) -> bool:
    """Whether an optimizer is built already."""
    return isinstance(optimizer, torch.optim.Optimizer) or (
        hasattr(optimizer, "param_groups") and not isinstance(optimizer, type)
    )


def contract_of(
    request: OptimizerRequest,
    named: Sequence[tuple[str, nn.Parameter]],
    sparse: Collection[str] = (),
) -> OptimizerContract:
    """The contract of an optimizer for these parameters, apart from any program; `sparse` of them have
    gradients of the rows that were read.

    Raises UsageError for one that needs a closure.
    """
    check_takes_no_closure(request.factory)
    optimizer = request.factory
    if not is_instance(optimizer):
        optimizer = build(request, named)
    check_takes_no_closure(optimizer)
    tensors = [p for _, p in named] + [p for g in groups_of(optimizer) for p in g["params"]]
    return probe_optimizer(optimizer, tensors, sparse=[p for name, p in named if name in sparse])


def build(request: OptimizerRequest, named: Sequence[tuple[str, nn.Parameter]]) -> Any:
    """The optimizer over whole tensors."""
    factory = torch.optim.AdamW if request.factory is None else request.factory
    if not callable(factory):
        raise UsageError(
            f"the optimizer {factory!r} is neither a class, a factory nor an optimizer"
        )
    parameters = (
        [parameter for _, parameter in named]
        if request.param_groups is None
        else list(request.param_groups(list(named)))
    )
    optimizer = factory(parameters, **request.args)
    if not hasattr(optimizer, "step") or not hasattr(optimizer, "param_groups"):
        raise UsageError(
            f"the optimizer factory gives a {type(optimizer).__name__}, not an optimizer: it must have "
            f"step() and param_groups"
        )
    return optimizer


def stand_in(shape: Sequence[int], dtype: torch.dtype) -> nn.Parameter:
    """A parameter of a shape that takes no memory; its values are NaN."""
    return nn.Parameter(torch.full((), torch.nan, dtype=dtype).expand(tuple(shape)))


def trainable_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The module's trainable parameters by name; stand-ins for those that have no values."""
    return [
        (name, stand_in(p.shape, p.dtype) if is_fake(p) else p)
        for name, p in module.named_parameters()
        if p.requires_grad
    ]


def tensor_names(module: nn.Module, store: ParameterStore) -> dict[Tensor, str]:
    """The program's name of each of the module's parameters; empty for those that it does not train,
    and for another tensor of a name that is shared (on the meta device, shared tensors part)."""
    first = {alias: n for n, spec in store.specs.items() for alias in spec.aliases}
    names: dict[Tensor, str] = {}
    named: set[str] = set()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        known = first.get(name, name)
        trained = known in store.specs and store.specs[known].trainable
        if not names.get(parameter):
            names[parameter] = known if trained and known not in named else ""
            named.add(known)
    return names


def check_takes_no_closure(optimizer: Any) -> None:
    """Raise UsageError for an optimizer whose step needs a closure, such as LBFGS."""
    step = getattr(optimizer, "step", None)
    closure = inspect.signature(step).parameters.get("closure") if callable(step) else None
    if closure is not None and closure.default is inspect.Parameter.empty:
        name = getattr(optimizer, "__name__", type(optimizer).__name__)
        raise UsageError(
            f"{name} evaluates the loss several times per step, which a compiled program does not "
            f"do: use an optimizer whose step takes no closure"
        )


def check_tensors(optimizer: Any, names: Mapping[Tensor, str]) -> None:
    """Raise UsageError where the optimizer steps on tensors that are not the module's, or where its code
    refers to the module's, which the program does not train."""
    name = type(optimizer).__name__
    for number, group in enumerate(groups_of(optimizer)):
        for position, parameter in enumerate(group["params"]):
            if parameter not in names:
                raise UsageError(
                    f"tensor {position} of group {number} of {name} ({list(parameter.shape)}) is not a "
                    f"parameter of the model that is parallelized: build the optimizer for that very "
                    f"module"
                )
    for function, variable in references_in_code(optimizer, names):
        raise UsageError(
            f"{function} of {name} uses the model by the name {variable!r}, while a program has the "
            f"gradients of shards: use self.param_groups there (and program.clip_grad_norm to clip)"
        )


def check_states(optimizer: Any, initial: InitialValues) -> None:
    """Raise UsageError where the optimizer has made states from values that other weights replace."""
    states = [t for state in states_of(optimizer).values() for t in tensors_in(state)]
    if initial.loaded and any(t.is_floating_point() and t.dim() and t.any() for t in states):
        raise UsageError(
            f"{type(optimizer).__name__} makes its states from the module's values, which the weights "
            "replace: load them into the module first (load_state_dict), and leave weights out"
        )


def check_visibility(contract: OptimizerContract, store: ParameterStore) -> None:
    """Raise MismatchError where replicas of an optimizer would draw different random numbers."""
    if not contract.draws_random_numbers:
        return
    trained = [spec for spec in store.specs.values() if spec.trainable]
    tied = [spec.names()[0] for spec in trained if len(spec.stages) > 1]
    if tied:
        raise MismatchError(
            f"{contract.name} draws random numbers, and several stages train their own copy of "
            f"{tied[0]}: plan without pp"
        )
    if contract.demand == "across tensors" and lacks_tensors(store):
        raise MismatchError(
            f"{contract.name} draws random numbers and looks at several tensors at once "
            f"({contract.evidence}): plan with roles that keep all weights on every rank "
            "(roles=('dp',))"
        )


def lacks_tensors(store: ParameterStore) -> bool:
    """Whether a rank of the program has only shards, or the tensors of one of several stages."""
    trained = [spec for spec in store.specs.values() if spec.trainable]
    sharded = any(sharding_axes(store.table, spec) for spec in trained)
    return sharded or len({spec.stages for spec in trained}) > 1


def warn_of_memory(contract: OptimizerContract, store: ParameterStore) -> None:
    """Say what an optimizer that looks at several tensors costs where ranks have shards."""
    if store.groups.pool.rank == 0:
        warnings.warn(
            f"{contract.name} looks at several tensors at once ({contract.evidence}): every rank keeps "
            "all weights, gradients and states whole for it. Clipping by program.clip_grad_norm and "
            "nonfinite='skip' need no such memory",
            stacklevel=5,
        )


class WholePlacement(NamedTuple):
    """Where the tensors of a program lie, and their first values."""

    store: ParameterStore
    groups: MeshGroups
    initial: InitialValues


def bind(
    optimizer: Any,
    contract: OptimizerContract,
    names: Mapping[Tensor, str],
    placement: WholePlacement,
) -> LocalOptimizer:
    """Let the optimizer step on this rank's tensors instead of the module's."""
    store = placement.store
    original = groups_of(optimizer)
    group_names = tuple(tuple(names[p] for p in group["params"] if names[p]) for group in original)
    needed_whole = {
        names[p]
        for number, group in enumerate(original)
        for p in group["params"]
        if names[p] and contract.demand_of(number, p.dim()) != "elementwise"
    }
    whole: WholeTensors
    if contract.demand == "across tensors" and lacks_tensors(store):
        warn_of_memory(contract, store)
        whole = EverywhereTensors(*placement)
    else:
        replicas = contract.draws_random_numbers
        whole = WholeTensors(*placement, needed_whole, with_replicas=replicas)
    whole.refuse_rows(contract.name, contract.evidence)
    grouped = {p for group in original for p in group["params"]}
    targets: dict[Tensor, Tensor] = {}
    for tensor, name in names.items():
        leaf = whole.leaf(name) if tensor in grouped and name else None
        if leaf is not None:
            targets[tensor] = leaf

    def convert(tensor: Tensor, state: ParameterState) -> ParameterState:
        return {
            key: local_state(store, names[tensor], targets[tensor], value)
            for key, value in state.items()
        }

    rebound(optimizer, names, targets, convert, in_place=True)
    sparse = {leaf for t, leaf in targets.items() if store.specs[names[t]].sparse_gradient}
    prefer_fused(optimizer, sparse)
    leaves = {names[tensor]: leaf for tensor, leaf in targets.items()}
    return LocalOptimizer(optimizer, contract, whole, leaves, group_names)


def local_state(store: ParameterStore, name: str, leaf: Tensor, value: Any) -> Any:
    """This rank's part of an item of a whole tensor's state, made when the optimizer was built."""
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point() and value.isnan().any():
        raise UsageError(
            f"the optimizer makes its state from the values of {name}, which has none yet (it is on "
            f"the meta device): build the model on the CPU"
        )
    if value.dim() == 0 or tuple(value.shape) != store.specs[name].type.shape:
        return value.clone()
    if value.is_floating_point():
        value = value.to(torch.promote_types(value.dtype, leaf.dtype))
    parameter = store.parameters.get(name)
    if parameter is not None and leaf is parameter.leaf:
        return store.scatter(parameter, value)
    return store.stepped_copy(value)


def make_compressed(
    axis: CompressedAxis,
    args: Mapping[str, Any],
    store: ParameterStore,
    hierarchy: GroupHierarchy,
    codec: Codec,
) -> FlatOptimizer | None:
    """The optimizer that exchanges compressed gradients along an axis itself; None where nothing is
    trainable. Its gradients are partial sums over that axis.

    Parameters that are replicated over the same other axes form a group: flattened together with
    different neighbours on different ranks, they would be rounded differently.
    """
    by_replication: dict[str, list[torch.nn.Parameter]] = {}
    for parameter in store.trainable():
        if parameter.leaf is not None and parameter.spec.reached:
            shared = parameter.spec.stages if len(parameter.spec.stages) > 1 else ()
            sharded_axes = [
                number for number, state in enumerate(parameter.spec.layout) if state != REPLICATE
            ]
            by_replication.setdefault(f"axes {sharded_axes} stages {shared}", []).append(
                parameter.leaf
            )
    if not by_replication:
        return None
    chosen = algorithm(axis.optimizer)
    groups = [
        {"params": members, "seed": crc32(key.encode())} for key, members in by_replication.items()
    ]
    optimizer: FlatOptimizer = OPTIMIZERS[chosen.optimizer](
        groups, hierarchy, program=chosen, codec=codec, **args
    )
    optimizer.scale = hierarchy.all.size
    return optimizer
