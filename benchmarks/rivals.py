"""Our search on rivals' own costs, under their judges: `python benchmarks/rivals.py PATH`.

PATH has `sailor/` (profiles, links, a cloud, scenarios) and `aceso/` (profiles, settings), with what
their planners answered (`plans.json`, `results.csv`). Every plan is judged again by the rival's
formulas; ours is `plait`. The floor is a time that no plan goes below. `--json` prints the rows,
`--markdown FILE` writes the table.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import exp, log
from pathlib import Path

import msgspec

from plait.benchmarks.accuracy import table
from plait.benchmarks.rivals.aceso import comparison as aceso
from plait.benchmarks.rivals.row import Comparison, Row
from plait.benchmarks.rivals.sailor import comparison as sailor
from plait.benchmarks.rivals.sailor.question import Scenario, read_scenarios

PROBLEMS: dict[str, Callable[[Path], Comparison]] = {
    "sailor": sailor.compare,
    "aceso": aceso.compare,
}
HEAD = [
    "scenario",
    "planner",
    "step s",
    "dollars",
    "too large",
    "over the fleet",
    "search CPU s",
    "ours",
    "floor s",
]
INTRODUCTION = """\
# Rivals on their own ground

Written by `python benchmarks/rivals.py PATH --markdown docs/results/rivals.md`. PATH has the profiles,
fleets and settings of two published planners, and the plans that they and others gave. Every plan is
judged by the formulas of the rival's own simulator (`benchmarks/rivals/sailor/judge.py`,
`benchmarks/rivals/aceso/judge.py`), ours by nothing else. *ours* is how many times faster our plan is
(cheaper, where dollars are the objective); no plan goes below the floor. Sailor's search seconds leave
out its tables, ours leave out reading the files.
"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    options = parser.parse_args(arguments)
    folders = {name: options.path / name for name in PROBLEMS if (options.path / name).is_dir()}
    if not folders:
        print(f"skipped: there is no folder {options.path}/sailor or {options.path}/aceso")
        return 0
    problems = {name: PROBLEMS[name](folder) for name, folder in folders.items()}
    rows = [row for comparison in problems.values() for row in comparison.rows]
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
        return 0
    scenarios = read_scenarios(folders["sailor"]) if "sailor" in folders else []
    text = "\n".join(report(problems, scenarios))
    print(text)
    if options.markdown:
        options.markdown.write_text(f"{INTRODUCTION}\n{text}\n")
    return 0


def report(found: dict[str, Comparison], scenarios: Iterable[Scenario]) -> Iterator[str]:
    """What was reproduced, the tables, and how ours compares."""
    by_name = {scenario.scenario: scenario for scenario in scenarios}
    for name, comparison in found.items():
        yield f"## {name.capitalize()}\n"
        yield "Reproduced to 1e-9: " + "; ".join(map(str, comparison.reproduced)) + ".\n"
        ours = {row.scenario: row for row in comparison.rows if row.planner == "plait"}
        yield table(HEAD, [_cells(row, ours, by_name) for row in comparison.rows])
        yield ""
        yield from _summary(comparison, ours, by_name)


def _value(row: Row, scenarios: dict[str, Scenario]) -> float | None:
    """What the scenario asks to be small."""
    scenario = scenarios.get(row.scenario)
    return row.dollars if scenario and scenario.objective != "throughput" else row.step_seconds


def _ratio(row: Row, ours: dict[str, Row], scenarios: dict[str, Scenario]) -> float | None:
    theirs, mine = _value(row, scenarios), _value(ours[row.scenario], scenarios)
    return theirs / mine if theirs is not None and mine is not None else None


def _cells(row: Row, ours: dict[str, Row], scenarios: dict[str, Scenario]) -> list[str]:
    ratio = None if row.planner == "plait" else _ratio(row, ours, scenarios)
    return [
        row.scenario,
        row.planner,
        "none" if row.step_seconds is None else f"{row.step_seconds:.4f}",
        "" if row.dollars is None else f"{row.dollars:.4f}",
        _yes(row.too_large),
        _yes(row.over_fleet),
        "" if row.cpu_seconds is None else f"{row.cpu_seconds:.2f}",
        "" if ratio is None else f"{ratio:.3f}x",
        f"{row.floor_seconds:.4f}",
    ]


def _yes(fact: bool | None) -> str:
    return "" if fact is None else ("yes" if fact else "no")


def _summary(
    comparison: Comparison, ours: dict[str, Row], scenarios: dict[str, Scenario]
) -> Iterator[str]:
    ratios: dict[str, list[float]] = defaultdict(list)
    for row in sailor.lawful_rows(comparison.rows):
        ratio = _ratio(row, ours, scenarios)
        if ratio is not None:
            ratios[row.scenario].append(ratio)
    least = [min(found) for found in ratios.values()]
    if least:
        yield f"Against the best lawful rival: from {min(least):.3f}x to {max(least):.3f}x."
    mixed = [
        ratio
        for row in comparison.rows
        if row.planner == "SAILOR"
        and scenarios[row.scenario].mixed
        and not scenarios[row.scenario].limits_dollars
        and (ratio := _ratio(row, ours, scenarios)) is not None
    ]
    if mixed:
        mean = exp(sum(map(log, mixed)) / len(mixed))
        yield f"Against Sailor on mixed fleets: {mean:.3f}x in the geometric mean of {len(mixed)}."
    gaps = [1 - r.floor_seconds / r.step_seconds for r in ours.values() if r.step_seconds]
    yield f"Our gap to the floor: from {min(gaps):.0%} to {max(gaps):.0%}.\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
