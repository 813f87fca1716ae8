"""Stage lists become as many kernels as they have runs, and messages as long as their bits say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.ir.compression.identity import uncompressed
from plait.ir.compression.kernel import CompressionKernel, MessageTransfer, ScoreVectors
from plait.ir.compression.lower import lower, simplify
from plait.ir.compression.message_format import MessageFormat
from plait.ir.compression.registry import PROGRAMS
from plait.ir.compression.stage import Hadamard, Quantize, Scale

SIZES = [(1, 4), (4, 1), (2, 2), (3, 2), (8, 16)]


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("sdp4bit.weights", 2),
        ("sdp4bit.gradients", 3),
        ("one-bit.gradients", 3),
        ("1-bit-adam.momentum", 5),
        ("trimmed-mean.gradients", 3),
        ("int8-activations.send", 2),
    ],
)
def test_runs_between_breaks_are_one_kernel_each(name, kernels):
    assert len(lower(PROGRAMS[name], 4, 2).kernels) == kernels


def test_a_level_of_one_rank_vanishes_with_its_codes():
    across = lower(PROGRAMS["sdp4bit.gradients"], 1, 4)
    inside = lower(PROGRAMS["sdp4bit.gradients"], 4, 1)
    assert [t.message_format.bits for t in across.transfers] == [4]
    assert [t.message_format.bits for t in inside.transfers] == [8]
    for pipeline in (across, inside):
        assert sum(isinstance(s, Hadamard) for k in pipeline.kernels for s in k.body) == 2


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_rank_alone_sends_and_codes_nothing(name):
    if PROGRAMS[name].collective != "send" and "krum" not in name and "zeno" not in name:
        pipeline = lower(PROGRAMS[name])
        assert pipeline.transfers == ()
        assert pipeline.sent_bytes(10**6) == 0
        assert not any(isinstance(s, Quantize) for k in pipeline.kernels for s in k.body)


def test_two_transforms_in_a_row_are_a_factor():
    assert simplify((Hadamard(32), Hadamard(32), Scale(1 / 32))) == ()
    assert simplify((Hadamard(32), Hadamard(16))) == (Hadamard(32), Hadamard(16))


def judge(pipeline):
    """Follows the messages: every step takes what the one before it left. Gives what is left."""
    messages, format = None, None
    for step in pipeline.steps:
        if isinstance(step, CompressionKernel):
            assert step.source == format
            assert messages is None or messages == step.ranks * step.chunks
            if not step.partial:
                messages, format = (step.chunks, step.target) if step.target else (None, None)
                flat = step.chunks
        elif isinstance(step, MessageTransfer):
            assert (step.count, step.message_format) == (messages, format)
            assert step.kind != "all_to_all" or step.count % step.size == 0
            messages = step.count * (step.size if step.kind == "all_gather" else 1)
        elif isinstance(step, ScoreVectors):
            assert messages is None
            assert flat == step.size
            flat = 1
    assert messages is None
    return flat


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_one_step_leaves_the_next_one_takes(name, sizes):
    ranks = sizes[0] * sizes[1]
    for program in (PROGRAMS[name], uncompressed(PROGRAMS[name])):
        pipeline = lower(program, *sizes)
        left = {"all_reduce": ranks, "reduce_scatter": 1, "all_gather": ranks, "send": 1}
        taken = {"all_reduce": ranks, "reduce_scatter": ranks, "all_gather": 1, "send": 1}
        assert judge(pipeline) == left[program.collective]
        assert pipeline.chunks == taken[program.collective]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_shapes_fit_together(name, sizes):
    for program in (PROGRAMS[name], uncompressed(PROGRAMS[name])):
        pipeline = lower(program, *sizes)
        for kernel in pipeline.kernels:
            assert pipeline.tile % kernel.tile == 0
            assert kernel.name.isidentifier()
            for format in (kernel.source, kernel.target):
                assert format is None or kernel.tile % format.tile == 0 or format.plain
        names = [kernel.name for kernel in pipeline.kernels]
        assert len(set(names)) == len(names)
        for elements in (1, 1000, 123_457):
            padded, unit = pipeline.padded(elements), pipeline.chunks * pipeline.tile
            assert padded >= elements
            assert padded % unit == 0


def test_kernels_of_other_sizes_have_other_names():
    names = [
        kernel.name
        for sizes in SIZES
        for total in (False, True)
        for kernel in lower(PROGRAMS["sdp4bit.gradients"], *sizes, total).kernels
    ]
    assert len(set(names)) == len(names)


def test_published_bits_per_element():
    """4 bits and a scale of 32 per 32, 128, 512 and 2048 elements."""
    bits = [8 * MessageFormat(4, group).bytes_per_element for group in (32, 128, 512, 2048)]
    assert bits == pytest.approx([5.0, 4.25, 4.0625, 4.015625])
    inner, outer = lower(PROGRAMS["sdp4bit.gradients"], 4, 8).transfers
    elements = 32 * 2**20
    chunk = elements // 32
    assert inner.sent_bytes(chunk) * 8 / elements == pytest.approx(8.25 * 3 / 4)
    assert outer.sent_bytes(chunk) * 8 / (elements / 4) == pytest.approx(4.25 * 7 / 8)


@given(
    bits=st.sampled_from([1, 2, 4, 8]),
    group=st.sampled_from([0, 16, 128, 2048]),
    tiles=st.integers(1, 20),
)
def test_messages_keep_their_alignment(bits, group, tiles):
    format = MessageFormat(bits, group)
    elements = tiles * format.tile
    assert format.codes_bytes(elements) * 8 == elements * bits
    assert format.bytes(elements) % 16 == 0
    assert format.bytes(elements) >= format.codes_bytes(elements) + 4 * format.scales(elements)


def test_states_say_what_becomes_of_them():
    found = {
        s.name: (s.chunks, s.on_reshard) for s in lower(PROGRAMS["1-bit-adam.momentum"], 4).states
    }
    assert found == {
        "momentum": (4, "kept"),
        "worker_error": (4, "reset"),
        "server_error": (1, "split"),
    }
    assert all(
        isinstance(k, CompressionKernel) for k in lower(PROGRAMS["one-bit.gradients"], 2).kernels
    )
