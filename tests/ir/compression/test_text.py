"""Programs and pipelines read as what they do."""

import pytest

from plait.ir.compression.lower import lower
from plait.ir.compression.registry import PROGRAMS
from plait.ir.compression.text import print_pipeline, print_program

TWO_LEVELS = """\
sdp4bit.gradients: tiles of 128, 8 chunks
  kernel encode0_sdp4bit_gradients_4x2: flat, chunks by node -> 8 × 8-bit integer, groups of 128
    Hadamard(32)
    Stat(absmax, 128)
    Quantize(8, stochastic, integer)
    Pack()
  all_to_all over 4 (inner): 8 × 8-bit integer, groups of 128
  kernel reduce2_sdp4bit_gradients_4x2: 4 × 2 × 8-bit integer, groups of 128 -> 2 × 4-bit integer, \
groups of 128
    Unpack()
    Dequantize()
    Reduce(mean, 0)
    Stat(absmax, 128)
    Quantize(4, stochastic, integer)
    Pack()
  all_to_all over 2 (outer): 2 × 4-bit integer, groups of 128
  kernel decode4_sdp4bit_gradients_4x2: 2 × 1 × 4-bit integer, groups of 128 -> flat
    Unpack()
    Dequantize()
    Reduce(mean, 0)
    Hadamard(32)
    Scale(0.03125)"""

WEIGHTS = """\
sdp4bit.weights: all_gather of weights
  SubRef(replica, fp32)
  Stat(absmax, 2048)
  Quantize(4, nearest, integer)
  Pack()
  AllGather(all)
  Unpack()
  Dequantize()
  AddRef(replica, fp32)"""


def test_two_levels_of_gradients():
    assert print_pipeline(lower(PROGRAMS["sdp4bit.gradients"], 4, 2)) == TWO_LEVELS


def test_differences_of_weights():
    assert print_program(PROGRAMS["sdp4bit.weights"]) == WEIGHTS


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_stage_of_every_program_is_printed(name):
    program = PROGRAMS[name]
    assert print_program(program).count("\n") == len(program.stages)
    assert print_pipeline(lower(program, 4, 2)).count("kernel ") == len(
        lower(program, 4, 2).kernels
    )
