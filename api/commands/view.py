"""`plait view`: the picture of a plan, model or placement: a page, an image, a file of another tool."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...ir.errors import UsageError

if TYPE_CHECKING:
    from ..view import Report

SUFFIXES = {
    "html": ".html",
    "svg": ".svg",
    "chrome-trace": ".trace.json",
    "model-explorer": ".graph.json",
    "galvatron": ".galvatron.json",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="plan.json, model.json or placement.json; two plans are set side by side, three or more "
        "drawn as points of time against memory",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="default: beside FILE, plan.html of plan.json"
    )
    parser.add_argument("--format", default="html", choices=tuple(SUFFIXES))
    parser.add_argument(
        "--model", metavar="MODEL", help="the plan's model.json, to show its operators"
    )


def run(arguments: argparse.Namespace) -> int:
    from ..formats import files

    paths = [Path(file) for file in arguments.files]
    suffix = SUFFIXES[arguments.format]
    target = Path(arguments.output or paths[0].with_name(_stem(paths) + suffix))
    if len(paths) > 1:
        text = _beside(paths, arguments.format)
    else:
        text = _rendered(paths[0], arguments.format, arguments.model)
    files.write_text(target, text)
    print(target.resolve())
    return 0


def _stem(paths: list[Path]) -> str:
    """`plan`, `one-two`, `one-two-three`, `one-two-three-and-4-more`: other plans, another name."""
    named = "-".join(path.stem for path in paths[:3])
    return named + (f"-and-{len(paths) - 3}-more" if len(paths) > 3 else "")


def _beside(paths: list[Path], format_: str) -> str:
    from ..plans.plan_object import load_plan
    from ..view import pages_of_plans, render

    if format_ != "html":
        raise UsageError(f"several plans are drawn as a page, not as {format_}")
    return render(pages_of_plans([load_plan(path) for path in paths], [p.name for p in paths]))


def _rendered(path: Path, format_: str, model_file: str | None) -> str:
    from ..formats import files
    from ..plans.plan_object import load_plan, load_uniform_plan
    from ..view import FORMATS, plan_trace

    if format_ == "galvatron":
        from ..formats.galvatron_files import galvatron_text

        return galvatron_text(load_uniform_plan(path, "Galvatron"))
    if format_ == "chrome-trace" and files.format_of(path) == "plait/plan":
        return plan_trace(load_plan(path))
    return FORMATS[format_](_report(path, model_file))


def _report(path: Path, model_file: str | None) -> Report:
    """The report of a file of any kind that has one."""
    from ..formats import files
    from ..formats.model_source import read_model
    from ..placement import PLACEMENT, read_placement
    from ..plans.plan_model import model_from_file
    from ..plans.plan_object import load_plan
    from ..view import report_of_model, report_of_placement, report_of_plan

    kind = files.format_of(path)
    if kind == "plait/model":
        return report_of_model(read_model(path))
    if kind == PLACEMENT:
        return report_of_placement(read_placement(path))
    plan = load_plan(path)
    return report_of_plan(
        plan, None if model_file is None else model_from_file(plan, Path(model_file))
    )
