"""Losses in terms of smaller operators, and rows written by sample, against torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from plait.ir.capture.replaced.adaptive import adaptive_softmax
from plait.ir.capture.values.known import KnownValues
from plait.ir.capture.values.losses import ctc_loss, multi_margin_loss
from plait.ir.capture.values.scattered import masked_scatter
from plait.ir.capture.values.selected import Selections


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ctc_of_padded_labels_and_of_selected_ones(reduction):
    x = torch.randn(9, 3, 5, dtype=torch.float64).log_softmax(-1)
    labels = torch.tensor([[1, -1, 2, 3], [4, 4, -1, -1], [-1, 2, -1, -1]])
    mask, frames = labels >= 0, torch.tensor([9, 8, 7])
    expected = F.ctc_loss(
        x, labels[mask], frames, mask.sum(1), reduction=reduction, zero_infinity=True
    )
    selections = Selections(KnownValues())
    rows = selections.select(labels, mask)
    options = {"reduction": reduction, "zero_infinity": True}
    found = ctc_loss(selections, (x, rows, frames, mask.sum(1)), options)
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_multi_margin(reduction):
    x, labels = torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 4, (6,))
    weight = torch.rand(4, dtype=torch.float64)
    options = {"p": 2, "margin": 0.5, "weight": weight, "reduction": reduction}
    expected = F.multi_margin_loss(x, labels, **options)
    assert torch.allclose(multi_margin_loss((x, labels), options), expected)


def test_adaptive_softmax_takes_all_rows_through_every_cluster():
    module = nn.AdaptiveLogSoftmaxWithLoss(8, 30, [6, 14], 2.0, head_bias=True).double()
    x, labels = torch.randn(40, 8, dtype=torch.float64), torch.randint(0, 30, (40,))
    output, loss = adaptive_softmax(type(module).forward, module, x, labels)
    expected = module(x, labels)
    assert torch.allclose(output, expected.output)
    assert torch.allclose(loss, expected.loss)


def test_rows_are_written_by_sample_and_their_number_is_checked():
    x, mask = torch.zeros(2, 4, 3), torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0]]).bool()
    source, wide = torch.randn(4, 3), mask[..., None].expand(2, 4, 3)
    assert torch.equal(masked_scatter(x, wide, source), x.masked_scatter(wide, source))
    assert torch.equal(masked_scatter(x, wide.clone(), source), x.masked_scatter(wide, source))
    uneven = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 0]]).bool()[..., None].expand(2, 4, 3)
    with pytest.raises(RuntimeError, match="every sample must have 2 places"):
        masked_scatter(x, uneven, source)
