"""What the planner is asked: a model as it will run, and the options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from ...ir.lowering.cast import in_precision
from ...ir.lowering.rescale import rescale
from ...ir.model.model import Model
from ...ir.passes import Observer
from ...ir.plan.plan import Optimizer
from ...planner.question.options import PlanOptions
from ..options import options_from

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .imported import ImportedPlan


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

    A pin may name a file of another engine (`galvatron_config.json`, torchtitan's TOML, Megatron's
    arguments), whose batch, micro-batches, stages and engine hold where the options do not say
    otherwise. The optimizer is a name or a profile. Raises UsageError, FileError, TraceError.
    """
    from .imported import fixed_options, imported_pins, imported_stages, is_imported, read_imported

    pins = keywords.get("pin") or ()
    texts: list[Any] = [pins] if isinstance(pins, str) else list(pins)
    files: dict[Any, ImportedPlan] = {
        text: read_imported(text, devices) if isinstance(text, str) else text
        for text in texts
        if is_imported(text)
    }
    settings = dict(keywords)
    for file in files.values():
        settings = fixed_options(file, settings)
    model = _traced(model, batch, loss_fn, settings.get("global_batch"), settings.get("precision"))
    settings["pin"] = [
        pin
        for text in texts
        for pin in (imported_pins(files[text], model) if text in files else [text])
    ]
    profile = settings.get("optimizer")
    if isinstance(profile, Optimizer):
        settings["optimizer"] = profile.name
    options = options_from(settings)
    if isinstance(profile, Optimizer):
        options = replace(options, probed_optimizer=profile)
    stages = next((imported_stages(file, model) for file in files.values()), {})
    return PlanRequest(in_precision(model, options.precision, observer), replace(options, **stages))


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
