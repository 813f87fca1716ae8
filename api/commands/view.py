"""`plait view`: a plan, model or placement as a page, a picture or a file of another tool."""

from __future__ import annotations

import argparse
from pathlib import Path

EXTENSIONS = {
    "html": "html",
    "svg": "svg",
    "chrome-trace": "json",
    "model-explorer": "json",
    "galvatron": "json",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="plan.json, model.json or placement.json")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="default: report.html, or as the format is"
    )
    parser.add_argument("--format", default="html", choices=tuple(EXTENSIONS))
    parser.add_argument(
        "--model", metavar="MODEL", help="the plan's model.json, to show its operators"
    )


def run(arguments: argparse.Namespace) -> int:
    from ..formats import files

    path = Path(arguments.file)
    target = Path(arguments.output or f"report.{EXTENSIONS[arguments.format]}")
    files.write_text(target, _rendered(path, arguments.format, arguments.model))
    print(target.resolve())
    return 0


def _rendered(path: Path, format_: str, model_file: str | None) -> str:
    from ..formats import files
    from ..formats.model_source import read_model
    from ..placement import PLACEMENT, read_placement
    from ..plans.plan_model import model_from_file
    from ..plans.plan_object import load_plan
    from ..view import FORMATS, report_of_model, report_of_placement, report_of_plan

    kind = files.format_of(path)
    if format_ == "galvatron":
        from ..formats.galvatron_files import galvatron_text

        return galvatron_text(load_plan(path))
    if kind == "plait/model":
        report = report_of_model(read_model(path))
    elif kind == PLACEMENT:
        report = report_of_placement(read_placement(path))
    else:
        plan = load_plan(path)
        model = None if model_file is None else model_from_file(plan, Path(model_file))
        report = report_of_plan(plan, model)
    return FORMATS[format_](report)
