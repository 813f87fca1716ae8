"""Our operators against plain formulas, and random masks that know nothing of sharding."""

import pytest
import torch

from plait.ir.capture import call_key
from plait.ir.capture.operators.attention import OPS
from plait.ir.capture.operators.shard_offsets import full_index

KEY = torch.tensor([call_key(1, 2, 3), 0])


def formula(q, k, v, bias, causal, scale):
    heads = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(heads, 1), v.repeat_interleave(heads, 1)
    scores = q @ k.transpose(-1, -2) * scale
    if bias is not None:
        masked = bias.dtype == torch.bool
        scores = scores.masked_fill(~bias, -torch.inf) if masked else scores + bias
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:]).bool().tril(), -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def inputs(width=8):
    torch.manual_seed(0)
    shapes = ((2, 4, 6, 8), (2, 2, 7, 8), (2, 2, 7, width))
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


BIASES = {
    "none": None,
    "mask": torch.arange(84).reshape(2, 1, 6, 7) % 5 != 1,
    "added": torch.linspace(-1, 1, 168, dtype=torch.float64).reshape(1, 4, 6, 7),
    "row": torch.linspace(-1, 1, 14, dtype=torch.float64).reshape(2, 1, 1, 7),
}


@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", BIASES)
def test_attention_is_softmax_of_scores(bias: str, causal: bool, width: int) -> None:
    q, k, v = inputs(width)
    mask = BIASES[bias]
    sources = [q, k, v]
    if mask is not None and mask.is_floating_point():
        mask = mask.clone().requires_grad_()
        sources.append(mask)
    out, logsumexp = OPS.attention(q, k, v, mask, None, causal, 0.3, 0.0, 0, [], [], [])
    expected, scores = formula(q, k, v, mask, causal, 0.3)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(logsumexp, scores)
    upper = torch.randn_like(out)
    ours = torch.autograd.grad(out, sources, upper)
    theirs = torch.autograd.grad(expected, sources, upper)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_attention_with_dropout_has_the_gradient_of_its_own_mask() -> None:
    q, k, v = inputs()
    index = list(full_index((2, 4, 6, 7)))

    def run(q, k, v):
        return OPS.attention(q, k, v, None, KEY, True, 0.3, 0.4, 5, index, [], [])[0]

    assert torch.autograd.gradcheck(run, (q, k, v))


def test_a_row_that_attends_to_nothing_gives_zeros() -> None:
    q, k, v = inputs()
    mask = torch.ones(2, 1, 6, 7, dtype=torch.bool)
    mask[0, 0, 2] = False
    index = list(full_index((2, 4, 6, 7)))
    out, _ = OPS.attention(q, k, v, mask, KEY, False, 0.3, 1e-9, 0, index, [], [])
    assert out[0, :, 2].abs().max() == 0
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert bool(gradient.isfinite().all())


def test_a_shard_computes_its_part_of_the_mask() -> None:
    x = torch.randn(8, 6, 10, dtype=torch.float64)
    whole = OPS.dropout(x, KEY, 0.3, 1, list(full_index(x.shape)))
    assert 0.2 < (whole == 0).double().mean() < 0.4
    # rows 4.., columns 5.. of the last dimension
    part = OPS.dropout(x[4:, :, 5:], KEY, 0.3, 1, [4, 60, 4, 6, 10, 0, 5, 1, 5])
    assert torch.equal(part, whole[4:, :, 5:])
    # a micro-batch takes its first row from the key
    later = torch.tensor([KEY[0], 4])
    part = OPS.dropout(x[4:], later, 0.3, 1, [4, 60, -1, 6, 10, 0, 10, 1, 0])
    assert torch.equal(part, whole[4:])
    # an inner factor of a merged dimension: every second pair of columns
    split = x.reshape(8, 6, 5, 2)[:, :, :, 1:].reshape(8, 6, 5)
    part = OPS.dropout(split, KEY, 0.3, 1, [8, 60, 0, 6, 10, 0, 5, 2, 0, 1, 1, 1])
    assert torch.equal(part, whole.reshape(8, 6, 5, 2)[:, :, :, 1:].reshape(8, 6, 5))


def test_masks_differ_by_key_and_stream_only() -> None:
    x = torch.ones(1000)
    index = list(full_index(x.shape))
    other = torch.tensor([call_key(1, 2, 4), 0])
    masks = [OPS.dropout(x, k, 0.5, s, index) for k in (KEY, other) for s in (0, 1)]
    for i, one in enumerate(masks):
        assert torch.equal(one, masks[i])
        assert all(0.4 < (one == m).float().mean() < 0.6 for m in masks[:i])
    assert torch.equal(OPS.dropout(x, KEY, 1.0, 0, index), torch.zeros(1000))


def test_cross_entropy_and_its_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 2, -100, 8, 0])
    losses, _ = OPS.cross_entropy(logits, labels, -100, [])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses, expected)
    assert torch.autograd.gradcheck(lambda x: OPS.cross_entropy(x, labels, -100, [])[0], (logits,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_stays_near(dtype: torch.dtype) -> None:
    q, k, v = inputs()
    expected, _ = formula(q, k, v, None, True, 0.3)
    low = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    out, logsumexp = OPS.attention(*low, None, None, True, 0.3, 0.0, 0, [], [], [])
    assert (out.dtype, logsumexp.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out.double(), expected, atol=0.05, rtol=0.05)
    assert all(g.dtype == dtype for g in torch.autograd.grad(out.sum(), low))


def test_sums_of_batch_norm_have_the_type_of_its_statistics() -> None:
    x = torch.randn(4, 3, 2, dtype=torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        mean = x.float().mean((0, 2)).to(dtype)
        partial = OPS.batch_norm_sums(x, x, mean, mean)
        assert [OPS.square_deviation(x, mean).dtype, *(s.dtype for s in partial)] == [dtype] * 3
