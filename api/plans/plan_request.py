"""What the planner is asked: a model as it will run, and the options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from ...ir.lowering.cast import in_precision
from ...ir.lowering.rescale import rescale
from ...ir.model.model import Model
from ...ir.passes import Observer
from ...ir.plan.plan import Optimizer
from ...planner.question.options import PlanOptions
from ...planner.question.pins import Pin
from ..options import options_from

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...planner.interop.galvatron_file import GalvatronPlan


class PlanRequest(NamedTuple):
    """A model in its precision, with the samples of one step, and the options of its search."""

    model: Model
    options: PlanOptions


def plan_request(
    model: nn.Module | Model,
    devices: int,
    keywords: Mapping[str, Any],
    batch: Any = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    observer: Observer | None = None,
) -> PlanRequest:
    """The request for planning on `devices` devices: trace a module, apply batch and precision, and
    parse the options.

    A pin that ends in `.json` names a strategy file of Galvatron, whose batch, micro-batches and stage
    bounds hold where the options do not say otherwise. The optimizer is a name or a profile. Raises
    UsageError, FileError, TraceError.
    """
    from ...planner.interop.galvatron_plan import bounds_of, pins_of
    from ..formats.galvatron_files import read_galvatron

    pins = keywords.get("pin") or ()
    texts: list[str | Pin] = [pins] if isinstance(pins, str) else list(pins)
    names = [text for text in texts if isinstance(text, str) and text.endswith(".json")]
    files: dict[str | Pin, GalvatronPlan] = {
        name: read_galvatron(Path(name), devices) for name in names
    }
    settings = dict(keywords)
    for file in files.values():
        settings["global_batch"] = settings.get("global_batch") or file.batch.samples
        settings["micro_batches"] = settings.get("micro_batches") or file.batch.micro_batches
        if settings.get("schedule") in (None, "auto"):
            settings["schedule"] = "1f1b"  # Galvatron's stages have one model chunk each
    model = _traced(model, batch, loss_fn, settings.get("global_batch"), settings.get("precision"))
    settings["pin"] = [
        pin for text in texts for pin in (pins_of(files[text], model) if text in files else [text])
    ]
    profile = settings.get("optimizer")
    if isinstance(profile, Optimizer):
        settings["optimizer"] = profile.name
    options = options_from(settings)
    if isinstance(profile, Optimizer):
        options = replace(options, probed_optimizer=profile)
    bounds = next((bounds_of(file, model) for file in files.values()), None)
    return PlanRequest(
        in_precision(model, options.precision, observer), replace(options, bounds=bounds)
    )


def _traced(
    model: nn.Module | Model,
    batch: Any,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    global_batch: int | None,
    precision: str | None,
) -> Model:
    if not isinstance(model, Model):
        from ...ir.capture import trace

        model = trace(model, batch, loss_fn, batch_size=global_batch, precision=precision)
    if global_batch is None or model.batch == global_batch:
        return model
    return rescale(model, global_batch)
