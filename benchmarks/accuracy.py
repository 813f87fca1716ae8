"""Predictions against measured runs: `python benchmarks/accuracy.py RUNS.csv [--markdown FILE]`.

RUNS.csv describes runs and what was measured: `step_time_target_s`, `peak_mem_gb`, `status`. Errors
are relative; a source's figure is the median of absolute errors, the total the mean over sources.
Ranking looks at groups of equal model, devices and batch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from math import exp, log1p
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import msgspec
import numpy as np

from plait.api.predict.predictor import Predictor
from plait.api.predict.run import Row
from plait.api.predict.table import RowPrediction, predict_rows, read_rows

if __package__:
    from .leave_one_out import SourceScore, scores, sensitivity
else:
    from leave_one_out import SourceScore, scores, sensitivity

LEAST_GROUP = 3  # members that make a ranking
NOISE = 0.05  # of a step: repeats of one source lie up to this apart, so their order says nothing


class Case(NamedTuple):
    row: Mapping[str, str]
    prediction: RowPrediction

    @property
    def source(self) -> str:
        return self.row["source"]

    def error(self, column: str, predicted: float | None) -> float | None:
        measured = self.row.get(column) or ""
        return None if not measured or predicted is None else predicted / float(measured) - 1

    @property
    def time_error(self) -> float | None:
        return self.error("step_time_target_s", self.prediction.predicted_step_time_s)

    @property
    def memory_error(self) -> float | None:
        return self.error("peak_mem_gb", self.prediction.predicted_peak_mem_gb)


def by_source(cases: Iterable[Case]) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        found[case.source].append(case)
    return dict(sorted(found.items()))


def errors(cases: Sequence[Case], kind: Callable[[Case], float | None]) -> list[float]:
    return [e for e in map(kind, cases) if e is not None]


def error_rows(cases: Sequence[Case], kind: Callable[[Case], float | None]) -> list[list[str]]:
    rows, medians = [], []
    for source, members in by_source(cases).items():
        shares = errors(members, kind)
        if shares:
            sizes = sorted(map(abs, shares))
            medians.append(median(sizes))
            worst = sizes[int(0.9 * (len(sizes) - 1))]
            rows.append(
                [source, str(len(shares)), *map(percent, (medians[-1], worst, median(shares)))]
            )
    if medians:
        rows.append(["mean over sources", "", percent(mean(medians)), "", ""])
    return rows


def ranking(pairs: Sequence[tuple[float, float]]) -> tuple[float, float | None]:
    """Top-1 regret of (measured, predicted) seconds, and Kendall's tau over the pairs that measurements
    tell apart (None: there are none)."""
    chosen = min(pairs, key=lambda p: p[1])[0]
    best = min(measured for measured, _ in pairs)
    signs = [
        _sign(a[0] - b[0]) * _sign(a[1] - b[1])
        for a, b in combinations(pairs, 2)
        if abs(a[0] - b[0]) > NOISE * min(a[0], b[0])
    ]
    return chosen / best - 1, mean(signs) if signs else None


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def ranking_rows(cases: Sequence[Case]) -> list[list[str]]:
    rows = []
    for source, members in by_source(cases).items():
        groups: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
        for case in members:
            predicted = case.prediction.predicted_step_time_s
            if case.row["step_time_target_s"] and predicted is not None:
                key = tuple(case.row[c] for c in ("model", "num_gpus", "global_batch", "seq_len"))
                groups[key].append((float(case.row["step_time_target_s"]), predicted))
        ranked = [ranking(pairs) for pairs in groups.values() if len(pairs) >= LEAST_GROUP]
        if ranked:
            taus = [tau for _, tau in ranked if tau is not None]
            text = f"{mean(taus):.2f}" if taus else ""
            rows.append([source, str(len(ranked)), percent(mean(r for r, _ in ranked)), text])
    return rows


def range_rows(cases: Sequence[Case]) -> list[list[str]]:
    """Per source the part of its runs that lie between low and high; then their mean, and the range
    that four of five would lie in, every source counting the same."""
    rows, inside, logs, weights = [], [], [], []
    for source, members in by_source(cases).items():
        timed = [c for c in members if c.time_error is not None]
        if timed:
            inside.append(mean(is_inside(case) for case in timed))
            logs += [log1p(case.time_error or 0.0) for case in timed]
            weights += [1 / len(timed)] * len(timed)
            rows.append([source, str(len(timed)), percent(inside[-1])])
    if inside:
        rows.append(["mean over sources", "", percent(mean(inside))])
        shares = (0.9, 0.1)
        low, high = (exp(-percentile(logs, weights, share)) for share in shares)
        rows.append(["measured over predicted, 80 %", "", f"{low:.2f} to {high:.2f}"])
    return rows


def is_inside(case: Case) -> bool:
    low, high = (
        case.prediction.predicted_step_time_low_s,
        case.prediction.predicted_step_time_high_s,
    )
    assert low is not None
    assert high is not None
    return low <= float(case.row["step_time_target_s"]) <= high


def percentile(values: Sequence[float], weights: Sequence[float], share: float) -> float:
    """The value that `share` of all weight lies below, between the nearest two."""
    order = np.argsort(values)
    heavy = np.array(weights)[order]
    at = (np.cumsum(heavy) - heavy / 2) / heavy.sum()
    return float(np.interp(share, at, np.array(values)[order]))


def fit_rows(cases: Sequence[Case]) -> list[list[str]]:
    """Of runs by whether they ran: how many are predicted to fit, and not to."""
    rows = []
    for status in ("ok", "oom"):
        members = [c.prediction.fits for c in cases if c.row.get("status") == status]
        rows.append(
            [status, str(members.count(True)), str(members.count(False)), str(members.count(None))]
        )
    return rows


def left_out_rows(found: Sequence[SourceScore]) -> list[list[str]]:
    """Per source its errors under factors fitted without it; then the mean and the worst source."""
    rows, medians = [], []
    for score in found:
        sizes = sorted(map(abs, score.errors))
        medians.append(median(sizes))
        wide, bias = sizes[int(0.9 * (len(sizes) - 1))], median(score.errors)
        fitted = " ".join(f"{value:.2f}" for value in msgspec.structs.astuple(score.factors))
        numbers = map(percent, (medians[-1], wide, bias))
        rows.append([score.source, str(len(sizes)), *numbers, fitted])
    rows.append(["mean over sources", "", percent(mean(medians)), "", "", ""])
    rows.append(["worst source", "", percent(max(medians)), "", "", ""])
    return rows


def report_left_out(rows: list[Row], cases: Sequence[Case], models: dict[Any, Any]) -> str:
    predictions = [case.prediction for case in cases]
    of_factors = sensitivity(rows, predictions, models, lambda line: print(line, file=sys.stderr))
    head = ["source", "runs", "median error", "90th percentile", "bias", "factors"]
    found = table(head, left_out_rows(sorted(scores(of_factors))))
    return "\n\n".join(("## Step time, one source left out", found, ""))


def some_rows(rows: list[Row], most: int) -> list[Row]:
    """At most `most` rows of every source, evenly through it."""
    chosen: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        chosen[row["source"]].append(row)
    return [
        row
        for members in chosen.values()
        for i, row in enumerate(members)
        if (i + 1) * most // len(members) > i * most // len(members) or len(members) <= most
    ]


def percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(str(line[i])) for line in (head, *rows)) for i in range(len(head))]
    lines = [head, ["-" * w for w in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def report(cases: Sequence[Case], cpu_seconds: float) -> str:
    spread = ["source", "runs", "median error", "90th percentile", "bias"]
    unmodelled = (c.prediction for c in cases if c.prediction.predicted_step_time_s is None)
    missing = sorted({prediction.note for prediction in unmodelled})
    parts = [
        "## Step time",
        table(spread, error_rows(cases, lambda c: c.time_error)),
        "## Range",
        table(["source", "runs", "inside"], range_rows(cases)),
        "## Ranking",
        table(["source", "groups", "top-1 regret", "Kendall tau"], ranking_rows(cases)),
        "## Peak memory",
        table(spread, error_rows(cases, lambda c: c.memory_error)),
        "## Out of memory",
        table(["run was", "predicted to fit", "not to fit", "not modelled"], fit_rows(cases)),
        f"{len(cases)} runs in {cpu_seconds:.0f} s of processor time.",
    ]
    if missing:
        parts.append("Not modelled: " + "; ".join(missing) + ".")
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--markdown", type=Path, help="also write the report here, below its head")
    parser.add_argument(
        "--leave-one-source-out",
        action="store_true",
        help="also score every source with constants that were fitted without it",
    )
    parser.add_argument("--rows-per-source", type=int, default=10**9, help="at most, evenly chosen")
    options = parser.parse_args(arguments)
    if not options.runs.is_file():
        print(f"skipped: there is no file {options.runs}")
        return 0
    start = time.process_time()
    rows = some_rows(read_rows(options.runs), options.rows_per_source)
    models: dict[Any, Any] = {}
    predictions = predict_rows(rows, predictor=Predictor(models=models))
    cases = [Case(row, made) for row, made in zip(rows, predictions, strict=True)]
    left_out = report_left_out(rows, cases, models) if options.leave_one_source_out else ""
    text = left_out + report(cases, time.process_time() - start)
    print(text)
    if options.markdown is not None:
        head, mark, _ = options.markdown.read_text(encoding="utf-8").partition("## Step time")
        options.markdown.write_text(head + ("" if mark else "\n") + text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
