"""Optimizers that send a compressed momentum, or the sign of one."""

from __future__ import annotations

from ..program import CompressionAlgorithm, CompressionProgram, ExchangeSchedule
from ..stage import PER_TENSOR, AllGather, AllToAll, Cast, MovingAverage, Reduce
from .building_blocks import DECODE, feedback_all_reduce, signs, two_phases, with_error_feedback

ONE_BIT = signs("l2", PER_TENSOR)
WORKER, SERVER = (
    with_error_feedback(ONE_BIT, "worker_error"),
    with_error_feedback(ONE_BIT, "server_error"),
)

ONE_BIT_ADAM = CompressionAlgorithm(
    "1-bit-adam",
    "1-bit Adam, ICML 2021",
    (
        CompressionProgram(
            "1-bit-adam.momentum",
            "momentum",
            "all_reduce",
            two_phases((MovingAverage("momentum", 0.9), *WORKER), SERVER),
        ),
    ),
    ExchangeSchedule(warmup=100),
    optimizer="OneBitAdam",
    vectors=1,
    settings=("warmup",),
)

ONE_BIT_LAMB = CompressionAlgorithm(
    "1-bit-lamb",
    "1-bit LAMB, HiPC 2022",
    (
        CompressionProgram(
            "1-bit-lamb.momentum", "momentum", "all_reduce", feedback_all_reduce(ONE_BIT)
        ),
    ),
    ExchangeSchedule(warmup=100),
    optimizer="OneBitLamb",
    vectors=4,
    needs_full_tensors=True,
    settings=("warmup",),
)

ZERO_ONE_ADAM = CompressionAlgorithm(
    "0/1-adam",
    "0/1 Adam, ICLR 2023",
    (
        CompressionProgram(
            "0/1-adam.gradients",
            "gradients",
            "all_reduce",
            feedback_all_reduce(ONE_BIT),
            when="warmup",
        ),
        CompressionProgram(
            "0/1-adam.updates",
            "momentum",
            "all_reduce",
            feedback_all_reduce(ONE_BIT),
            when="exchange",
        ),
    ),
    ExchangeSchedule(warmup=100, every=4),
    optimizer="ZeroOneAdam",
    vectors=4,
    settings=("warmup", "every", "doubles", "most"),
)

SIGN_MOMENTUM = CompressionAlgorithm(
    "sign-momentum",
    "Distributed sign momentum with local steps, arXiv 2411.17866",
    (
        CompressionProgram(
            "sign-momentum.displacement",
            "parameters",
            "reduce_scatter",
            (Cast("fp32"), AllToAll(), Reduce("mean")),
            when="exchange",
        ),
        CompressionProgram(
            "sign-momentum.signs",
            "weights",
            "all_gather",
            (*signs("l1", 512, zeros=True), AllGather(), *DECODE),
            accepts_bias="the update is a function of the signs, which the codes hold exactly",
            when="exchange",
        ),
    ),
    ExchangeSchedule(every=12),
    optimizer="SignMomentum",
    vectors=5,
    settings=("every", "zeros"),
)

ALGORITHMS = (ONE_BIT_ADAM, ONE_BIT_LAMB, ZERO_ONE_ADAM, SIGN_MOMENTUM)
