"""Compressed gradients for any optimizer: unbiased codes, or biased codes with error feedback."""

from __future__ import annotations

from ..program import CompressionAlgorithm, CompressionProgram, ExchangeSchedule
from ..stage import AllGather, AllToAll, Cast, CompressionStages, Reduce, Select
from .building_blocks import feedback_all_reduce, integers, plain_all_reduce, signs, two_phases

BYTEPS = "Compressed communication for large models (CLAN), arXiv 2105.07829"


def all_reduce(name: str, stages: CompressionStages) -> tuple[CompressionProgram, ...]:
    return (CompressionProgram(name, "gradients", "all_reduce", stages),)


DITHERED = integers(4, 128, "stochastic")
SIGNS = feedback_all_reduce(signs("l1", 128, zeros=True))
ONE_BIT = CompressionAlgorithm(
    "one-bit", BYTEPS, all_reduce("one-bit.gradients", SIGNS), settings=("zeros",)
)
CLAN = CompressionAlgorithm(
    "clan",
    BYTEPS,
    all_reduce("clan.gradients", SIGNS),
    optimizer="LANS",
    vectors=2,
    needs_full_tensors=True,
    settings=("zeros",),
)
DITHERING = CompressionAlgorithm(
    "dithering", BYTEPS, all_reduce("dithering.gradients", two_phases(DITHERED, DITHERED))
)
RANDOM_K = CompressionAlgorithm(
    "random-k",
    BYTEPS,
    all_reduce("random-k.gradients", (Select(32, "scattered", unbiased=True), *plain_all_reduce())),
    settings=("rate",),
)
RANDOM_K_FEEDBACK = CompressionAlgorithm(
    "random-k-feedback",
    BYTEPS,
    all_reduce(
        "random-k-feedback.gradients",
        (Select(32, "scattered", remainder="worker_error"), *plain_all_reduce()),
    ),
    settings=("rate",),
)
ERROR_FEEDBACK = CompressionAlgorithm(
    "error-feedback",
    "Communication-efficient distributed blockwise momentum SGD with error-feedback, NeurIPS 2019",
    all_reduce("error-feedback.gradients", feedback_all_reduce(integers(4, 128))),
)
EIGHT_BITS = CompressionAlgorithm(
    "eight-bits",
    "blockwise stochastic rounding in two phases",
    all_reduce(
        "eight-bits.gradients",
        two_phases(integers(8, 128, "stochastic"), integers(8, 128, "stochastic")),
    ),
)
STEP_AHEAD = CompressionAlgorithm(
    "step-ahead",
    "Step-ahead error feedback, AAAI 2021",
    all_reduce("step-ahead.gradients", SIGNS),
    optimizer="ShiftedSGD",
    vectors=2,
    settings=("zeros",),
)
DETACHED = CompressionAlgorithm(
    "detached",
    "Detached error feedback, arXiv 2004.05298",
    all_reduce("detached.gradients", (Select(32, remainder="worker_error"), *plain_all_reduce())),
    optimizer="ShiftedSGD",
    vectors=2,
    settings=("rate",),
)
CSER = CompressionAlgorithm(
    "cser",
    "CSER, NeurIPS 2020 with blockwise random sparsifiers",
    (
        CompressionProgram(
            "cser.updates",
            "gradients",
            "all_reduce",
            (Select(32), *plain_all_reduce()),
            accepts_bias="the rest is applied locally, and kept for cser.errors",
        ),
        CompressionProgram(
            "cser.errors",
            "parameters",
            "all_reduce",
            (Select(8), *plain_all_reduce()),
            accepts_bias="the rest stays in the error",
            when="exchange",
        ),
    ),
    ExchangeSchedule(every=8),
    optimizer="CSER",
    vectors=2,
    settings=("r1", "r2", "every"),
)
LOCAL_ADAALTER = CompressionAlgorithm(
    "local-adaalter",
    "Local AdaAlter, arXiv 1911.09030",
    (
        CompressionProgram(
            "local-adaalter.parameters",
            "parameters",
            "all_reduce",
            plain_all_reduce(),
            when="exchange",
            vectors=2,
        ),
    ),
    ExchangeSchedule(every=4),
    optimizer="LocalAdaAlter",
    vectors=2,
    settings=("every",),
)
HALF = CompressionAlgorithm(
    "bf16",
    "gradients rounded to bf16 on the wire, summed in fp32",
    all_reduce(
        "bf16.gradients", (Cast("bf16"), AllToAll(), Reduce("mean"), Cast("bf16"), AllGather())
    ),
)

# fmt: off
ALGORITHMS = (
    ONE_BIT, CLAN, DITHERING, RANDOM_K, RANDOM_K_FEEDBACK, ERROR_FEEDBACK, EIGHT_BITS, STEP_AHEAD,
    DETACHED, CSER, LOCAL_ADAALTER, HALF,
)
# fmt: on
