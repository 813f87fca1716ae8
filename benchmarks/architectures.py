"""Which architectures trace, and what stays opaque: `python benchmarks/architectures.py [-o FILE.md]`.

Every model of tests/zoo in training mode, with tiny sizes; seconds are CPU seconds of the trace.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch

from plait.ir.analysis.axes import analyse
from plait.ir.capture import trace
from plait.ir.errors import TraceError
from plait.ir.model.model import Model
from plait.tests import zoo

COLUMNS = ("model", "kind", "traced", "functions", "calls", "operators", "opaque", "seconds")


def opaque(model: Model) -> list[str]:
    """Operators that are replicated because nothing is known of their loops."""
    return sorted(
        {
            op.target
            for function in model.functions
            for op, known in zip(function.ops, analyse(function).ops, strict=True)
            if known.opaque
        }
    )


def row(name: str) -> tuple[str, ...]:
    """One model's cells."""
    with torch.device("meta"):
        module, batch = zoo.ZOO[name]()
    start = time.process_time()
    try:
        model = trace(module.train(), batch)
    except TraceError as error:
        return name, zoo.KIND[name], f"no: {error}", "", "", "", "", ""
    seconds = time.process_time() - start
    operators = sum(len(f.ops) for f in model.functions)
    counts = (len(model.functions), len(model.calls), operators)
    unknown = ", ".join(opaque(model)) or "none"
    return name, zoo.KIND[name], "yes", *map(str, counts), unknown, f"{seconds:.1f}"


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    lines = [COLUMNS, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def document(rows: list[tuple[str, ...]]) -> str:
    traced = sum(r[2] == "yes" for r in rows)
    return (
        "# Architectures\n\n"
        f"{traced} of {len(rows)} Hugging Face architectures trace, forward and backward, with tiny "
        "sizes.\nAn operator is opaque when nobody declared its loops: it runs whole on every "
        "rank.\n\nWritten by `python benchmarks/architectures.py -o docs/results/coverage.md` "
        f"(Python {platform.python_version()}, torch {torch.__version__}, one core).\n\n"
        f"{table(rows)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    row("gpt2")  # loads libraries, which is nobody's trace
    text = document([row(name) for name in zoo.ZOO])
    if options.output:
        options.output.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
