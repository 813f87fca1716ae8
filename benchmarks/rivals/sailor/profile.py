"""Sailor's profile of a model and of a cloud, read from tables, in seconds, bytes and dollars.

Layers are measured in fp32; the tensor group's own communication is in their seconds. Links are
polynomials of the message size between two ends (zone, GPU, GPUs that take part).
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from math import log2
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

FLOAT_BYTES = 4
Reals = NDArray[np.floating[Any]]


class Measured(NamedTuple):
    """What a GPU, a micro-batch size and a tensor degree were measured together."""

    gpu: str
    micro_batch: int
    degree: int


class LayerSeconds(msgspec.Struct, frozen=True):
    """Seconds of every layer: forward and backward of a micro-batch, and its update."""

    busy: Reals
    update: Reals


class LayerSizes(msgspec.Struct, frozen=True):
    """Of every layer on one GPU of a tensor group: parameters, and floats of one sample."""

    parameters: Reals
    output_floats: Reals
    activation_floats: Reals


class End(NamedTuple):
    """One end of a link: GPUs of one kind in one zone."""

    zone: str
    gpu: str
    gpus: int


class Link(msgspec.Struct, frozen=True):
    """Bandwidth in GB/s: a polynomial of log2 of the message in MB."""

    c2: float
    c1: float
    c0: float

    def seconds(self, size_bytes: float) -> float:
        size = log2(size_bytes / 1e6)
        return size_bytes / 1e9 / (self.c2 * size * size + self.c1 * size + self.c0)


class Cloud(msgspec.Struct, frozen=True):
    """What can be rented: memory, machines and prices of GPUs, and of bytes between zones."""

    memory_bytes: dict[str, float]
    dollars_per_second: dict[str, float]
    gpus_per_machine: dict[str, int]
    dollars_per_byte: dict[tuple[str, str], float]
    links: dict[tuple[End, End], Link]


class SailorProfile(msgspec.Struct, frozen=True):
    """One model's measured layers, and how it is trained."""

    samples: int
    seconds: dict[Measured, LayerSeconds]
    sizes: dict[int, LayerSizes]  # by tensor degree

    @property
    def layers(self) -> int:
        return len(self.sizes[1].parameters)

    @property
    def sent_bytes(self) -> Reals:
        """Output of every layer, of one sample."""
        return FLOAT_BYTES * self.sizes[1].output_floats

    @property
    def weight_bytes(self) -> Reals:
        return FLOAT_BYTES * self.sizes[1].parameters


def read_cloud(folder: Path) -> Cloud:
    """The cloud of `cluster.json` and `network.csv`."""
    data = json.loads((folder / "cluster.json").read_text())
    return Cloud(
        {gpu: gib * 2**30 for gpu, gib in data["memory_gib"].items()},
        {gpu: usd / 3600 for gpu, usd in data["usd_per_gpu_hour"].items()},
        data["gpus_per_node"],
        {
            (a, b): usd / 1e9
            for a, row in data["usd_per_gigabyte"].items()
            for b, usd in row.items()
        },
        dict(_links(folder / "network.csv")),
    )


def _links(path: Path) -> Iterator[tuple[tuple[End, End], Link]]:
    for row in _rows(path):
        one = End(row["zone"], row["gpu"], int(row["gpus"]))
        other = End(row["to_zone"], row["to_gpu"], int(row["to_gpus"]))
        yield (one, other), Link(*(float(row[c]) for c in ("c2", "c1", "c0")))


def read_profiles(folder: Path) -> dict[str, SailorProfile]:
    """Profiles by model, of the models whose training `cluster.json` describes."""
    training: dict[str, Any] = json.loads((folder / "cluster.json").read_text())["training"]
    seconds, sizes = _seconds(folder / "profiles.csv"), _sizes(folder / "layers.csv")
    return {
        model: SailorProfile(settings["global_batch_size"], seconds[model], sizes[model])
        for model, settings in training.items()
    }


def _seconds(path: Path) -> dict[str, dict[Measured, LayerSeconds]]:
    rows: dict[tuple[str, Measured], list[tuple[int, float, float]]] = defaultdict(list)
    for row in _rows(path):
        key = Measured(row["gpu"], int(row["micro_batch"]), int(row["tp"]))
        busy = float(row["forward_s"]) + float(row["backward_s"])
        rows[row["model"], key].append((int(row["layer"]), busy, float(row["update_s"])))
    seconds: dict[str, dict[Measured, LayerSeconds]] = defaultdict(dict)
    for (model, key), layers in rows.items():
        _, busy, update = zip(*sorted(layers), strict=True)
        seconds[model][key] = LayerSeconds(np.array(busy), np.array(update))
    return seconds


def _sizes(path: Path) -> dict[str, dict[int, LayerSizes]]:
    rows: dict[tuple[str, int], list[tuple[float, ...]]] = defaultdict(list)
    columns = ("layer", "params", "output_floats", "activation_floats")
    for row in _rows(path):
        rows[row["model"], int(row["tp"])].append(tuple(float(row[c]) for c in columns))
    by_layer: dict[str, dict[int, LayerSizes]] = defaultdict(dict)
    for (model, degree), layers in rows.items():
        _, *sizes = np.array(sorted(layers)).T
        by_layer[model][degree] = LayerSizes(*sizes)
    return by_layer


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="") as lines:
        yield from csv.DictReader(lines)
