"""How good predictions of a source are when it had no say in the constants.

Three factors stand for all constants that somebody could fit: slowdowns of compute, communication and
fixed costs of every machine. A run's seconds are measured at 1 and at a step of each factor, and
taken to follow a power of it between. For every source the factors are fitted on all others, every
source counting the same, and its runs are scored with those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plait.api.predict.predictor import Predictor
from plait.api.predict.run import Row
from plait.api.predict.table import RowPrediction, predict_rows
from plait.cost_model.scaled_cluster import ScaleFactors

STEP = 1.2
FACTORS = ("compute", "communication", "overhead")
# fmt: off
GRIDS = (np.geomspace(0.8, 1.25, 19), np.geomspace(0.7, 1.43, 9), np.geomspace(0.5, 2.0, 7))
# fmt: on
Floats = NDArray[np.float64]


class SourceScore(NamedTuple):
    """A source's errors under factors that were fitted without it."""

    source: str
    errors: tuple[float, ...]
    factors: ScaleFactors


class Sensitivity(NamedTuple):
    """Runs of all sources: logarithms of predicted over measured seconds, and exponents by factor."""

    sources: tuple[str, ...]
    logs: Floats
    exponents: Floats

    def at(self, factors: Sequence[float]) -> Floats:
        """The logarithms under other factors."""
        return self.logs + self.exponents @ np.log(np.array(factors))


def sensitivity(
    rows: list[Row],
    predictions: Sequence[RowPrediction],
    models: dict[Any, Any],
    report: Callable[[str], None],
) -> Sensitivity:
    """Predictions of all rows with a measured time, at 1 (`predictions`) and at a step of every factor;
    `models`: those that were traced for them."""
    timed = [row for row in rows if row.get("step_time_target_s")]
    at_one = [p for row, p in zip(rows, predictions, strict=True) if row.get("step_time_target_s")]
    columns = [[x.predicted_step_time_s or np.nan for x in at_one]]
    for name in FACTORS:
        report(f"predicting {len(timed)} runs with {name} scaled")
        predictor = Predictor(ScaleFactors(**{name: STEP}), models)
        made = predict_rows(timed, predictor=predictor)
        columns.append([x.predicted_step_time_s or np.nan for x in made])
    seconds = np.log(np.array(columns).T)
    known: np.ndarray = np.logical_not(np.isnan(seconds).any(axis=1))
    measured = np.log([float(row["step_time_target_s"]) for row in timed])
    return Sensitivity(
        tuple(row["source"] for row, is_known in zip(timed, known, strict=True) if is_known),
        (seconds[:, 0] - measured)[known],
        (seconds[known, 1:] - seconds[known, :1]) / np.log(STEP),
    )


def scores(of_source: Sensitivity) -> Iterator[SourceScore]:
    """The score of every source, the factors fitted on all others."""
    names = np.array(of_source.sources)
    points = list(product(*GRIDS))
    medians = {source: [] for source in dict.fromkeys(of_source.sources)}
    for point in points:
        errors = np.abs(np.expm1(of_source.at(point)))
        for source, column in medians.items():
            column.append(float(np.median(errors[names == source])))
    for source in medians:
        others = [column for other, column in medians.items() if other != source]
        best = points[int(np.argmin(np.mean(others, axis=0)))] if others else (1.0, 1.0, 1.0)
        errors = np.expm1(of_source.at(best))[names == source]
        factors = ScaleFactors(*map(float, best))
        yield SourceScore(source, tuple(map(float, errors)), factors)
