"""Compiled dropout against the reference, bit by bit."""

import pytest
import torch

from plait.ir.capture.operators import blocked_attention, elementary
from plait.ir.capture.operators.shard_offsets import full_index
from plait.runtime.operators import native

KEY = torch.tensor([elementary.call_key(3, 1, 2), 5])
SHARDS = {
    "whole": (full_index((6, 5, 8)), 240),
    "rows from the key": ((6, 40, -1, 5, 8, 0, 8, 1, 0), 240),
    "part of the last": ((6, 60, 4, 5, 12, 0, 3, 1, 7), 90),
    "inner factor": ((6, 60, 2, 6, 10, 0, 5, 2, 0, 1, 1, 1), 180),
    "scalar": ((), 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", SHARDS)
def test_compiled_dropout_has_the_bits_of_the_reference(name: str, dtype: torch.dtype) -> None:
    index, elements = SHARDS[name]
    x = torch.randn(elements).to(dtype)
    assert native.library() is not None
    whole = torch.where(
        elementary.dropout_mask(KEY, 0.3, 7, list(index)), x * (1.0 / (1.0 - 0.3)), 0.0
    )
    out = torch.empty_like(x)
    columns = 10 if elements % 10 == 0 else 1
    rows = (slice(row, row + 1) for row in range(elements // columns))
    for part in rows:  # one by one, and from a row that is not the first
        native.dropout_rows(
            x.view(-1, columns)[part],
            out.view(-1, columns)[part],
            KEY,
            0.3,
            7,
            list(index),
            part.start * columns,
            columns,
        )
    assert torch.equal(out, whole)
    at_once, reference = torch.empty_like(x), torch.empty_like(x)
    for kernel, result in (
        (native.dropout_rows, at_once),
        (elementary.reference_dropout_rows, reference),
    ):
        views = x.view(-1, columns), result.view(-1, columns)
        kernel(*views, KEY, 0.3, 7, list(index), 0, columns)
    assert torch.equal(at_once, whole)
    assert torch.equal(reference, whole)


def test_attention_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 6, 4, dtype=torch.float64) for n in (4, 2, 2))
    bias = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    rest = (True, 0.5, 0.3, 7, list(full_index((2, 4, 6, 6))), [], [])

    def everything() -> list[torch.Tensor]:
        out, logsumexp = elementary.OPS.attention(q, k, v, bias, KEY, *rest)
        saved = (torch.ones_like(out), q, k, v, bias, KEY, out, logsumexp, *rest)
        return [out, logsumexp, *elementary.OPS.attention_backward_bias(*saved)]

    expected = everything()
    for elements in (12, 36, 72, 100):
        at_once = elementary.BlockElements(elements, elements)
        monkeypatch.setattr(blocked_attention, "SCORES", at_once)
        for one, other in zip(everything(), expected, strict=True):
            torch.testing.assert_close(one, other)
