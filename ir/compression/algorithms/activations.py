"""Activations and their gradients between pipeline stages and over tensor-parallel ranks."""

from __future__ import annotations

from ..program import CompressionAlgorithm, CompressionProgram
from ..stage import CompressionStages, Pack, Quantize, SendRecv, Stat
from .building_blocks import DECODE, integers, two_phases

SOURCE = "Does compressing activations help model parallel training?, arXiv 2301.02654"
FP8: CompressionStages = (Stat("absmax", 128), Quantize(8, codes="e4m3"), Pack())


def activation_algorithm(name: str, encode: CompressionStages) -> CompressionAlgorithm:
    """Programs for pipeline sends and for tensor-parallel all-reduces, both with `encode`."""
    return CompressionAlgorithm(
        name,
        SOURCE,
        (
            CompressionProgram(
                f"{name}.send", "activations", "send", (*encode, SendRecv(), *DECODE)
            ),
            CompressionProgram(
                f"{name}.all_reduce", "activations", "all_reduce", two_phases(encode, encode, "sum")
            ),
        ),
        optimizer="",
    )


ALGORITHMS = (
    activation_algorithm("int8-activations", integers(8, 128)),
    activation_algorithm("fp8-activations", FP8),
)
