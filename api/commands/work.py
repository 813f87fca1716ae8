"""What the verbs do. Imported when a verb runs; torch is loaded only by the verbs that trace."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ...ir.errors import MismatchError
from ...ir.model import Model
from ...ir.plan.plan import Plan
from ...ir.verify import verify_model
from .. import files
from .common import format_of, load_model, note, show, source_text

EXTENSIONS = {
    "html": "html",
    "svg": "svg",
    "chrome-trace": "json",
    "model-explorer": "json",
    "galvatron": "json",
}


def trace(options: argparse.Namespace) -> int:
    from ...cost_model.operators.operator_cost import model_flops
    from ...ir.text.printer import parameters, print_model, summary

    model = load_model(options)
    if options.output:
        files.write(Path(options.output), model, "plait/model")
        note(f"wrote {options.output}")
    opaque = opaque_operators(model)
    if options.json:
        show(
            {
                "model": model.name,
                "functions": len(model.functions),
                "calls": len(model.calls),
                "operators": sum(len(f.ops) for f in model.functions),
                "opaque": opaque,
                "parameters": parameters(model),
                "flops": model_flops(model),
                "batch": model.batch,
            }
        )
    else:
        print(print_model(model) if options.text else summary(model))
        print(
            f"  flops per step {model_flops(model):.4g}; opaque operators: "
            + (", ".join(opaque) or "none")
        )
    return 0


def opaque_operators(model: Model) -> list[str]:
    """Targets of operators that nobody declared: they run whole on every rank."""
    from ...ir.analysis.dataflow import flow

    axes = flow(model).axes
    return sorted(
        {
            op.target
            for f in model.functions
            for op, known in zip(f.ops, axes[f.name].ops, strict=True)
            if known.opaque
        }
    )


def plan(options: argparse.Namespace) -> int:
    from .plan import run as planned

    return planned(options)


def predict(options: argparse.Namespace) -> int:
    from ..predict.table import predict_rows, read_rows, write_predictions

    start = time.process_time()
    rows = read_rows(Path(options.runs))
    made = list(predict_rows(rows, _progress))
    write_predictions(Path(options.output), made)
    empty = [p for p in made if p.note]
    done = {
        "rows": len(made),
        "predicted": len(made) - len(empty),
        "output": options.output,
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    if options.json:
        show(done)
    else:
        print(f"{options.output}: {done['predicted']} of {done['rows']} rows predicted")
        for name in sorted({p.note for p in empty}):
            note(f"  not modelled: {name}")
    return 0


def pack(options: argparse.Namespace) -> int:
    from .pack import run as packed

    return packed(options)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def place(options: argparse.Namespace) -> int:
    from ..placement import run as placed

    return placed(options)


def explain(options: argparse.Namespace) -> int:
    from ..explain import explain as explained
    from ..explain import explain_json
    from ..plan_json import plan_json
    from ..plan_object import load_plan
    from .diff import instead, versus, versus_json

    plan = load_plan(options.plan)
    if options.why_not:
        other = instead(plan, options.why_not, options)
        if options.json:
            show(versus_json(plan, other))
        else:
            print(versus(plan, other))
        return 0
    if options.json:
        show(plan_json(plan, {}) | explain_json(plan, options.where, options.memory))
        return 0
    if options.where is None and not options.memory:
        print(plan, end="\n\n")
    print(explained(plan, options.where, memory=options.memory))
    return 0


def diff(options: argparse.Namespace) -> int:
    from .diff import run as compared

    return compared(options)


def calibrate(options: argparse.Namespace) -> int:
    from .calibrate import run as calibrated

    return calibrated(options)


def simulate(options: argparse.Namespace) -> int:
    from .simulate import run as simulated

    return simulated(options)


def view(options: argparse.Namespace) -> int:
    from ..placement import PLACEMENT, read_placement
    from ..view import FORMATS, report_of_model, report_of_placement, report_of_plan

    path = Path(options.file)
    kind = format_of(path)
    target = Path(options.output or f"report.{EXTENSIONS[options.format]}")
    if options.format == "galvatron":
        from ..galvatron_files import written
        from ..plan_object import load_plan

        files.write_text(target, written(load_plan(path)))
        print(target.resolve())
        return 0
    if kind == "plait/model":
        model = files.read(path, Model, kind)
        verify_model(model)
        report = report_of_model(model)
    elif kind == PLACEMENT:
        report = report_of_placement(read_placement(path))
    else:
        from ..plan_object import load_plan

        made = load_plan(path)
        report = report_of_plan(made, _model_of(made, options.model))
    files.write_text(target, FORMATS[options.format](report))
    print(target.resolve())
    return 0


def _model_of(plan: Plan, file: str | None) -> Model | None:
    """The model of a plan as the plan runs it, from its file."""
    from ...ir.lowering.cast import in_precision
    from ...ir.lowering.rescale import rescale

    if file is None:
        return None
    model = files.read(Path(file), Model, "plait/model")
    verify_model(model)
    if model.fingerprint() != plan.model_digest:
        raise MismatchError(f"{file} is not the model that the plan was made for ({plan.model})")
    if model.batch != plan.global_batch:
        model = rescale(model, plan.global_batch)
    return in_precision(model, plan.precision)


def compile(options: argparse.Namespace) -> int:
    from ...codegen import write
    from ..compilation import read_decision

    decision = read_decision(Path(options.plan))
    program = decision.program(load_model(options, decision.batch), source_text(options))
    write(program, Path(options.output))
    lines = sum(text.count("\n") for _, text in program.files)
    print(
        f"{options.output}: {len(program.files)} files, {lines} lines; start it with "
        f"`plait run {options.output}`"
    )
    return 0


def verify(options: argparse.Namespace) -> int:
    from .verify import run as verified

    return verified(options)


def kernels(options: argparse.Namespace) -> int:
    from .kernels import run as compiled

    return compiled(options)


def run(options: argparse.Namespace) -> int:
    from ...runtime.launch.launch import torchrun

    rest = [a for a in options.rest if a != "--"]
    return torchrun(Path(options.directory), rest)


def check(options: argparse.Namespace) -> int:
    path = Path(options.file)
    kind = format_of(path)
    if kind == "plait/model":
        verify_model(files.read(path, Model, kind))
    elif kind == "plait/placement":
        from ..placement import read_placement

        read_placement(path)
    elif kind == "placement-graph/1":
        from ..placement import read_graph

        read_graph(path)
    else:
        from ..plan_object import load_plan

        load_plan(path)
    if options.json:
        show({"format": kind, "ok": True})
    else:
        print(f"{path}: a sound {kind}")
    return 0
