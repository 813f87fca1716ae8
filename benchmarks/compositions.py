"""Random compositions against eager PyTorch: `python benchmarks/compositions.py [--seed S --count N]`.

Every trial draws a small model (`composition_models`), a strategy (a quarter with a layer of its own),
micro-batches, schedule, memory action, compression, optimizer and precision, compiles the program and
trains it on 2 or 4 gloo ranks beside the user's module in one process (`plait verify`). A launch of
ranks runs many trials. `--json FILE` keeps a row per trial; `-o FILE` writes the table of docs from
all rows of that file, those of earlier runs included; `--again` runs its mismatches once more.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from plait.api.formats.model_source import ModelSource
from plait.api.plans.compositions import (
    Choices,
    Composition,
    Outcome,
    Trial,
    draw,
    plan_of,
    verify_trials,
)
from plait.benchmarks.composition_models import MODELS
from plait.ir.errors import PlaitError
from plait.ir.model.model import Model
from plait.runtime.launch.scratch import scratch_folder
from plait.runtime.verification import verify
from plait.runtime.verification.compare import BY_ROUNDING
from plait.tests import ranks

RANKS = (2, 4)
PER_LAUNCH = 64
PINS = re.compile(r"^no plan .*? pin (?:\S+, pin )*\S+: ")
DRAWS = 20  # at most for one trial, until nothing of it is known to be refused
FACTORIES = "plait.benchmarks.composition_models"
TIMEOUT_SECONDS = 1800.0
# fmt: off
CHOICES = Choices(
    compress=("none",) * 8 + ("auto", "eight-bits", "sdp4bit", "int8-activations"),
    optimizers=(
        "adamw", "adamw", "adam", "sgd", "momentum", "rmsprop", "adagrad", "Adafactor",
        *(f"{FACTORIES}:{name}" for name in ("lamb", "muon", "by_dimension")),
    ),
    precisions=("fp64", "fp64", "fp64", "fp64", "fp64", "fp64", "fp32", "bf16", "fp16"),
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
    seed: int = 0

    @property
    def result(self) -> str:
        return "refused" if self.refused else "mismatch" if self.wrong else "verified"


class Drawn(NamedTuple):
    """A trial and the name of its model."""

    model: str
    trial: Trial


class Drawing:
    """Random trials; what was refused for a model by itself is not drawn for it again."""

    def __init__(self, seed: int, models: Sequence[str]) -> None:
        self.seed, self.models = seed, models
        self.traced: dict[str, Model] = {}
        self.refused: set[tuple[str, int, str]] = set()

    def trial(self, number: int, ranks: int) -> Drawn:
        """Trial `number` of the seed."""
        rng = random.Random(f"{self.seed}.{number}")
        name = rng.choice(self.models)
        source = ModelSource(f"{FACTORIES}:{name}")
        if name not in self.traced:
            self.traced[name] = source.load()
        model = self.traced[name]
        composition = draw(rng, model, ranks, CHOICES)
        for _ in range(DRAWS):
            if all((name, ranks, trait) not in self.refused for trait in traits(composition)):
                break
            composition = draw(rng, model, ranks, CHOICES)
        return Drawn(name, Trial(composition, source, model))

    def learn(self, drawn: Drawn, ranks: int) -> None:
        """Find by what a refused trial is refused."""
        trial = drawn.trial
        for trait, simpler in simplified(trial.composition):
            if is_planned(trial._replace(composition=simpler), ranks):
                self.refused.add((drawn.model, ranks, trait))
                return


def traits(composition: Composition) -> list[str]:
    """What a composition may be refused for."""
    return [trait for trait, _ in simplified(composition)]


def simplified(composition: Composition) -> list[tuple[str, Composition]]:
    """Compositions without one trait each."""
    c = composition
    axes = c.strategy.split(",")
    plain = [f"dp={axis.partition('=')[2]}".partition("@")[0] for axis in axes]
    one_less = [
        (axis, replace(c, strategy=",".join([*axes[:i], plain[i], *axes[i + 1 :]])))
        for i, axis in enumerate(axes)
        if "=" in axis and not axis.startswith(("dp=", "pp="))
    ]
    return [
        *([(f"{c.micro_batches} parts", replace(c, micro_batches=1))] * (c.micro_batches > 1)),
        *([(f"{c.layer}:{c.layer_strategy}", replace(c, layer=""))] * bool(c.layer)),
        *([(c.schedule, replace(c, schedule="1f1b"))] * (c.schedule != "1f1b")),
        *([(f"compress {c.compress}", replace(c, compress="none"))] * (c.compress != "none")),
        *one_less,
    ]


def is_planned(trial: Trial, ranks: int) -> bool:
    try:
        plan_of(trial, ranks)
    except PlaitError:
        return False
    return True


def rows_of(seed: int, count: int, models: Sequence[str]) -> Iterable[Row]:
    """Run `count` trials; gives their rows launch by launch, which have 2 and 4 ranks in turn."""
    drawing = Drawing(seed, models)
    for start in range(0, count, PER_LAUNCH):
        size = RANKS[(start // PER_LAUNCH) % len(RANKS)]
        numbers = range(start, min(start + PER_LAUNCH, count))
        drawn = [drawing.trial(number, size) for number in numbers]
        with scratch_folder("compositions") as scratch:
            outcomes = verify_trials([d.trial for d in drawn], size, scratch, TIMEOUT_SECONDS)
        for one, outcome in zip(drawn, outcomes, strict=True):
            if outcome.refused:
                drawing.learn(one, size)
            yield row_of(one.model, size, outcome, seed)


def again(rows: Sequence[Row]) -> Iterable[Row]:
    """The rows, those of mismatches from a new run."""
    traced: dict[str, Model] = {}
    for row in rows:
        if not row.wrong:
            yield row
            continue
        source = ModelSource(f"{FACTORIES}:{row.model}")
        if row.model not in traced:
            traced[row.model] = source.load()
        trial = Trial(row.composition, source, traced[row.model])
        with scratch_folder("compositions") as scratch:
            (outcome,) = verify_trials([trial], row.ranks, scratch, TIMEOUT_SECONDS)
        yield row_of(row.model, row.ranks, outcome, row.seed)


def row_of(name: str, ranks: int, outcome: Outcome, seed: int) -> Row:
    verdict = outcome.verdict
    wrong = "" if verdict is None or verdict.passed else str(verdict)
    notes = verdict.notes if verdict is not None else ()
    return Row(name, ranks, outcome.trial.composition, outcome.refused, wrong, notes, seed)


# the document


def document(rows: Sequence[Row]) -> str:
    """Counts by what was composed, refusals by reason, and every mismatch."""
    results = Counter(row.result for row in rows)
    lines = [
        "# Random compositions against eager PyTorch",
        "",
        "Written by `python benchmarks/compositions.py --json FILE -o docs/results/compositions.md`.",
        "A trial draws a model, a strategy, micro-batches, schedule, memory action, compression,",
        "optimizer and precision, and trains the generated program on gloo ranks beside the user's own",
        "module in one process. Losses, gradients, parameters and buffers agree to 1e-9 in float64; in",
        "other precisions errors are at most eight times those of one process in that precision;",
        "compressed programs are only near. What was refused by itself for a model is not drawn for",
        "it again. Where exact gradients are zero, an optimizer that divides by their size takes",
        f"rounding for a direction: what that decides is named, in {rounding_trials(rows)} trials, "
        "and not compared.",
        "",
        f"**{len(rows)} tried: {results['verified']} verified, {results['refused']} refused by the "
        f"planner, {results['mismatch']} mismatches.** "
        f"Seeds {', '.join(map(str, sorted({row.seed for row in rows})))}.",
        "",
        *matrix(rows),
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


def rounding_trials(rows: Sequence[Row]) -> int:
    """Trials in which rounding of gradients decided over a tensor."""
    return sum(any(note.startswith(BY_ROUNDING) for note in row.notes) for row in rows)


def matrix(rows: Sequence[Row]) -> list[str]:
    """Verified and refused trials of every model with every role of its axes."""
    counts: dict[str, Counter[tuple[str, str]]] = {}
    for row in rows:
        for role in roles_of(row.composition):
            counts.setdefault(row.model, Counter())[role, row.result] += 1
    roles = sorted({role for counter in counts.values() for role, _ in counter})
    lines = [f"| verified + refused | {' | '.join(roles)} |", "|---|" + "---|" * len(roles)]
    for model, counter in sorted(counts.items()):
        cells = (f"{counter[r, 'verified']} + {counter[r, 'refused']}" for r in roles)
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return lines


def roles_of(composition: Composition) -> set[str]:
    axes = f"{composition.strategy},{composition.layer_strategy}".split(",")
    return {axis.partition("=")[0] for axis in axes} - {""}


def dimensions(rows: Sequence[Row]) -> dict[str, dict[str, Counter[str]]]:
    """Results by every value of every dimension of a composition."""
    tables: dict[str, dict[str, Counter[str]]] = {}

    def count(title: str, value: str, row: Row) -> None:
        tables.setdefault(title, {}).setdefault(value, Counter())[row.result] += 1

    for row in rows:
        composition = row.composition
        count("model", row.model, row)
        count("ranks", str(row.ranks), row)
        for role in roles_of(composition):
            count("role", role, row)
        count("layers", "one differs" if composition.layer else "all alike", row)
        count("micro-batches", str(composition.micro_batches), row)
        count("schedule", composition.schedule, row)
        count("memory action", composition.memory, row)
        count("compression", composition.compress, row)
        count("optimizer", composition.optimizer.rpartition(":")[2], row)
        count("precision", composition.precision, row)
    return tables


def reason(text: str) -> str:
    """Why a planner refused, without numbers and names."""
    cause = PINS.sub("", text).partition(" (")[0].rpartition(": ")[2]
    return re.sub(r"\d+", "N", cause)[:120]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=32, help="trials; 0 writes the table alone")
    parser.add_argument("--json", metavar="FILE", help="add a row per trial to FILE (JSON lines)")
    parser.add_argument(
        "--again", action="store_true", help="run the mismatches of FILE again, and nothing else"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the table, as Markdown")
    arguments = parser.parse_args()
    verify.launch = ranks.launch  # ranks that are forked start in no time
    json_file = Path(arguments.json) if arguments.json else None
    rows = []
    if json_file is not None and json_file.exists():
        rows = [msgspec.json.decode(line, type=Row) for line in json_file.read_bytes().splitlines()]
    if arguments.again and json_file is not None:
        rows = list(again(rows))
        json_file.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        arguments.count = 0
    for row in rows_of(arguments.seed, arguments.count, arguments.models):
        rows.append(row)
        print(f"{row.result:9} {row.model} on {row.ranks}: {row.composition}", flush=True)
        if row.refused or row.wrong:
            print(f"          {row.refused or row.wrong}", flush=True)
        if json_file is not None:
            with json_file.open("ab") as file:
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
