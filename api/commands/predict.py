"""`plait predict`: step time and peak memory of configurations, one a row of a CSV file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .arguments import add_json
from .output import note, print_json, progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUNS.csv", help="configurations, one a row")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="predictions as CSV")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..predict.table import predict_rows, read_rows, write_predictions

    start = time.process_time()
    rows = read_rows(Path(arguments.runs))
    with progress("predicting") as update:
        predictions = list(predict_rows(rows, update))
    write_predictions(Path(arguments.output), predictions)
    empty = [p for p in predictions if p.predicted_step_time_s is None]
    counts = {
        "rows": len(predictions),
        "predicted": len(predictions) - len(empty),
        "output": arguments.output,
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    if arguments.json:
        print_json(counts)
    else:
        print(f"{arguments.output}: {counts['predicted']} of {counts['rows']} rows predicted")
        for name in sorted({p.note for p in empty}):
            note(f"  not modelled: {name}")
    return 0
