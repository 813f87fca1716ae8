"""States of compressed collectives (error feedback, replicas) as full tensors of a checkpoint.

With error feedback, a sum of gradients lacks the errors of all workers and of the servers, which
are added in later steps. Their total is preserved:

    saved on n ranks    worker errors e0 … en-1, server errors s, unsharded, named as parameters
    loaded on n ranks   each rank its own, to the bit
    loaded on m ranks   (e0 + … + en-1) / m each, and s; where there are no servers, s / m more each
    uncompressed there  the same, added to the gradients of the first step

Replicas of weights are the same on all ranks and are sharded like weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

from torch import Tensor

from ...ir.compression.kernel import CompressionState
from ...ir.compression.program import Payload
from ...ir.plan.strategy import ZERO_ROLES
from ..comm.group_hierarchy import RankGroup
from ..comm.program_groups import MeshGroups
from ..compression.buckets import RESIDUAL, TensorState
from . import unsharded
from .local_parameter import LocalParameter
from .parameters import ParameterStore

COMPRESSED_REPLICA = "published"  # compressed weights that are no collective's replica
SavedStates = dict[str, dict[str, Tensor]]  # by parameter and state key


class StateKey(NamedTuple):
    """Identifies a state: role of the axis, payload, name, and the rank if ranks have different ones."""

    role: str
    payload: Payload
    state: str
    rank: int | None = None

    def __str__(self) -> str:
        return ".".join(str(part) for part in self if part is not None)


def parse(text: str) -> StateKey | None:
    """The key of `str(key)`; None for other text."""
    role, payload, state, rank = (*text.split("."), "", "", "")[:4]
    if payload not in ("gradients", "weights") or not (rank.isdecimal() or not rank):
        return None
    known: Payload = "gradients" if payload == "gradients" else "weights"
    return StateKey(role, known, state, int(rank) if rank else None)


def residual_share(errors: Sequence[Tensor], size: int) -> Tensor:
    """Equal share of the sum of these errors for each of `size` ranks."""
    return sum(errors[1:], errors[0]) / size


# saving


def checkpoint_tensors(store: ParameterStore, groups: MeshGroups) -> dict[str, Tensor]:
    """All states, by `key/parameter`; all ranks together."""
    mine = {(name, key): item for name, key, item in _local_states(store, groups)}
    types = {key: shard.dtype for key, (shard, _) in mine.items()}
    tensors = {}
    for (name, key), dtype in unsharded.gather_along_pipeline(types, groups).items():

        def make(name: str = name, key: str = key) -> Tensor:
            return store.gather(store.parameters[name], *mine[name, key])

        tensors[f"{key}/{name}"] = unsharded.broadcast_from_owner(
            store, groups, name, make, dtype=dtype
        )
    return tensors


def exchange_counts(store: ParameterStore, groups: MeshGroups) -> dict[str, int]:
    """Number of exchanges of each bucket so far, from which random rounding continues."""
    mine = {
        f"{role}.{bucket}": steps
        for (_, role), buckets in store.transports.buckets.items()
        for bucket, steps in buckets.exchange_counts().items()
    }
    return unsharded.gather_along_pipeline(mine, groups)


def _local_states(
    store: ParameterStore, groups: MeshGroups
) -> Iterator[tuple[str, str, tuple[Tensor, int]]]:
    """Parameter, key, and this rank's shard with its number of flat sharding levels."""
    replicas = set[str]()
    for (mesh, role), buckets in store.transports.buckets.items():
        for one in buckets.tensor_states():
            everyone = groups.hierarchies[mesh, role].all
            rows = everyone.all_gather(one.value) if one.by_rank else one.value[None]
            for rank, row in enumerate(rows):
                key = StateKey(role, one.payload, one.state, rank if one.by_rank else None)
                yield one.tensor, str(key), (row, _flat_depth(role))
            replicas |= {one.tensor} if one.payload == "weights" else set()
    for parameter in _with_exact_copies(store):
        if parameter.name not in replicas:
            yield parameter.name, COMPRESSED_REPLICA, (parameter.flat, 1)


def _flat_depth(role: str) -> int:
    """Levels of flat sharding that remain after a gather along a role."""
    return ZERO_ROLES.index(role) if role in ZERO_ROLES else len(ZERO_ROLES)


def _with_exact_copies(store: ParameterStore) -> Iterator[LocalParameter]:
    """Parameters whose exact value is parameter beside the compressed one that other ranks see."""
    for parameter in store.trainable():
        if parameter.total_degree > 1 and store.transports.compresses_weights(parameter.spec.mesh):
            yield parameter


# loading


def load(
    store: ParameterStore, saved: Mapping[str, Tensor], done: Mapping[str, int], steps: int
) -> set[str]:
    """Load saved states; `done` are exchange counts by bucket, `steps` that of unknown buckets.

    Gives the parameters of this rank whose errors no collective of this plan can take.
    """
    by_parameter: SavedStates = {}
    for full_name, tensor in saved.items():
        key, _, name = full_name.partition("/")
        by_parameter.setdefault(name, {})[key] = tensor
    without_state = {
        n
        for n, states_by_key in by_parameter.items()
        if n in store.parameters and any(_errors(states_by_key))
    }
    for parameter in _with_exact_copies(store):
        if COMPRESSED_REPLICA in by_parameter.get(parameter.name, {}):
            parameter.flat.copy_(
                store.flat_shard(parameter, by_parameter[parameter.name][COMPRESSED_REPLICA], 1)
            )
    for (mesh, role), buckets in sorted(store.transports.buckets.items()):  # zero2 after zero1
        states = [
            one
            for parameter in store.trainable()
            if parameter.spec.mesh == mesh and parameter.name in by_parameter
            for one in _tensor_states(store, parameter, role, by_parameter[parameter.name])
        ]
        counts = {key.partition(".")[2]: n for key, n in done.items() if key.startswith(f"{role}.")}
        buckets.load_tensor_states(states, counts, steps)
        without_state -= {one.tensor for one in states if one.payload == "gradients"}
    return without_state


def _errors(states_by_key: Mapping[str, Tensor]) -> Iterator[StateKey]:
    for text in states_by_key:
        key = parse(text)
        if key is not None and key.payload == "gradients":
            yield key


def _tensor_states(
    store: ParameterStore, parameter: LocalParameter, role: str, states_by_key: Mapping[str, Tensor]
) -> Iterator[TensorState]:
    """This rank's shards of one parameter's states, for the collectives along a role."""
    buckets, depth = store.transports.buckets[parameter.spec.mesh, role], _flat_depth(role)
    local = (
        parameter.sharding.local_elements // prod(parameter.sharding.degrees[1:depth])
        if depth
        else parameter.sharding.padded_elements
    )
    large = local * parameter.flat.element_size() >= buckets.small_bytes
    for state in buckets.states("weights") if large else ():
        value = states_by_key.get(str(StateKey(role, "weights", state.name)))
        if value is not None:
            flat = store.flat_shard(parameter, value, depth)
            yield TensorState("weights", state.name, parameter.name, False, flat)
            parameter.flat.copy_(store.flat_shard(parameter, value, 1))
    if "+".join(parameter.spec.partial_axes) == role and any(_errors(states_by_key)):
        states = buckets.states("gradients") if large else ()
        for name, by_rank, value in _residuals(states, buckets.levels.all, role, states_by_key):
            yield TensorState(
                "gradients", name, parameter.name, by_rank, store.flat_shard(parameter, value)
            )


def _residuals(
    states: Sequence[CompressionState],
    ranks: RankGroup,
    role: str,
    states_by_key: Mapping[str, Tensor],
) -> Iterator[tuple[str, bool, Tensor]]:
    """Errors for the states along a role: state name, whether by rank, and full value."""
    saved = {key: states_by_key[str(key)] for key in sorted(_errors(states_by_key), key=str)}
    servers = [value for key, value in saved.items() if key.rank is None]
    worker = next((s.name for s in states if s.on_reshard == "reset"), RESIDUAL)
    server = next((s.name for s in states if s.on_reshard == "split"), None)
    if server is not None and servers:
        yield server, False, residual_share(servers, 1)
    keys = [StateKey(role, "gradients", worker, rank) for rank in range(ranks.size)]
    errors = [v for key, v in saved.items() if key.rank is not None or server is None]
    if {key for key in saved if key.rank is not None or server is None} == set(keys):
        yield worker, True, saved[keys[ranks.index]]
    elif errors:
        yield worker, True, residual_share(errors, ranks.size)
