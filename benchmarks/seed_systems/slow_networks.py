"""Figures of compressed training on the papers' networks, priced."""

from __future__ import annotations

from pathlib import Path

from plait.api.predict.predictor import Predictor
from plait.benchmarks.sdp4bit import MACHINES, cases, step_seconds


def sdp4bit_speedup(data: Path | None) -> float | None:
    """Times faster than Megatron-LM: the largest of the published cases, on the H800s."""
    path = data and data / "compression_tables.csv"
    if path is None or not path.is_file():
        return None
    (case,) = [c for c in cases(path) if c.machine == "H800" and c.model == "GPT-18B"]
    predictor, rate = Predictor(), MACHINES["H800"][4]
    plain, coded = (step_seconds(case, 1, c, predictor, rate) for c in ("none", "sdp4bit"))
    return plain / coded
