"""Strategy files of Galvatron: plans written as such, and files read for their pins."""

from __future__ import annotations

import json
from pathlib import Path

from ...ir.errors import FileError
from ...ir.plan.plan import Plan
from ...planner.interop.galvatron_file import GalvatronPlan, from_json, to_json
from ...planner.interop.galvatron_plan import DEFAULTS, to_galvatron

FIXED = {"pipeline_type": "pipedream_flush"}  # what plans of Plait do too


def galvatron_text(plan: Plan) -> str:
    """A plan as the text of a strategy file; raises UsageError naming what the format cannot say."""
    return to_json(to_galvatron(plan))


def read_galvatron(path: Path, devices: int) -> GalvatronPlan:
    """The strategy file at `path` for `devices` devices; raises FileError naming what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
        galvatron_plan = from_json(text, devices)
        fields = json.loads(text)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise FileError(
            f"{path}: $.{error.args[0]}: missing from a strategy of Galvatron's"
        ) from None
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, RecursionError) as error:
        raise FileError(f"{path}: no strategy of Galvatron's: {error}") from error
    for fault in faults(galvatron_plan, fields, devices):
        raise FileError(f"{path}: {fault}")
    return galvatron_plan


def faults(plan: GalvatronPlan, fields: dict[str, object], devices: int) -> list[str]:
    """Reasons why a strategy file cannot be priced here; empty where it can."""
    reasons = [
        f"$.{name}: {fields[name]!r} is not {value!r}"
        for name, value in FIXED.items()
        if fields.get(name, value) != value
    ]
    if plan.default not in DEFAULTS:
        reasons.append(f"$.default_dp_type: {plan.default!r} is none of {', '.join(DEFAULTS)}")
    if "0" in str(fields.get("tp_consecutive_flags", "1")).split(","):
        reasons.append("$.tp_consecutive_flags: ranks of a layer must be neighbours")
    if len(plan.division) != int(str(fields["pp_deg"])) or sum(plan.division) != len(plan.layers):
        reasons.append(f"$.pp_division: {plan.division} does not divide {len(plan.layers)} layers")
    reasons += [
        f"strategy {strategy} is not for {devices} devices"
        for strategy in dict.fromkeys((*plan.layers, plan.ends))
        if strategy.stages * strategy.ranks * strategy.replicas != devices or strategy.ranks < 1
    ]
    if min(plan.batch.samples, plan.batch.micro_batches) < 1:
        reasons.append("$.global_bsz and $.chunks count from 1")
    return reasons
