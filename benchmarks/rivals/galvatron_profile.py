"""Galvatron's profiles of a model and of a cluster, read from its JSON files, in SI units.

Source: the files that Hetu-Galvatron writes and ships (`computation_profiling_*`,
`memory_profiling_*`, `allreduce_bandwidth_*`, `p2p_bandwidth_*`, `sp_time_*`,
`overlap_coefficient.json`). Its times are in ms, sizes in MB of 2**20 bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

MIB = 2**20
MS = 1e-3


class LinearFit(msgspec.Struct, frozen=True):
    """A linear function fitted by least squares."""

    slope: float
    start: float

    def __call__(self, amount: float) -> float:
        return self.slope * amount + self.start


class MeasuredCollective(msgspec.Struct, frozen=True):
    """Seconds of a collective over a number of ranks: measured by bytes, else fitted."""

    measured: dict[int, float]
    fit: LinearFit  # of MiB

    def seconds(self, size_bytes: float) -> float:
        return self.measured.get(int(size_bytes), self.fit(size_bytes / MIB))


class PartMemory(msgspec.Struct, frozen=True):
    """Bytes by degree of splitting: states, and activations of a sample."""

    states: dict[int, float]
    activations: dict[int, float]


class GalvatronModel(msgspec.Struct, frozen=True):
    """A model of equal layers; seconds of a forward by samples, bytes by ranks."""

    layers: int
    hidden: int
    sequence: int
    layer_seconds: LinearFit
    ends_seconds: LinearFit  # embedding and head together
    layer_states_bytes: float  # parameter, gradient and optimizer of one layer, 16 per parameter
    activation_bytes: dict[int, float]  # of one sample, by ranks
    recomputed_bytes: float  # of one sample where a layer is recomputed
    ends: PartMemory  # embedding and head in one stage
    first: PartMemory
    last: PartMemory

    @property
    def hidden_bytes(self) -> int:
        """One sample between layers, in half precision."""
        return self.sequence * self.hidden * 2


class GalvatronCluster(msgspec.Struct, frozen=True):
    """Measured communication of a cluster."""

    devices: int
    ring_seconds_per_byte: dict[
        tuple[int, bool], float
    ]  # by ranks, and whether they are neighbours
    send_seconds_per_byte: dict[int, float]  # by stages
    all_gather: dict[int, MeasuredCollective]
    all_to_all: dict[int, MeasuredCollective]
    slowdown: float  # of computation and communication at the same time


def read_model(folder: Path, name: str, layers: int, hidden: int, sequence: int) -> GalvatronModel:
    """Read a model's profile; raises KeyError or FileNotFoundError where the folder lacks it."""
    times = _json(folder / f"computation_profiling_bf16_{name}_all.json")
    memory = _json(folder / f"memory_profiling_bf16_{name}_all.json")
    layer = memory["layertype_0_sp"][str(sequence)]
    activations = dict(layer["tp_activation_per_bsz_dict"])
    recomputed = activations.pop("checkpoint")

    def ends(where: str) -> PartMemory:
        matches = memory[f"other_memory_{where}_sp"][str(sequence)]
        return PartMemory(_bytes(matches["model_states"]), _bytes(matches["activation"]))

    return GalvatronModel(
        layers,
        hidden,
        sequence,
        _fit_of_batches(times, f"layertype_0_bsz(\\d+)_seq{sequence}"),
        _fit_of_batches(times, f"layertype_other_bsz(\\d+)_seq{sequence}"),
        4 * layer["parameter_size"] * MIB,
        _bytes(activations),
        recomputed * MIB,
        ends("pp_off"),
        ends("pp_on_first"),
        ends("pp_on_last"),
    )


def read_cluster(folder: Path, nodes: int, gpus_per_node: int) -> GalvatronCluster:
    """Read a cluster's profile; raises FileNotFoundError where the folder lacks it."""
    where = f"{nodes}nodes_{gpus_per_node}gpus_per_node"
    ring = _json(folder / f"allreduce_bandwidth_{where}.json")
    sends = _json(folder / f"p2p_bandwidth_{where}.json")
    (times,) = (_json(path) for path in sorted(folder.glob(f"sp_time_{where}*.json")))
    return GalvatronCluster(
        nodes * gpus_per_node,
        {
            (int(k[0]), k[1] == "1"): MS / MIB / bandwidth
            for k, bandwidth in _keys(r"allreduce_size_(\d+)_consec_(\d)", ring).items()
        },
        {
            int(k[0]): MS / MIB / bandwidth
            for k, bandwidth in _keys(r"pp_size_(\d+)", sends).items()
        },
        _collectives(times, "allreduce", 0.5),
        _collectives(times, "all2all", 1.0),
        _json(folder / "overlap_coefficient.json")["overlap_coe"],
    )


def _json(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def _keys(pattern: str, values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    matches = {re.fullmatch(pattern, key): value for key, value in values.items()}
    return {match.groups(): value for match, value in matches.items() if match}


def _bytes(by_ranks: Mapping[str, float]) -> dict[int, float]:
    return {int(ranks): size * MIB for ranks, size in by_ranks.items()}


def _fit(points: Mapping[int, float]) -> LinearFit:
    slope, start = np.polyfit(list(points), list(points.values()), 1)
    return LinearFit(float(slope), float(start))


def _fit_of_batches(times: Mapping[str, float], pattern: str) -> LinearFit:
    """Times are per sample; their product with the number of samples is about linear."""
    return _fit({int(k[0]): int(k[0]) * t * MS for k, t in _keys(pattern, times).items()})


def _collectives(
    times: Mapping[str, float], name: str, share: float
) -> dict[int, MeasuredCollective]:
    points: dict[int, dict[int, float]] = {}
    for (ranks, size), time in _keys(rf"{name}_size_(\d+)_(\d+)MB_time", times).items():
        points.setdefault(int(ranks), {})[int(size)] = time * share * MS
    return {
        ranks: MeasuredCollective({size * MIB: t for size, t in own.items()}, _fit(own))
        for ranks, own in points.items()
    }
