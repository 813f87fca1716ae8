"""How good predictions of a source are when it had no say in the constants.

Three factors stand for all constants that somebody could fit: slowdowns of compute, communication and
fixed costs of every machine. A run's seconds are measured at 1 and at a step of each factor, and
taken to follow a power of it between. For every source the factors are fitted on all others, every
source counting the same, and its runs are scored with those.

What is fitted is shrunk towards 1: squares of logarithms of factors, over those of the grid's ends, are
a penalty. Its strength is chosen without the source too, by leaving out one more at a time: the
strongest whose error lies within a standard error of the least (Breiman et al. 1984). So a factor
leaves 1 only where it pays on sources that had no say in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import inf, sqrt
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
STRENGTHS = (0.0, *np.geomspace(1e-3, 1, 7), inf)  # of the penalty, in errors at the grid's ends
FEWEST = 3  # sources that say something about another one
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
    names, points = np.array(of_source.sources), list(product(*GRIDS))
    sources = list(dict.fromkeys(of_source.sources))
    errors = [np.abs(np.expm1(of_source.at(point))) for point in points]
    medians = np.array([[np.median(e[names == source]) for e in errors] for source in sources])
    for at, source in enumerate(sources):
        point = points[fitted(np.delete(medians, at, axis=0), penalties(points))]
        found = np.expm1(of_source.at(point))[names == source]
        yield SourceScore(source, tuple(map(float, found)), ScaleFactors(*map(float, point)))


def penalties(points: Sequence[Sequence[float]]) -> Floats:
    """Of factors how far they are from 1: 1 for each at the end of its grid."""
    ends = np.log([grid[-1] for grid in GRIDS])
    return np.sum((np.log(np.array(points)) / ends) ** 2, axis=1)


def fitted(medians: Floats, away: Floats) -> int:
    """The point that errors [sources points] choose, whose factors are `away` from 1."""
    return least(medians, away, strength(medians, away))


def least(medians: Floats, away: Floats, strength: float) -> int:
    """The point of the least mean error and penalty; that of no factors where nothing else may be."""
    if strength == inf or not len(medians):
        return int(np.argmin(away))
    return int(np.argmin(medians.mean(axis=0) + strength * away))


def strength(medians: Floats, away: Floats) -> float:
    """The strongest penalty whose points suit the sources that had no say in them as well as any."""
    count = len(medians)
    if count < FEWEST:
        return inf
    unseen = np.array(
        [
            [medians[i, least(np.delete(medians, i, axis=0), away, each)] for i in range(count)]
            for each in STRENGTHS
        ]
    )
    means = unseen.mean(axis=1)
    best = int(np.argmin(means))
    limit = means[best] + unseen[best].std(ddof=1) / sqrt(count)
    return max(each for each, error in zip(STRENGTHS, means, strict=True) if error <= limit)
