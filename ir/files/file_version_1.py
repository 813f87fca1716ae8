"""Files of version 1 in terms of version 2: which keys are called otherwise now.

Version 1 wrote an operator's sharding as the number of an option; it becomes `#3`, which is found by
its position when the plan is bound to a model. The other formats of version 1 have today's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from ..errors import FileError

Body = dict[str, Any]


class Renamed(NamedTuple):
    """One kind of object: keys by their old name, kinds inside it by old key, what else changed."""

    keys: Mapping[str, str] = {}
    inside: Mapping[str, Renamed] = {}
    change: Callable[[Body], Body] = dict


def _named_choices(body: Body) -> Body:
    """`choices: [[3, 0]]` as `op_splits: [["#3", "#0"]]`."""
    rest = {key: value for key, value in body.items() if key != "choices"}
    return rest | ({"op_splits": _names(body["choices"])} if "choices" in body else {})


def _axis_boundary(body: Body) -> Body:
    """The placements at the boundary, in an object of their own."""
    ends = ("inputs", "gradients", "outputs", "tangents")
    rest = {key: value for key, value in body.items() if key not in ends}
    return _named_choices(rest) | {"boundary": {key: body[key] for key in ends if key in body}}


def _names(choices: Any) -> Any:
    if isinstance(choices, list):
        return [_names(choice) for choice in cast("list[Any]", choices)]
    return f"#{choices}" if type(choices) is int and choices >= 0 else choices


PEAK_POINT = Renamed({
    "waiting": "waiting_bytes", "inside": "call_bytes", "summed": "complete_gradient_bytes",
    "weights": "weight_bytes", "biggest": "largest_weight_bytes",
})  # fmt: skip
STAGE_BYTES = Renamed({
    "held": "weight_bytes", "trained": "trained_bytes", "calls": "call_weight_bytes",
    "saved": "saved_bytes", "last": "last_saved_bytes", "moments": "peak_points",
    "once": "batch_only_bytes", "batch": "batch_copy_bytes", "inputs": "batch_input_bytes",
    "crossing": "outgoing_bytes", "entering": "incoming_bytes", "item": "item_bytes",
    "summed": "partial_gradient_bytes", "small": "small_tensor_bytes", "host": "host_bytes",
    "message": "message_bytes", "coding": "codec_bytes",
}, {"moments": PEAK_POINT})  # fmt: skip
STAGE = Renamed({
    "pieces": "model_chunks", "waiting": "in_flight_micro_batches", "memory": "memory_terms",
    "shares": "bytes_by_strategy", "passage_seconds": "resharding_seconds", "large": "compressible",
}, {"shares": Renamed(inside={"bytes": STAGE_BYTES})})  # fmt: skip
CALL_WORK = Renamed({"sent": "collectives"}, {"sent": Renamed({"item": "item_bytes"})})
LAYERS = Renamed(
    {"once": "batch_only", "makers": "producers"}, {"forward": CALL_WORK, "backward": CALL_WORK}
)
SHARDING = Renamed(change=_named_choices)
CHUNKING = Renamed(
    {"ways": "chunks", "places": "value_shards", "split": "sharding"},
    {"split": Renamed(change=_axis_boundary)},
)
PLAN = Renamed(
    {"budget_bytes": "memory_limit_bytes", "divisions": "chunkings"},
    {
        "stages": STAGE,
        "layers": LAYERS,
        "shardings": SHARDING,
        "divisions": CHUNKING,
        "alternatives": Renamed({"word": "strategy_text", "chunks": "chunks_per_stage"}),
    },
)
FORMATS: Mapping[str, Renamed] = {
    "plait/plan": PLAN,
    "plait/checkpoint": Renamed({"travelled": "exchange_counts"}),
    "plait/model": Renamed(),
    "plait/placement": Renamed(),
}


def upgrade(body: Body, format_: str) -> Body:
    """The keys of a file of version 1 as version 2 has them; raises FileError."""
    if format_ not in FORMATS:
        raise FileError(f"$.version: {format_} of version 1 is not read any more: write it again")
    return _upgraded(body, FORMATS[format_])


def _upgraded(data: Any, kind: Renamed) -> Any:
    if isinstance(data, list):
        return [_upgraded(item, kind) for item in cast("list[Any]", data)]
    if not isinstance(data, dict):
        return data
    body = cast("Body", data)
    renamed: Body = {
        kind.keys.get(key, key): _upgraded(value, kind.inside[key]) if key in kind.inside else value
        for key, value in body.items()
    }
    if len(renamed) < len(body):
        raise FileError(f"$: keys of version 1 and 2 in one object: {', '.join(body)[:200]}")
    return kind.change(renamed)
