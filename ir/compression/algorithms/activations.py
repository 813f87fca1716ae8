"""Activations and their gradients between pipeline stages and over tensor-parallel ranks."""

from __future__ import annotations

from ..program import Algorithm, Program
from ..stage import Pack, Quantize, Send, Stages, Stat
from .parts import DECODE, integers, two_phases

SOURCE = "Does compressing activations help model parallel training?, arXiv 2301.02654"
FP8: Stages = (Stat("absmax", 128), Quantize(8, codes="e4m3"), Pack())


def both(name: str, encode: Stages) -> Algorithm:
    """To the next stage of a pipeline, and summed over tensor-parallel ranks."""
    return Algorithm(
        name,
        SOURCE,
        (
            Program(f"{name}.send", "activations", "send", (*encode, Send(), *DECODE)),
            Program(
                f"{name}.all_reduce", "activations", "all_reduce", two_phases(encode, encode, "sum")
            ),
        ),
        optimizer="",
    )


ALGORITHMS = (both("int8-activations", integers(8, 128)), both("fp8-activations", FP8))
