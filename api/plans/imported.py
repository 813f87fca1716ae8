"""Plans of other engines as pins: their files, what they fix beside pins, and pins of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...ir.model.model import Model
from ...planner.interop.engine_layout import EngineLayout, bounds_of_layout, pins_of_layout
from ...planner.interop.galvatron_file import GalvatronPlan
from ...planner.interop.galvatron_plan import bounds_of, pins_of
from ...planner.question.pins import Pin
from ..formats.engine_files import is_engine_file, read_engine_file
from ..formats.galvatron_files import read_galvatron

ImportedPlan = GalvatronPlan | EngineLayout
DEFAULT_ENGINE = "plait"


def is_imported(pin: object) -> bool:
    """Whether a pin is a plan of another engine, or names its file."""
    if isinstance(pin, str):
        return pin.endswith(".json") or is_engine_file(pin)
    return isinstance(pin, ImportedPlan)


def read_imported(name: str, devices: int) -> ImportedPlan:
    """The plan in a file of another engine for `devices` devices; raises FileError."""
    path = Path(name)
    if path.suffix == ".json" and not is_engine_file(name):
        return read_galvatron(path, devices)
    return read_engine_file(path, devices)


def fixed_options(file: ImportedPlan, options: dict[str, Any]) -> dict[str, Any]:
    """The options with what the file fixes, where they do not say otherwise."""
    options = dict(options)
    if isinstance(file, GalvatronPlan):
        values: dict[str, Any] = {
            "global_batch": file.batch.samples,
            "micro_batches": file.batch.micro_batches,
        }
        schedule = "1f1b"
    else:
        values = {"global_batch": file.global_batch}
        if options.get("global_batch") in (None, file.global_batch):
            values["micro_batches"] = file.micro_batches
        if options.get("engine") in (None, DEFAULT_ENGINE):
            options["engine"] = file.engine
        if file.optimizer_on_host:
            options["optimizer_on"] = "host"
        schedule = file.pipeline_schedule
    for name, value in values.items():
        options[name] = options.get(name) or value
    if options.get("schedule") in (None, "auto"):
        options["schedule"] = schedule
    return options


def imported_pins(file: ImportedPlan, model: Model) -> tuple[Pin, ...]:
    """Pins for every call of a model; raises UsageError where its layers are others."""
    return pins_of(file, model) if isinstance(file, GalvatronPlan) else pins_of_layout(file, model)


def imported_stages(file: ImportedPlan, model: Model) -> dict[str, Any]:
    """The options that programs alone set: bounds of stages and model chunks."""
    if isinstance(file, GalvatronPlan):
        return {"bounds": bounds_of(file, model)}
    return {"bounds": bounds_of_layout(file, model), "model_chunks": file.model_chunks}


def is_plan_file(path: Path) -> bool:
    """Whether a file is one of Plait's: those of other engines name no format."""
    if path.suffix not in (".json", ""):
        return False
    try:
        head = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True  # its reader says what is wrong
    return not isinstance(head, dict) or "format" in head
