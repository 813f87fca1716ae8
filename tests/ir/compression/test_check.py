"""Programs that would lose what they must keep are refused, with the reason."""

import pytest

from plait.ir.compression.algorithms.building_blocks import (
    DECODE,
    integers,
    signs,
    with_error_feedback,
)
from plait.ir.compression.check import check, violations
from plait.ir.compression.lower import lower
from plait.ir.compression.program import CompressionProgram
from plait.ir.compression.registry import ALGORITHMS, PROGRAMS, algorithm, programs
from plait.ir.compression.stage import (
    AddRef,
    AllGather,
    AllToAll,
    Hadamard,
    Pack,
    Quantize,
    Reduce,
    Residual,
    Scale,
    Score,
    Select,
    Stat,
    SubRef,
)
from plait.ir.errors import UsageError

SUM = (AllToAll(), *DECODE, Reduce("sum"))
INT4 = integers(4, 128)


def gradients(*stages):
    return CompressionProgram("p", "gradients", "reduce_scatter", stages)


def weights(*stages):
    return CompressionProgram("p", "weights", "all_gather", stages)


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_shipped_is_legal(name):
    assert list(violations(PROGRAMS[name])) == []


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (gradients(*INT4, *SUM), "biased and its error is lost"),
        (gradients(*signs("l1", 128), *SUM), "biased and its error is lost"),
        (gradients(Select(8), *SUM[:1], Reduce()), "loses the rest"),
        (weights(*INT4, AllGather(), *DECODE), "small updates vanish"),
        (weights(SubRef("r"), *INT4, AllGather(), *DECODE), "they must be the same"),
        (gradients(Hadamard(32), *integers(4, 128, "stochastic"), *SUM), "equal pairs"),
        (
            gradients(Hadamard(32), *integers(4, 128, "stochastic"), *SUM, Hadamard(32)),
            "a Scale must divide",
        ),
        (
            gradients(
                Hadamard(256), *integers(4, 128, "stochastic"), *SUM, Hadamard(256), Scale(1 / 256)
            ),
            "no multiple of the Hadamard block",
        ),
        (
            gradients(Hadamard(32), AllToAll(), Reduce("median"), Hadamard(32), Scale(1 / 32)),
            "does not commute",
        ),
        (
            gradients(AllToAll("inner"), Reduce(), AllToAll("outer"), Reduce("trimmed_mean", 1)),
            "no longer be told apart",
        ),
        (gradients(AllToAll("inner"), Reduce(), AllToAll("outer"), Score("krum", 1)), "told apart"),
        (gradients(Stat("absmax", 96), Quantize(4, "stochastic"), Pack(), *SUM), "power of two"),
        (gradients(Stat("absmax", 8), Quantize(4, "stochastic"), Pack(), *SUM), "at least 16"),
        (gradients(Stat("l1", 128), Quantize(4, "stochastic"), Pack(), *SUM), "sign codes"),
        (gradients(Stat("absmax", 128), Quantize(3, "stochastic"), Pack(), *SUM), "bits"),
        (gradients(Quantize(4, "stochastic"), Pack(), *SUM), "right after Stat"),
        (gradients(Scale(2.0)), "no stage sends"),
        (gradients(Hadamard(2), *SUM[:1], Hadamard(2), Scale(0.5)), "must be reduced"),
        (gradients(AllToAll(), Hadamard(2), Reduce(), Hadamard(2), Scale(0.5)), "right after Deq"),
    ],
)
def test_laws(program, reason):
    with pytest.raises(UsageError, match=reason):
        check(program)


def test_each_way_out_is_legal():
    check(gradients(*with_error_feedback(INT4, "error"), *SUM))
    check(gradients(*integers(4, 128, "stochastic"), *SUM))
    check(weights(SubRef("r"), *INT4, AllGather(), *DECODE, AddRef("r")))
    check(gradients(Select(8, remainder="error"), AllToAll(), Reduce()))


def test_an_error_fed_back_into_another_state_is_lost():
    stages = with_error_feedback(INT4, "error")
    with pytest.raises(UsageError, match="its error is lost"):
        check(gradients(*stages[:-1], Residual("other"), *SUM))


def test_rules_that_drop_everybody_are_refused():
    with pytest.raises(UsageError, match="cannot drop"):
        lower(PROGRAMS["trimmed-mean.gradients"], 2)
    with pytest.raises(UsageError, match="cannot drop"):
        lower(PROGRAMS["krum.gradients"], 3)


def test_names_are_found_and_unknown_ones_explained():
    assert programs("sdp4bit") == ALGORITHMS["sdp4bit"].programs
    assert programs("sdp4bit.weights") == (PROGRAMS["sdp4bit.weights"],)
    with pytest.raises(UsageError, match="1-bit-adam"):
        algorithm("2-bit-adam")
