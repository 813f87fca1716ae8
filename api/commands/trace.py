"""`plait trace`: a model into the IR."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_json, add_source, source_of
from .output import note, print_json
from .print_after import add_print_after, pass_printer, trace_printers

if TYPE_CHECKING:
    from ...ir.model.model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    add_json(parser)
    add_print_after(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="write the model as JSON")
    parser.add_argument(
        "--text", action="store_true", help="print everything, as `parse_model` reads it"
    )


def run(arguments: argparse.Namespace) -> int:
    from ...cost_model.operators.operator_cost import model_flops
    from ...ir.text.model import print_model
    from ...ir.text.summary import model_summary, parameters
    from ..formats import files

    printer = pass_printer(arguments, trace_printers)
    model = source_of(arguments).load(observer=printer)
    if arguments.output:
        files.write(Path(arguments.output), source_of(arguments).with_half(model), "plait/model")
        note(f"wrote {arguments.output}")
    if printer is not None:
        printer.finish()
        return 0
    opaque = opaque_operators(model)
    if arguments.json:
        print_json(
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
        figures = f"flops per step {model_flops(model):.4g}; opaque operators: " + (
            ", ".join(opaque) or "none"
        )
        print(
            f"{print_model(model)}\n# {figures}"
            if arguments.text
            else f"{model_summary(model)}\n  {figures}"
        )
    return 0


def opaque_operators(model: Model) -> list[str]:
    """Targets of operators without a declaration, which run unsharded on every rank."""
    from ...ir.analysis.dataflow import analyse_dataflow

    axes = analyse_dataflow(model).axes
    return sorted(
        {
            op.target
            for f in model.functions
            for op, known in zip(f.ops, axes[f.name].ops, strict=True)
            if known.opaque
        }
    )
