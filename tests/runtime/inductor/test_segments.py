"""Cutting generated functions at their collectives, and what runs in between."""

import ast

import pytest
import torch

from plait.runtime.inductor.kernels import Compiler
from plait.runtime.inductor.segments import with_segments

SOURCE = """
def forward(comm, x, w):
    v1 = aten.mm.default(x, w)
    v2, v3 = aten.split.Tensor(v1, 1)
    del v1
    v4 = comm.all_reduce(v2, "tp")
    del v2
    v5 = aten.add.Tensor(v4, v3)
    del v4, v3
    v5 = aten.clamp.default(v5, float("-inf"), 9.0)
    v6 = aten.mul.Tensor(v5, x)
    return (
        (v6,), (v5, x)
    )
"""
ATEN = torch.ops.aten


class Comm:
    def all_reduce(self, x, axis):
        return x * 3


def rewritten(compiled):
    function = ast.parse(SOURCE).body[0]
    assert isinstance(function, ast.FunctionDef)
    return with_segments(function, {"aten": ATEN}, compiled)


def plain():
    space = {"aten": ATEN}
    exec(SOURCE, space)
    return space["forward"]


def test_segments_lie_between_collectives_and_free_their_operands() -> None:
    names = []

    def compiled(name, function):
        def run(operands):
            values = list(operands)
            operands.clear()
            names.append((name, len(values)))
            return function(*values)

        return run

    x, w = torch.randn(2, 2), torch.randn(2, 2)
    (result,), saved = rewritten(compiled)(Comm(), x, w)
    (expected,), _ = plain()(Comm(), x, w)
    assert torch.equal(result, expected)
    assert saved[1] is x
    assert names == [("forward_segment_0", 2), ("forward_segment_3", 3)]


@pytest.mark.long
def test_compiled_segments_give_what_operators_give() -> None:
    compiler = Compiler()
    x, w = (torch.randn(2, 2, dtype=torch.float64) for _ in range(2))
    function = rewritten(compiler.segment)
    for _ in range(2):
        (result,), _ = function(Comm(), x, w)
        (expected,), _ = plain()(Comm(), x, w)
        torch.testing.assert_close(result, expected)
    again = rewritten(compiler.segment)  # of equal code: shares the kernels
    seconds = compiler.seconds
    again(Comm(), x, w)
    assert compiler.seconds == seconds
    transposed = function(Comm(), x.t(), w)[0][0]  # of other strides: another version
    torch.testing.assert_close(transposed, plain()(Comm(), x.t(), w)[0][0])
