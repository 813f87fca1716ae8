"""Figures of training with ranks that lie."""

from __future__ import annotations

from pathlib import Path

from plait.benchmarks.byzantine import ATTACKS, new_sample_loss

MORE = 1.1  # held-out loss against that of honest training


def outlived(_: Path | None) -> float:
    """Attacks under which Zeno trains nearly as without them."""
    honest = new_sample_loss("zeno", "")
    return sum(new_sample_loss("zeno", attack) < MORE * honest for attack in ATTACKS)
