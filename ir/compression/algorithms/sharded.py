"""Compression of sharded data parallelism: gradients are reduce-scattered, weights gathered."""

from __future__ import annotations

from ..program import CompressionAlgorithm, CompressionProgram
from ..stage import AddRef, AllGather, AllToAll, Hadamard, Reduce, Scale, SubRef
from .building_blocks import DECODE, integers

SDP4BIT = CompressionAlgorithm(
    "sdp4bit",
    "SDP4Bit, NeurIPS 2024: qWD and TLq-HS",
    (
        CompressionProgram(
            "sdp4bit.weights",
            "weights",
            "all_gather",
            (SubRef("replica"), *integers(4, 2048), AllGather(), *DECODE, AddRef("replica")),
        ),
        CompressionProgram(
            "sdp4bit.gradients",
            "gradients",
            "reduce_scatter",
            (
                Hadamard(32),
                *integers(8, 128, "stochastic"),
                AllToAll("inner"),
                *DECODE,
                Reduce("mean"),
                *integers(4, 128, "stochastic"),
                AllToAll("outer"),
                *DECODE,
                Reduce("mean"),
                Hadamard(32),
                Scale(1 / 32),
            ),
        ),
    ),
    optimizer="Sharded",
)

ZEROPP = CompressionAlgorithm(
    "zero++",
    "ZeRO++, arXiv 2306.10209: qwZ and qgZ",
    (
        CompressionProgram(
            "zero++.weights",
            "weights",
            "all_gather",
            (*integers(8, 256), AllGather(), *DECODE),
            accepts_bias="as published: eight bits per block for the forward's copy only",
        ),
        CompressionProgram(
            "zero++.gradients",
            "gradients",
            "reduce_scatter",
            (
                *integers(4, 256),
                AllToAll("inner"),
                *DECODE,
                Reduce("mean"),
                *integers(4, 256),
                AllToAll("outer"),
                *DECODE,
                Reduce("mean"),
            ),
            accepts_bias="as published: rounding to nearest without error feedback",
        ),
    ),
    optimizer="Sharded",
)

ALGORITHMS = (SDP4BIT, ZEROPP)
