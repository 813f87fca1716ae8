"""`--print-after PASS`: what a pass of the compiler gives, as text."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from ...ir.errors import UsageError
from ...ir.passes import Pass
from ...ir.unknown_name import unknown_name
from .output import note

Printers = Mapping[str, Callable[[Any], str]]  # by the name of a pass


def add_print_after(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--print-after", metavar="PASS", help="print what a pass gives, each time that it runs"
    )


class PassPrinter:
    """An observer that prints what one pass gives."""

    def __init__(self, name: str, printers: Printers) -> None:
        self.name, self.printer, self.runs = name, printers[name], 0

    def __call__(self, step: Pass[Any, Any], value: Any) -> None:
        if step.name == self.name:
            self.runs += 1
            print(f"# after {self.name}\n{self.printer(value)}\n")

    def finish(self) -> None:
        """Say so where the pass did not run."""
        if not self.runs:
            note(f"{self.name} did not run, as where a model is read from a file")


def pass_printer(
    arguments: argparse.Namespace, printers_of: Callable[[], Printers]
) -> PassPrinter | None:
    """The observer that `--print-after` asks for; raises UsageError for a pass that is not known."""
    name: str | None = arguments.print_after
    if name is None:
        return None
    printers = printers_of()
    if name not in printers:
        raise UsageError(unknown_name("pass", name, printers))
    return PassPrinter(name, printers)


def trace_printers() -> Printers:
    """Printers for the passes of a trace."""
    from ...ir.capture import text
    from ...ir.text.function import print_function
    from ...ir.text.model import print_model

    return {
        "export": text.print_recording,
        "functionalize": text.print_graph,
        "decompose": text.print_graph,
        "rewrite": text.print_graph,
        "outline": text.print_segments,
        "simplify": text.print_joint_graph,
        "differentiate": print_function,
        "assemble": print_model,
        "rescale": print_model,
        "cast": print_model,
    }


def plan_printers() -> Printers:
    """Printers for the passes of a trace and of planning."""
    from ...ir.text.axes import print_dataflow
    from ...ir.text.plan import print_plan
    from ...ir.text.sharding import print_sharding

    return {
        **trace_printers(),
        "axes": print_dataflow,
        "sharding": print_sharding,
        "search": print_plan,
    }


def compile_printers() -> Printers:
    """Printers for the passes of a trace, of lowering and of code generation."""
    from ...ir.text.axes import print_dataflow
    from ...ir.text.function import (
        print_backward_parts,
        print_function,
        print_halves,
        print_local_lists,
    )
    from ...ir.text.sharding import print_bound_sharding

    return {
        **trace_printers(),
        "axes": print_dataflow,
        "chunk": print_bound_sharding,
        "localize": print_function,
        "forward_backward": print_halves,
        "split_backward": print_backward_parts,
        "overlap": print_local_lists,
        "function": str,
        "stage": str,
    }
