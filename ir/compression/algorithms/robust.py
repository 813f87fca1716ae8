"""Byzantine-robust reductions: another reduction rule in the same exchange."""

from __future__ import annotations

from ..program import CompressionAlgorithm, CompressionProgram
from ..stage import AllGather, AllToAll, Cast, ReductionRule, Score
from .building_blocks import plain_all_reduce

SOURCES: dict[ReductionRule, str] = {
    "trimmed_mean": "Byzantine-robust distributed learning, ICML 2018",
    "median": "Byzantine-robust distributed learning, ICML 2018",
    "phocas": "Phocas, arXiv 1805.09682",
}
COORDINATES = tuple(
    CompressionAlgorithm(
        name.replace("_", "-"),
        source,
        (
            CompressionProgram(
                f"{name.replace('_', '-')}.gradients",
                "gradients",
                "all_reduce",
                plain_all_reduce(name, drop=0 if name == "median" else 1),
            ),
        ),
        settings=() if name == "median" else ("drop",),
    )
    for name, source in SOURCES.items()
)
KRUM = CompressionAlgorithm(
    "krum",
    "Machine learning with adversaries, NeurIPS 2017",
    (
        CompressionProgram(
            "krum.gradients",
            "gradients",
            "all_reduce",
            (Cast("fp32"), AllToAll(), Score("krum", 1), Cast("fp32"), AllGather()),
        ),
    ),
    settings=("drop",),
)
ZENO = CompressionAlgorithm(
    "zeno",
    "Zeno, ICML 2019",
    (
        CompressionProgram(
            "zeno.gradients",
            "gradients",
            "all_reduce",
            (Cast("fp32"), AllToAll(), Score("zeno", 1), Cast("fp32"), AllGather()),
        ),
    ),
    settings=("drop",),
)
ALGORITHMS = (*COORDINATES, KRUM, ZENO)
