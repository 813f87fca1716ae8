"""Reductions that outlive ranks that send anything: another rule on the same exchange."""

from __future__ import annotations

from ..program import Algorithm, Program
from ..stage import AllGather, AllToAll, Cast, Rule, Score
from .parts import plain_all_reduce

SOURCES: dict[Rule, str] = {
    "trimmed_mean": "Byzantine-robust distributed learning, ICML 2018",
    "median": "Byzantine-robust distributed learning, ICML 2018",
    "phocas": "Phocas, arXiv 1805.09682",
}
COORDINATES = tuple(
    Algorithm(
        name.replace("_", "-"),
        source,
        (
            Program(
                f"{name.replace('_', '-')}.gradients",
                "gradients",
                "all_reduce",
                plain_all_reduce(name, drop=0 if name == "median" else 1),
            ),
        ),
    )
    for name, source in SOURCES.items()
)
KRUM = Algorithm(
    "krum",
    "Machine learning with adversaries, NeurIPS 2017",
    (
        Program(
            "krum.gradients",
            "gradients",
            "all_reduce",
            (Cast("fp32"), AllToAll(), Score("krum", 1), Cast("fp32"), AllGather()),
        ),
    ),
)
ZENO = Algorithm(
    "zeno",
    "Zeno, ICML 2019",
    (
        Program(
            "zeno.gradients",
            "gradients",
            "all_reduce",
            (Cast("fp32"), AllToAll(), Score("zeno", 1), Cast("fp32"), AllGather()),
        ),
    ),
)
ALGORITHMS = (*COORDINATES, KRUM, ZENO)
