"""Every declaration is true: pieces along a loop, combined as declared, give the whole result."""

from math import prod

import msgspec
import pytest
import torch

from plait.ir.analysis.axes import analyse
from plait.ir.capture.execute import run_op
from plait.ir.model.loops import OPERATORS, Loop, LoopKind, Loops, Site
from plait.ir.ops.contiguous import contiguous_operands
from plait.tests.ir.ops.samples import OPAQUE, SAMPLES
from plait.tests.ir.ops.shards import Case, Sample, alone, case, options, split_over, summed


def _named(sample: Sample) -> str:
    return str(sample).replace(" ", "")


@pytest.mark.parametrize("sample", SAMPLES, ids=_named)
def test_shards_give_the_whole(sample: Sample) -> None:
    """Along every loop, along every pair of loops, and as terms of a sum."""
    whole = case(sample)
    assert whole.declared is not None, "opaque at this site"
    for loop in whole.declared.loops:
        if loop.kind == "whole" or loop.size == 1:
            continue
        divisors = [degree for degree in (2, 3) if loop.size % degree == 0]
        assert divisors, f"{loop} escapes the test; choose another size"
        for degree in divisors:
            for inner in (False, True):
                _check(whole, loop.name, degree, inner)
    if whole.declared.pairs:
        _check_pairs(whole)
    for group in whole.declared.linear:
        _same(summed(whole, group, seed=1), whole, f"linear in {group}")


def _check(declared: Case, loop: str, degree: int, inner: bool) -> None:
    for option, axes in options(declared, loop, degree, inner):
        made = split_over(declared, option, axes, degree)
        _same(made, declared, f"{loop} in {degree}{' inside' * inner}")


def _check_pairs(declared: Case) -> None:
    axes = analyse(alone(declared))
    paired = [o for o in axes.ops[0].options if o.partner is not None]
    assert paired
    for option in paired:
        _same(split_over(declared, option, axes, 2), declared, str(option.splits))


def _reads_memory_with_gaps(sample: Sample) -> None:
    found = case(sample)
    gapped = [torch.stack([t, torch.zeros_like(t)], -1)[..., 0] for t in found.tensors]
    results = run_op(found.op, gapped.__getitem__)
    _same([r.to_dense() if isinstance(r, torch.Tensor) else r for r in results], found, "gaps")


@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES if contiguous_operands(case(s).op)], ids=_named
)
def test_memory_has_gaps(sample: Sample) -> None:
    _reads_memory_with_gaps(sample)


@pytest.mark.long
def test_no_other_operator_misreads_gaps() -> None:
    for sample in SAMPLES:
        if "empty" not in sample.target:
            _reads_memory_with_gaps(sample)


@pytest.mark.parametrize("sample", OPAQUE, ids=_named)
def test_left_opaque(sample: Sample) -> None:
    assert case(sample).declared is None


def test_every_declaration_has_a_sample() -> None:
    assert sorted(OPERATORS.keys() - {sample.target for sample in SAMPLES}) == []


FALSE = [
    (Sample("aten.mm.default", (torch.randn(4, 6), torch.randn(6, 8))), "k", "mean"),
    (Sample("aten._softmax.default", (torch.randn(4, 6), 1, False)), "i1", "split"),
    (Sample("aten.amax.default", (torch.randn(4, 6), [1])), "i1", "split"),
    (Sample("aten.mean.dim", (torch.randn(4, 6), [1])), "i1", "split"),
    (Sample("aten.cumsum.default", (torch.randn(4, 6), 1)), "i1", "split"),
]


@pytest.mark.parametrize(("sample", "name", "kind"), FALSE, ids=str)
def test_a_false_declaration_is_found(
    sample: Sample, name: str, kind: LoopKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = OPERATORS[sample.target]

    def wrong(site: Site) -> Loops | None:
        true = declared(site)
        assert true is not None
        changed = [Loop(o.name, o.size, kind if o.name == name else o.kind) for o in true.loops]
        return msgspec.structs.replace(true, loops=tuple(changed))

    monkeypatch.setitem(OPERATORS, sample.target, wrong)
    with pytest.raises(AssertionError):
        _check(case(sample), name, 2, False)


WORK = [
    ("aten.mm.default", "gemm", 2 * 4 * 6 * 8),
    ("aten.bmm.default", "gemm", 2 * 2 * 4 * 6 * 8),
    ("aten.addmm.default", "gemm", 2 * 4 * 6 * 8),
    ("aten._grouped_mm.default", "gemm", 2 * 6 * 16 * 32),
    ("transformers.grouped_mm_fallback.default", "gemm", 2 * 6 * 4 * 8),
    ("transformers.grouped_mm_fallback_backward.default", "gemm", 4 * 6 * 4 * 8),
    ("plait.attention.default", "attention", 4 * 6 * 4 * 4 * (4 * 4)),
    ("plait.attention_backward.default", "attention", 10 * 6 * 4 * 4 * (4 * 4)),
    ("aten.convolution.default", "convolution", 2 * 4 * 8 * 6 * (3 * 3) * (3 * 3)),
    ("aten.convolution_backward.default", "convolution", 4 * 4 * 8 * 6 * (3 * 3) * (3 * 3)),
    ("aten.max_pool2d_with_indices.default", "reduce", 4 * 6 * 8 * 8),
    ("aten.embedding.default", "move", 0),
    ("aten.view.default", "view", 0),
    ("aten.cat.default", "move", 0),
]


@pytest.mark.parametrize(("target", "work", "flops"), WORK)
def test_work(target: str, work: str, flops: int) -> None:
    """Operations of the first sample of a target, counted by hand."""
    declared = case(next(s for s in SAMPLES if s.target == target)).declared
    assert declared is not None
    assert declared.work == work
    assert declared.flops * prod(loop.size for loop in declared.loops) == pytest.approx(flops)


def test_causal_attention_does_half_the_work() -> None:
    found = [case(s).declared for s in SAMPLES if s.target == "plait.attention.default"]
    dense, causal = found[0], found[2]
    assert dense is not None
    assert causal is not None
    assert causal.flops == dense.flops / 2


def _same(joined: list[torch.Tensor | None], found: Case, where: str) -> None:
    for got, expected in zip(joined, found.results, strict=True):
        if expected is None:
            continue
        exact = not expected.is_floating_point() and not expected.is_complex()
        tolerance = 1e-10 if expected.dtype in (torch.float64, torch.complex128) else 1e-5
        torch.testing.assert_close(
            got,
            expected,
            rtol=0 if exact else tolerance,
            atol=0 if exact else tolerance,
            equal_nan=True,
            msg=lambda text: f"{where}: {text}",
        )
