"""Compiled kernels give the reference's codes, scales and states, bit for bit."""

import random
import shutil
from itertools import product

import pytest
import torch

from plait.codegen.compression.cpp import source
from plait.ir.compression.algorithms.building_blocks import DECODE
from plait.ir.compression.identity import uncompressed
from plait.ir.compression.lower import lower
from plait.ir.compression.program import CompressionProgram
from plait.ir.compression.registry import PROGRAMS
from plait.ir.compression.stage import (
    PER_TENSOR,
    AddState,
    AllToAll,
    Hadamard,
    Pack,
    Quantize,
    Reduce,
    Residual,
    Scale,
    Stat,
)
from plait.ir.compression.variants import with_reference
from plait.runtime.compression.backends.codec import Launch, target_for
from plait.runtime.compression.backends.native import (
    BuildError,
    NativeCodec,
    build,
    build_once,
    cache_directory,
)
from plait.runtime.compression.backends.reference import ELEMENTS, ReferenceCodec
from plait.tests.sampling import some

SIZES = ((4, 1), (2, 2))
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def random_program(number):
    """Any sizes of groups, blocks and codes, one level or two, any rule, fed back or not."""
    draw = random.Random(number)
    stages, levels = [], draw.choice([("all",), ("inner", "outer"), ("outer",)])
    block = draw.choice([0, 2, 16, 32])
    if block:
        stages.append(Hadamard(block))
    for level in levels:
        state = f"error_{level}"
        encode = random_codes(draw, max(block, 16))
        stages += draw.choice([list(encode), [AddState(state), *encode, Residual(state)]])
        rules = [Reduce("sum"), Reduce("mean")]
        if level == levels[0] and not block:
            rules += [Reduce("trimmed_mean"), Reduce("median"), Reduce("phocas")]
        stages += [AllToAll(level), *DECODE, draw.choice(rules)]
    if block:
        stages += [Hadamard(block), Scale(1 / block)]
    return CompressionProgram(
        f"random{number}", "gradients", "reduce_scatter", tuple(stages), "a test"
    )


def random_codes(draw, least):
    group = draw.choice([PER_TENSOR, *(g for g in (16, 32, 64, 512, 4096) if g >= least)])
    codes = draw.choice(["integer", "integer", "sign", "e4m3"])
    if codes == "sign":
        return Stat(draw.choice(["l1", "l2"]), group), Quantize(1, codes="sign"), Pack()
    if codes == "e4m3":
        return Stat("absmax", group), Quantize(8, codes="e4m3"), Pack()
    rounding = draw.choice(["nearest", "stochastic"])
    return Stat("absmax", group), Quantize(draw.choice([2, 4, 8]), rounding), Pack()


def pipelines(share):
    """Random programs and the registered ones; every `share`-th of them."""
    for number in range(0, 24, share):
        yield lower(random_program(number), 3, 2)
    yield lower(with_reference(PROGRAMS["sdp4bit.weights"], "bf16"), 4)
    yield lower(PROGRAMS["sdp4bit.gradients"], 4)
    for program, sizes in list(product(PROGRAMS.values(), SIZES))[::share]:
        yield lower(program, *sizes)
        yield lower(uncompressed(program), *sizes)


@pytest.fixture(scope="module", params=some([24, 1], 2), ids="share={}".format)
def share(request):
    return request.param


@pytest.fixture(scope="module")
def native(share, tmp_path_factory):
    """All kernels in one library."""
    directory = tmp_path_factory.mktemp("kernels") / "cache"
    return NativeCodec(build(source(*pipelines(share)), directory))


def flat(elements):
    """Numbers of very different sizes, with a stretch of zeros."""
    x = torch.randn(elements) * torch.exp(3 * torch.randn(elements))
    x[128:300] = 0
    return x


def messages(kernel, elements):
    """Random codes under random scales."""
    format, count = kernel.source, kernel.ranks * kernel.chunks
    packed = torch.zeros(count, format.bytes(elements), dtype=torch.uint8)
    codes = packed[:, : format.codes_bytes(elements)]
    if format.plain:
        numbers = torch.randn(count, elements).to(ELEMENTS[format.codes])
        codes.copy_(numbers.view(torch.uint8))
    else:
        codes.copy_(torch.randint(0, 256, codes.shape))
        codes &= 0x77 if format.codes == "e4m3" else 0xFF  # no NaN
        scales = torch.rand(count, format.scales(elements)).view(torch.uint8)
        packed[:, codes.shape[1] : codes.shape[1] + scales.shape[1]] = scales
    return packed.view(-1)


def test_every_kernel_equals_the_reference(native, share):
    torch.manual_seed(0)
    compared = 0
    for pipeline in pipelines(share):
        for kernel in pipeline.kernels:
            elements = 3 * pipeline.tile
            if kernel.source is None:
                data = flat(kernel.chunks * elements)
            else:
                data = messages(kernel, elements)
            states = {
                o.name: torch.randn(kernel.chunks * elements).to(ELEMENTS[o.element])
                for o in kernel.operands
            }
            results = []
            for codec in (ReferenceCodec(), native):
                target = target_for(kernel, elements)
                own = {name: state.clone() for name, state in states.items()}
                number = torch.tensor([0.37])
                codec.run(kernel, Launch(elements, data, target, own, number, 12345 | 7 << 32, 3))
                results.append([target, *own.values()])
            for expected, found in zip(*results, strict=True):
                assert torch.equal(expected, found), kernel
            compared += 1
    assert compared > 200 // share


def test_what_is_not_finite_stays_so(native):
    pipeline = lower(PROGRAMS["sdp4bit.gradients"], 4)
    encode, decode = pipeline.kernels
    elements = pipeline.tile
    for codec, bad in product((ReferenceCodec(), native), (float("nan"), float("inf"))):
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


def test_programs_share_a_users_libraries(tmp_path, monkeypatch):
    text, home = source(lower(PROGRAMS["int8-activations.send"])), tmp_path / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    first = build_once(text, tmp_path / "one")
    made = first.stat().st_mtime_ns
    assert build_once(text, tmp_path / "other") == first
    assert first.is_relative_to(home)
    assert first.stat().st_mtime_ns == made
    cache_directory().chmod(0o777)
    assert build_once(text, tmp_path / "other").parent == tmp_path / "other"


def test_a_directory_that_others_can_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(BuildError, match="not to be trusted"):
        build("", tmp_path)


def test_a_missing_compiler_is_explained(tmp_path):
    with pytest.raises(BuildError, match="reference codec"):
        build("", tmp_path, compiler="no-such-compiler")
    with pytest.raises(BuildError, match="error"):
        build("this is not C++", tmp_path)
