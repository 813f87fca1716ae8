"""Aceso's measured operators, collectives and links, read from its tables.

Units are the tables': microseconds and MB of 2**20 bytes for operators, milliseconds for
collectives, GB/s for links. An operator of the model is a row of the table; those of a layer repeat.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from math import log2
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.floating[Any]]
MISSING = 1e6  # what Aceso takes for an entry that its tables lack
MISSING_COLLECTIVE_MS = 100_000.0
LAYER = 13  # operators of an encoder layer
DECODER = slice(16, 37)  # operators of a decoder layer
COLUMNS = (
    "forward_us",
    "backward_us",
    "input_mb",
    "output_mb",
    "weights_mb",
    "activations_mb",
    "reserved_forward_mb",
    "reserved_backward_mb",
)


class Variant(NamedTuple):
    """How an operator was measured: samples, tensor degree, algorithm."""

    samples: int
    tensor: int
    algorithm: int


class Operators(msgspec.Struct, frozen=True):
    """Measured columns of every operator of the model, in order."""

    forward_us: Reals
    backward_us: Reals
    input_mb: Reals
    output_mb: Reals
    weights_mb: Reals
    activations_mb: Reals
    reserved_forward_mb: Reals
    reserved_backward_mb: Reals


class Family(msgspec.Struct, frozen=True):
    """What Aceso's formulas distinguish by kind of model."""

    name: str
    reshards: bool  # whether moving between layouts is priced
    state_copies: int  # of the weights: copies, gradient and optimizer


GPT, T5 = Family("gpt", True, 8), Family("t5", False, 8)
RESNET = Family("resnet", True, 4)


class AcesoModel(msgspec.Struct, frozen=True):
    """A model's operators by variant, and the tables of its communication."""

    family: Family
    names: tuple[str, ...]
    variants: dict[Variant, Operators]
    collectives_ms: dict[tuple[str, int], dict[int, float]]  # by collective and GPUs; by MB
    inside_gb_s: tuple[float, ...]  # of a machine, by power of two of the message in MB
    between_gb_s: tuple[float, ...]

    def collective_ms(self, name: str, gpus: int, size_mb: float) -> float:
        table, size = self.collectives_ms.get((name, gpus), {}), round(size_mb)
        return table.get(size, table.get(size - 1, MISSING_COLLECTIVE_MS))

    def send_us(self, size_mb: float, between_machines: bool) -> float:
        """Microseconds to send a message. Sizes below 1 MB count from the end of the table."""
        if size_mb <= 0:
            return 0.0
        table = self.between_gb_s if between_machines else self.inside_gb_s
        power = int(log2(size_mb))
        row = min(power - (power >= 1), len(table) - 1)
        return size_mb / (0.001 * table[row])


class Setting(msgspec.Struct, frozen=True):
    """One row of `settings.json`."""

    setting: str
    profile: str
    layers: int
    machines: int
    gpus_per_machine: int
    global_batch: int
    micro_batches: tuple[int, ...]
    memory_limit_mb: float
    max_stages: int

    @property
    def gpus(self) -> int:
        return self.machines * self.gpus_per_machine


def read_settings(folder: Path) -> list[Setting]:
    return msgspec.json.decode((folder / "settings.json").read_bytes(), type=list[Setting])


def read_model(folder: Path, setting: Setting) -> AcesoModel:
    """The operators of a setting's model, layers repeated."""
    profiles = folder / "profiles"
    names, rows = _operators(profiles / f"{setting.profile}.csv")
    family = _family(names)
    order = _order(family, len(names), setting.layers)
    variants = {v: Operators(*(_filled(table, len(names))[order].T)) for v, table in rows.items()}
    links = list(_rows(profiles / "p2p.csv"))
    inside, between = (
        tuple(float(row[c]) for row in links) for c in ("intra_node_gb_s", "inter_node_gb_s")
    )
    collectives = _collectives(profiles / f"{setting.profile}_collectives.csv")
    return AcesoModel(
        family, tuple(names[i] for i in order), variants, collectives, inside, between
    )


def _operators(path: Path) -> tuple[list[str], dict[Variant, dict[str, list[float]]]]:
    """Names in the order of the smallest measurement, and rows by variant and name."""
    operators: dict[Variant, dict[str, list[float]]] = defaultdict(dict)
    for row in _rows(path):
        key = Variant(int(row["micro_batch"]), int(row["tp"]), int(row["algorithm"]))
        operators[key][row["op"]] = [float(row[c] or MISSING) for c in COLUMNS]
    names = list(operators[min(operators)])
    tables = {
        key: {n: rows.get(n, [MISSING] * len(COLUMNS)) for n in names}
        for key, rows in operators.items()
    }
    return names, tables


def _filled(table: dict[str, list[float]], count: int) -> Reals:
    return np.array(list(table.values())).reshape(count, len(COLUMNS))


def _family(names: list[str]) -> Family:
    if "decoder-embedding" in names:
        return T5
    return GPT if "encoder-embedding" in names else RESNET


def _order(family: Family, count: int, layers: int) -> list[int]:
    """Row of every operator of the model."""
    rows = list(range(count))
    if family is RESNET:
        return rows
    encoder = rows[1 : 1 + LAYER] * layers
    if family is GPT:
        return [0, *encoder, *rows[1 + LAYER :]]
    between = rows[1 + LAYER : DECODER.start]
    return [0, *encoder, *between, *rows[DECODER] * layers, *rows[DECODER.stop :]]


def _collectives(path: Path) -> dict[tuple[str, int], dict[int, float]]:
    collectives: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    for row in _rows(path):
        key = (row["collective"], int(row["gpus"]))
        collectives[key][int(float(row["size_mb"]))] = float(row["milliseconds"])
    return collectives


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="") as lines:
        yield from csv.DictReader(lines)
