"""Random compositions against eager PyTorch: `python benchmarks/compositions.py [--seed S --count N]`.

Every trial draws a small model (`composition_models`), a strategy (a quarter with a layer of its own),
micro-batches, schedule, memory action, compression, optimizer and precision, compiles the program and
trains it on 2 or 4 gloo ranks beside the user's module in one process (`plait verify`). A launch of
ranks runs many trials. `--json FILE` keeps a row per trial; `-o FILE` writes the table of docs from
all rows of that file, those of earlier runs included.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from plait.api.formats.model_source import ModelSource
from plait.api.plans.compositions import Choices, Composition, Outcome, Trial, draw, verify_trials
from plait.benchmarks.composition_models import MODELS
from plait.ir.model.model import Model
from plait.runtime.launch.scratch import scratch_folder

RANKS = (2, 4)
PER_LAUNCH = 32
TIMEOUT_SECONDS = 1800.0
# fmt: off
CHOICES = Choices(
    compress=("none",) * 6 + ("auto", "eight-bits", "sdp4bit"),
    optimizers=("adamw", "adamw", "adam", "sgd", "momentum", "rmsprop", "adagrad"),
    precisions=("fp64", "fp64", "fp64", "fp64", "fp32", "bf16"),
)
# fmt: on


class Row(msgspec.Struct, frozen=True):
    """One trial: `refused` is the planner's reason, `wrong` the verdict of a mismatch."""

    model: str
    ranks: int
    composition: Composition
    refused: str = ""
    wrong: str = ""
    notes: tuple[str, ...] = ()

    @property
    def result(self) -> str:
        return "refused" if self.refused else "mismatch" if self.wrong else "verified"


def trials_of(seed: int, count: int, models: Sequence[str]) -> list[tuple[int, str, int]]:
    """(number, model, ranks) of every trial; a launch has trials of one number of ranks."""
    rng = random.Random(seed)
    drawn = []
    for number in range(count):
        ranks = RANKS[(number // PER_LAUNCH) % len(RANKS)]
        drawn.append((number, rng.choice(models), ranks))
    return drawn


def rows_of(seed: int, count: int, models: Sequence[str]) -> Iterable[Row]:
    """Run `count` trials; gives their rows launch by launch."""
    traced: dict[str, Model] = {}
    drawn = trials_of(seed, count, models)
    for start in range(0, count, PER_LAUNCH):
        launch = drawn[start : start + PER_LAUNCH]
        trials = []
        for number, name, ranks in launch:
            source = ModelSource(f"plait.benchmarks.composition_models:{name}")
            if name not in traced:
                traced[name] = source.load()
            rng = random.Random(f"{seed}.{number}")
            composition = draw(rng, traced[name], ranks, CHOICES)
            trials.append(Trial(composition, source, traced[name]))
        ranks = launch[0][2]
        with scratch_folder("compositions") as scratch:
            outcomes = verify_trials(trials, ranks, scratch, TIMEOUT_SECONDS)
        for (_, name, _), outcome in zip(launch, outcomes, strict=True):
            yield row_of(name, ranks, outcome)


def row_of(name: str, ranks: int, outcome: Outcome) -> Row:
    verdict = outcome.verdict
    wrong = str(verdict) if outcome.mismatch else ""
    notes = verdict.notes if verdict is not None else ()
    return Row(name, ranks, outcome.trial.composition, outcome.refused, wrong, notes)


# the document


def document(rows: Sequence[Row]) -> str:
    """Counts by what was composed, refusals by reason, and every mismatch."""
    results = Counter(row.result for row in rows)
    lines = [
        "# Random compositions against eager PyTorch",
        "",
        "Written by `python benchmarks/compositions.py --json FILE -o docs/compositions.md`. A trial",
        "draws a model, a strategy, micro-batches, schedule, memory action, compression, optimizer and",
        "precision, and trains the generated program on gloo ranks beside the user's own module in one",
        "process. Losses, gradients, parameters and buffers agree to 1e-9 in float64; in other",
        "precisions errors are at most eight times those of one process in that precision; compressed",
        "programs are only near.",
        "",
        f"**{len(rows)} tried: {results['verified']} verified, {results['refused']} refused by the "
        f"planner, {results['mismatch']} mismatches.**",
        "",
    ]
    for title, values in dimensions(rows).items():
        lines += [f"| {title} | verified | refused | mismatches |", "|---|---|---|---|"]
        for value, counts in sorted(values.items()):
            numbers = (counts[k] for k in ("verified", "refused", "mismatch"))
            lines.append(f"| {value} | {' | '.join(map(str, numbers))} |")
        lines.append("")
    lines += ["Refusals:", ""]
    reasons = Counter(reason(row.refused) for row in rows if row.refused)
    lines += [f"- {n} × {text}" for text, n in reasons.most_common()]
    lines += ["", "Mismatches:", ""]
    wrong = [f"- {row.model} on {row.ranks} ranks: {row.wrong:.600}" for row in rows if row.wrong]
    return "\n".join([*lines, *(wrong or ["- none"]), ""])


def dimensions(rows: Sequence[Row]) -> dict[str, dict[str, Counter[str]]]:
    """Results by every value of every dimension of a composition."""
    tables: dict[str, dict[str, Counter[str]]] = {}

    def count(title: str, value: str, row: Row) -> None:
        tables.setdefault(title, {}).setdefault(value, Counter())[row.result] += 1

    for row in rows:
        composition = row.composition
        count("model", row.model, row)
        count("ranks", str(row.ranks), row)
        axes = composition.strategy.split(",")
        for role in {axis.partition("=")[0] for axis in axes}:
            count("role", role, row)
        count("layers", "one differs" if composition.layer else "all alike", row)
        count("micro-batches", str(composition.micro_batches), row)
        count("schedule", composition.schedule, row)
        count("memory action", composition.memory, row)
        count("compression", composition.compress, row)
        count("optimizer", composition.optimizer, row)
        count("precision", composition.precision, row)
    return tables


def reason(text: str) -> str:
    """A refusal without its numbers and names."""
    words = text.split(":")[0] if len(text.split(":")[0]) > 20 else text
    return "".join("N" if c.isdigit() else c for c in words).replace("NN", "N")[:120]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=32, help="trials; 0 writes the table alone")
    parser.add_argument("--json", metavar="FILE", help="add a row per trial to FILE (JSON lines)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the table, as Markdown")
    arguments = parser.parse_args()
    kept = Path(arguments.json) if arguments.json else None
    rows = []
    if kept is not None and kept.exists():
        rows = [msgspec.json.decode(line, type=Row) for line in kept.read_bytes().splitlines()]
    for row in rows_of(arguments.seed, arguments.count, arguments.models):
        rows.append(row)
        print(f"{row.result:9} {row.model} on {row.ranks}: {row.composition}", flush=True)
        if row.refused or row.wrong:
            print(f"          {row.refused or row.wrong}", flush=True)
        if kept is not None:
            with kept.open("ab") as file:
                file.write(msgspec.json.encode(row) + b"\n")
    print(json.dumps(summary(rows)))
    if arguments.output:
        Path(arguments.output).write_text(document(rows), encoding="utf-8")


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    results = Counter(row.result for row in rows)
    mismatches = [f"{r.model} on {r.ranks}: {r.composition}" for r in rows if r.wrong]
    return {"tried": len(rows), "refused": results["refused"], "mismatches": mismatches}


if __name__ == "__main__":
    main()
