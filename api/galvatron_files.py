"""Files of Galvatron: a plan written as one, and one read as pins."""

from __future__ import annotations

import json
from pathlib import Path

from ..ir.errors import FileError
from ..ir.plan.plan import Plan
from ..planner.interop.galvatron_file import GalvatronPlan, from_json, to_json
from ..planner.interop.galvatron_plan import DEFAULTS, to_galvatron

FIXED = {"pipeline_type": "pipedream_flush"}  # what else our plans do


def written(plan: Plan) -> str:
    """The text of a plan's file; raises UsageError naming what the format cannot say."""
    return to_json(to_galvatron(plan))


def read_galvatron(path: Path, devices: int) -> GalvatronPlan:
    """A plan for so many devices; raises FileError naming the file and what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
        found = from_json(text, devices)
        fields = json.loads(text)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise FileError(
            f"{path}: $.{error.args[0]}: missing from a strategy of Galvatron's"
        ) from None
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, RecursionError) as error:
        raise FileError(f"{path}: no strategy of Galvatron's: {error}") from error
    for fault in faults(found, fields, devices):
        raise FileError(f"{path}: {fault}")
    return found


def faults(found: GalvatronPlan, fields: dict[str, object], devices: int) -> list[str]:
    """What makes a file no plan that can be priced here."""
    said = [
        f"$.{name}: {fields[name]!r} is not {value!r}"
        for name, value in FIXED.items()
        if fields.get(name, value) != value
    ]
    if found.default not in DEFAULTS:
        said.append(f"$.default_dp_type: {found.default!r} is none of {', '.join(DEFAULTS)}")
    if "0" in str(fields.get("tp_consecutive_flags", "1")).split(","):
        said.append("$.tp_consecutive_flags: ranks of a layer must be neighbours")
    if len(found.division) != int(str(fields["pp_deg"])) or sum(found.division) != len(
        found.layers
    ):
        said.append(f"$.pp_division: {found.division} does not divide {len(found.layers)} layers")
    said += [
        f"strategy {strategy} is not for {devices} devices"
        for strategy in dict.fromkeys((*found.layers, found.ends))
        if strategy.stages * strategy.ranks * strategy.replicas != devices or strategy.ranks < 1
    ]
    if min(found.batch.samples, found.batch.micro_batches) < 1:
        said.append("$.global_bsz and $.chunks count from 1")
    return said
