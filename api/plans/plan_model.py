"""The model of a plan, as the plan runs it."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from ...ir.analysis.dataflow import analyse_dataflow
from ...ir.errors import MismatchError, UsageError
from ...ir.lowering.cast import in_precision
from ...ir.lowering.fit import verify_fit
from ...ir.lowering.rescale import rescale
from ...ir.model.model import Model
from ...ir.plan.plan import Plan
from ..formats.model_source import ModelSource, named_source, read_model


def model_of_plan(plan: Plan, source: str | None, batch: int | None, seq: int | None) -> Model:
    """The model of a plan from `source`, or from the file that the plan names.

    Raises MismatchError where the source has another model, UsageError where none is given and the
    plan names code, which a plan must not run."""
    chosen = _source(plan, source, batch, seq)
    model = chosen.load_for(plan.global_batch, plan.precision, plan.model_digest)
    if model.fingerprint() != plan.model_digest:
        raise MismatchError(f"{chosen.source} is not the model of the plan ({plan.model})")
    return _fitting(plan, model)


def _fitting(plan: Plan, model: Model) -> Model:
    """The model as the plan runs it; raises FileError where the plan has parts that it has not."""
    model = in_precision(model, plan.precision)
    verify_fit(plan, model, analyse_dataflow(model).axes)
    return model


def _source(plan: Plan, source: str | None, batch: int | None, seq: int | None) -> ModelSource:
    if source is not None:
        return ModelSource(source, batch, seq)
    named = named_source(plan.source)
    if named is None or not named.is_data:
        hint = f" {named.source}" if named else ""
        raise UsageError(f"the model is needed again: name it with --model{hint}")
    return ModelSource(named.source, named.batch or batch, named.seq or seq)


def model_from_file(plan: Plan, path: Path) -> Model:
    """The model of a plan from its file. Raises MismatchError where it is another one's."""
    own = read_model(path)
    candidates = in_precision(own, plan.precision), replace(own, half=None)
    model = next((m for m in candidates if m.fingerprint() == plan.model_digest), None)
    if model is None:
        raise MismatchError(f"{path} is not the model that the plan was made for ({plan.model})")
    if model.batch != plan.global_batch:
        model = rescale(model, plan.global_batch)
    return _fitting(plan, model)
