"""Every system that Plait brings together: its published figure, and ours for the same quantity.

    python benchmarks/headlines.py [--data PATH] [--systems "TSPLIT,1-bit Adam"] [--long]
        [--json] [--markdown docs/results/headlines.md]

PATH has public data: `galvatron/`, `placement/`, `minimalloc/`, `compression_tables.csv`; what needs it
stays empty without. States say what the product does: a generated program runs it, a plan prices it, a
benchmark simulates it, or nothing. Ours is empty where nothing is measured; `--long` measures what takes
more than some seconds too. With `--systems`, `--markdown` writes the rows of these anew and leaves the
table's others as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from plait.benchmarks.accuracy import table
from plait.benchmarks.seed_systems.figure import Row, System, row
from plait.benchmarks.seed_systems.table import SYSTEMS
from plait.ir.unknown_name import unknown_name

HEAD = ["system", "quantity", "paper", "ours", "unit", "state", "conditions"]
TITLE = """# Headlines

`python benchmarks/headlines.py --data PATH --long --markdown docs/results/headlines.md` writes this
table. A system's published figure stands beside ours for the same quantity, under the conditions of the
last column. State is what the product does of it: a generated *program* runs it, a *plan* prices it, a
benchmark is a *simulation* of it, or *nothing*. Figures that no source at hand gives, and what was not
measured, are left empty.

"""


def chosen(names: str) -> tuple[System, ...]:
    """The systems of these names, all by default. Raises SystemExit for unknown ones."""
    if not names:
        return SYSTEMS
    known = {system.name.lower(): system for system in SYSTEMS}
    wanted = [name.strip().lower() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise SystemExit(unknown_name("system", name, [s.name for s in SYSTEMS]))
    return tuple(known[name] for name in wanted)


def cells(made: Row) -> list[str]:
    numbers = ["" if n is None else f"{n:.4g}" for n in (made.paper, made.ours)]
    return [made.system, made.quantity, *numbers, made.unit, made.state, made.conditions]


def markdown(rows: Sequence[Row], earlier: str = "") -> str:
    """The table of all systems: rows of `earlier`, a table, of systems that have none among `rows`."""
    lines = {system.name: list[str]() for system in SYSTEMS}
    for line in earlier.splitlines():
        name = line.removeprefix("| ").partition(" | ")[0]
        if line.startswith("| ") and name in lines:
            lines[name].append(line)
    measured = {r.system for r in rows}
    lines.update({name: [] for name in measured})
    for r in rows:
        lines[r.system].append(f"| {' | '.join(cells(r))} |")
    head = [f"| {' | '.join(line)} |" for line in (HEAD, ["---"] * len(HEAD))]
    return TITLE + "\n".join([*head, *(line for name in lines for line in lines[name]), ""])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, metavar="PATH", help="folder of public data")
    parser.add_argument("--systems", default="", metavar="NAMES", help="comma-separated")
    parser.add_argument("--long", action="store_true", help="measure what takes long, too")
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [
        row(system, figure, options.data, options.long)
        for system in chosen(options.systems)
        for figure in system.figures
    ]
    if options.markdown:
        there = options.systems and options.markdown.is_file()
        earlier = options.markdown.read_text(encoding="utf-8") if there else ""
        options.markdown.write_text(markdown(rows, earlier), encoding="utf-8")
    print(
        msgspec.json.encode(rows).decode()
        if options.json
        else table(HEAD, [cells(r) for r in rows])
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
