"""Compiled kernels give the reference's codes, scales and states, bit for bit."""

import shutil
from itertools import product

import pytest
import torch

from plait.codegen.compression.cpp import source
from plait.ir.compression.identity import uncompressed
from plait.ir.compression.lower import lower
from plait.ir.compression.registry import PROGRAMS
from plait.runtime.compression.codec import Launch, target_for
from plait.runtime.compression.native import BuildError, Native, build
from plait.runtime.compression.reference import ELEMENTS, Reference

SIZES = ((4, 1), (2, 2))
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def pipelines():
    for program, sizes in product(PROGRAMS.values(), SIZES):
        yield lower(program, *sizes)
        yield lower(uncompressed(program), *sizes)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """All kernels in one library."""
    directory = tmp_path_factory.mktemp("kernels") / "cache"
    return Native(build(source(*pipelines()), directory))


def flat(elements):
    """Numbers of very different sizes, with a stretch of zeros."""
    x = torch.randn(elements) * torch.exp(3 * torch.randn(elements))
    x[128:300] = 0
    return x


def messages(kernel, elements):
    """Random codes under random scales."""
    wire, count = kernel.source, kernel.ranks * kernel.chunks
    found = torch.zeros(count, wire.bytes(elements), dtype=torch.uint8)
    codes = found[:, : wire.codes_bytes(elements)]
    if wire.plain:
        numbers = torch.randn(count, elements).to(ELEMENTS[wire.codes])
        codes.copy_(numbers.view(torch.uint8))
    else:
        codes.copy_(torch.randint(0, 256, codes.shape))
        codes &= 0x77 if wire.codes == "e4m3" else 0xFF  # no NaN
        scales = torch.rand(count, wire.scales(elements)).view(torch.uint8)
        found[:, codes.shape[1] : codes.shape[1] + scales.shape[1]] = scales
    return found.view(-1)


def test_every_kernel_equals_the_reference(native):
    torch.manual_seed(0)
    compared = 0
    for pipeline in pipelines():
        for kernel in pipeline.kernels:
            elements = 3 * pipeline.tile
            if kernel.source is None:
                data = flat(kernel.chunks * elements)
            else:
                data = messages(kernel, elements)
            states = {o.name: torch.randn(kernel.chunks * elements) for o in kernel.operands}
            results = []
            for codec in (Reference(), native):
                target = target_for(kernel, elements)
                own = {name: state.clone() for name, state in states.items()}
                number = torch.tensor([0.37])
                codec.run(kernel, Launch(elements, data, target, own, number, 12345 | 7 << 32, 3))
                results.append([target, *own.values()])
            for expected, found in zip(*results, strict=True):
                assert torch.equal(expected, found), kernel
            compared += 1
    assert compared > 150


def test_what_is_not_finite_stays_so(native):
    pipeline = lower(PROGRAMS["sdp4bit.gradients"], 4)
    encode, decode = pipeline.kernels
    elements = pipeline.tile
    for codec, bad in product((Reference(), native), (float("nan"), float("inf"))):
        x = torch.randn(encode.chunks * elements)
        x[5] = bad
        sent = target_for(encode, elements)
        codec.run(encode, Launch(elements, x, sent, {}))
        back = target_for(decode, elements)
        codec.run(decode, Launch(elements, sent, back, {}))
        assert not torch.isfinite(back).all()


def test_a_library_is_built_once_and_again_when_it_was_harmed(tmp_path):
    text = source(lower(PROGRAMS["int8-activations.send"]))
    first = build(text, tmp_path / "cache")
    made = first.stat().st_mtime_ns
    assert build(text, tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == made
    first.write_bytes(b"harmed")
    assert build(text, tmp_path / "cache") == first
    assert first.stat().st_size > 1000
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_can_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(BuildError, match="not to be trusted"):
        build("", tmp_path)


def test_a_missing_compiler_is_explained(tmp_path):
    with pytest.raises(BuildError, match="reference codec"):
        build("", tmp_path, compiler="no-such-compiler")
    with pytest.raises(BuildError, match="error"):
        build("this is not C++", tmp_path)
