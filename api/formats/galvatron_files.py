"""Strategy files of Galvatron: plans written as such, and files read for their pins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ...ir.errors import FileError
from ...ir.files.json_files import located, parse
from ...ir.files.reading import naming, read_bytes
from ...ir.model.verify import require
from ...ir.plan.plan import Plan
from ...ir.ranges import Count, FewCount
from ...planner.interop.galvatron_file import GalvatronPlan, from_json, to_json
from ...planner.interop.galvatron_plan import to_galvatron

Numbers = Annotated[str, Meta(pattern=r"^[1-9]\d{0,5}(,[1-9]\d{0,5}){0,9999}$")]
Flags = Annotated[str, Meta(pattern=r"^[01](,[01]){0,9999}$")]
Flag = Literal[0, 1]


class GalvatronFields(msgspec.Struct, frozen=True):
    """The fields of a strategy file that plans are made from; others are left alone. Plans of Plait run
    as `pipedream_flush` too."""

    pp_deg: FewCount
    tp_sizes_enc: Numbers
    dp_types_enc: Flags
    checkpoint: Flags
    use_sp: Flags
    global_bsz: Count
    chunks: FewCount
    pp_division: Numbers
    vtp: FewCount
    vsp: Flag
    embed_sdp: Flag
    tp_consecutive_flags: Flags = "1"
    pipeline_type: Literal["pipedream_flush"] = "pipedream_flush"
    default_dp_type: Literal["ddp", "zero2", "zero3"] = "zero2"


def galvatron_text(plan: Plan) -> str:
    """A plan as the text of a strategy file; raises UsageError naming what the format cannot say."""
    return to_json(to_galvatron(plan))


def read_galvatron(path: Path, devices: int) -> GalvatronPlan:
    """The strategy file at `path` for `devices` devices; raises FileError naming what is wrong."""
    data = read_bytes(path)
    with naming(path):
        verify_fields(parse(data))
        plan = from_json(data.decode(), devices)
        for strategy in (*plan.layers, plan.ends):
            fits = strategy.stages * strategy.ranks * strategy.replicas == devices
            require(fits, "$", f"strategy {strategy} is not for {devices} devices")
        return plan


def verify_fields(data: object) -> None:
    """Raises FileError naming the field that is wrong, of a strategy for any number of devices."""
    try:
        fields = msgspec.convert(data, GalvatronFields, strict=True)
    except msgspec.ValidationError as error:
        raise FileError(f"{located(str(error))}: no strategy of Galvatron's") from None
    flags = fields.tp_consecutive_flags
    require("0" not in flags, "$.tp_consecutive_flags", "ranks of a layer must be neighbours")
    layers = len(fields.tp_sizes_enc.split(","))
    for name in ("dp_types_enc", "checkpoint", "use_sp"):
        have = len(getattr(fields, name).split(","))
        require(have == layers, f"$.{name}", f"{have} layers, tp_sizes_enc has {layers}")
    division = [int(n) for n in fields.pp_division.split(",")]
    fits = len(division) == fields.pp_deg and sum(division) == layers
    require(fits, "$.pp_division", f"{fields.pp_division} does not divide {layers} layers")
    divides = fields.global_bsz % fields.chunks == 0
    require(divides, "$.chunks", f"{fields.chunks} do not divide {fields.global_bsz} samples")
