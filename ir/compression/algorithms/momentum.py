"""Optimizers that send a compressed momentum, or the sign of one."""

from __future__ import annotations

from ..program import Algorithm, Program, Schedule
from ..stage import WHOLE, AllGather, AllToAll, Blend, Cast, Reduce
from .parts import DECODE, fed_back, feedback_all_reduce, signs, two_phases

ONE_BIT = signs("l2", WHOLE)
WORKER, SERVER = fed_back(ONE_BIT, "worker_error"), fed_back(ONE_BIT, "server_error")

ONE_BIT_ADAM = Algorithm(
    "1-bit-adam",
    "1-bit Adam, ICML 2021",
    (
        Program(
            "1-bit-adam.momentum",
            "momentum",
            "all_reduce",
            two_phases((Blend("momentum", 0.9), *WORKER), SERVER),
        ),
    ),
    Schedule(warmup=100),
    optimizer="OneBitAdam",
    vectors=1,
)

ONE_BIT_LAMB = Algorithm(
    "1-bit-lamb",
    "1-bit LAMB, HiPC 2022",
    (Program("1-bit-lamb.momentum", "momentum", "all_reduce", feedback_all_reduce(ONE_BIT)),),
    Schedule(warmup=100),
    optimizer="OneBitLamb",
    vectors=4,
    whole=True,
)

ZERO_ONE_ADAM = Algorithm(
    "0/1-adam",
    "0/1 Adam, ICLR 2023",
    (
        Program(
            "0/1-adam.gradients",
            "gradients",
            "all_reduce",
            feedback_all_reduce(ONE_BIT),
            when="warmup",
        ),
        Program(
            "0/1-adam.updates",
            "momentum",
            "all_reduce",
            feedback_all_reduce(ONE_BIT),
            when="exchange",
        ),
    ),
    Schedule(warmup=100, every=4),
    optimizer="ZeroOneAdam",
    vectors=4,
)

SIGN_MOMENTUM = Algorithm(
    "sign-momentum",
    "Distributed sign momentum with local steps, arXiv 2411.17866",
    (
        Program(
            "sign-momentum.displacement",
            "parameters",
            "reduce_scatter",
            (Cast("fp32"), AllToAll(), Reduce("mean")),
            when="exchange",
        ),
        Program(
            "sign-momentum.signs",
            "weights",
            "all_gather",
            (*signs("l1", 512), AllGather(), *DECODE),
            accepts_bias="the update is a function of the signs, which one bit holds exactly",
            when="exchange",
        ),
    ),
    Schedule(every=12),
    optimizer="SignMomentum",
    vectors=5,
)

ALGORITHMS = (ONE_BIT_ADAM, ONE_BIT_LAMB, ZERO_ONE_ADAM, SIGN_MOMENTUM)
