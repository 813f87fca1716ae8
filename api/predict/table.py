"""A CSV file of described runs in, a CSV file of predictions out."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from ...cost_model.explain.confidence import step_range
from ...ir.errors import FileError, PlaitError
from ...ir.files.reading import naming
from .architecture import is_latent, read_architecture
from .assume import assume
from .predictor import Predictor
from .run import Row, is_known_framework, read_run


class RowPrediction(msgspec.Struct, frozen=True):
    """One line of the result; None where the run cannot be modelled, and a `note` that says why, or what
    was taken where the row says nothing. Four of five runs lie between low and high.

    `predicted_peak_mem_gb` (1e9 bytes) is the peak of what the row's `mem_kind` measures: the whole
    device for `nvidia-smi`, an allocator's blocks for `reserved`, else tensors; `fits` counts all.
    """

    row_id: str
    predicted_step_time_s: float | None = None
    predicted_peak_mem_gb: float | None = None
    fits: bool | None = None
    note: str = ""
    predicted_step_time_low_s: float | None = None
    predicted_step_time_high_s: float | None = None


def predict_row(row: Row, predictor: Predictor) -> RowPrediction:
    """The prediction of one row; never raises for what a row says."""
    name = row.get("row_id", "")
    try:
        row, assumed = assume(row)
        described, architecture = read_run(row), read_architecture(row)
        run = predictor.predict(architecture, described)
    except PlaitError as error:
        return RowPrediction(name, note=str(error))
    low, high = step_range(run.step_seconds)
    note = f"engine {described.engine}"
    if not is_known_framework(row):
        note += f", the nearest to {row.get('framework', '') or 'no framework'}, which is not known"
    if not row.get("heads") and not row.get("config"):
        note += "; heads are not said: as wide as usual"
    note += "".join(f"; {text}" for text in (*assumed, *run.notes))
    if not row.get("config") and is_latent(row):
        note += "; so many heads are taken for latent attention"
    if described.recompute != run.recompute:
        reason = "the least that fits" if run.fits else "as nothing fits"
        note += f"; recompute is not said: {run.recompute}, {reason}"
    if "hybrid" in row.get("arch", "") and architecture.state is None:
        note += "; layers of a hybrid are not described: taken for attention"
    gigabytes = run.measured_bytes(row.get("mem_kind", "")) / 1e9
    return RowPrediction(name, run.step_seconds, gigabytes, run.fits, note, low, high)


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV file with a header; raises FileError where there is none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")
            rows: list[Row] = [_row(row, path.parent) for row in reader]
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise FileError(f"{path}: not CSV: {error}") from None
    if "row_id" not in (reader.fieldnames or ()):
        raise FileError(f"{path}: the header names no column row_id")
    return rows


def _row(cells: Mapping[str | None, str], folder: Path) -> Row:
    """A row whose configuration is found beside the table."""
    row = {k: v for k, v in cells.items() if k is not None}
    return row | {"config": str(folder / row["config"])} if row.get("config") else row


def predict_rows(
    rows: list[Row],
    progress: Callable[[int, int], None] = lambda done, total: None,
    predictor: Predictor | None = None,
) -> Iterator[RowPrediction]:
    """Predictions in the rows' order; shapes met before are not traced again."""
    predictor = predictor or Predictor()
    for number, row in enumerate(rows, 1):
        yield predict_row(row, predictor)
        progress(number, len(rows))


def write_predictions(path: Path, predictions: list[RowPrediction]) -> None:
    with naming(path), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(RowPrediction.__struct_fields__)
        writer.writerows([_text(v) for v in msgspec.structs.astuple(p)] for p in predictions)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
