"""Needed operators, last uses and shared memory, on a function of five operators."""

from plait.ir.analysis.liveness import (
    is_view,
    last_uses,
    needed_ops,
    produced_values,
    read_values,
    storage_roots,
)
from plait.ir.model.model import Op, Ref
from plait.ir.model.tensor import TensorType

TYPES = (TensorType((4, 4), "float32"),) * 7


def op(target: str, *operands: int, results: tuple[int, ...]) -> Op:
    return Op(target, tuple(map(Ref, operands)), {}, results)


OPS = (
    op("aten.mm.default", 0, 1, results=(2,)),
    op("aten.t.default", 2, results=(3,)),
    op("aten.t.default", 3, results=(4,)),
    op("aten.native_dropout.default", 2, results=(5, 6)),
    op("aten.mul.Tensor", 5, 4, results=(-1,)),
)


def test_needed_operators_lose_what_nothing_reads():
    assert needed_ops(OPS, {3}) == OPS[:2]
    dropout = op("aten.native_dropout.default", 2, results=(5, -1))
    assert needed_ops(OPS, {5}) == (OPS[0], dropout)
    assert needed_ops(OPS, {5}, known={2}) == (dropout,)
    assert needed_ops(OPS, {0}) == ()


def test_values_read_made_and_used_last():
    assert read_values(OPS) == {0, 1, 2, 3, 4, 5}
    assert produced_values(OPS) == {2, 3, 4, 5, 6}
    assert last_uses(OPS, {5}) == [(0, 1), (), (3,), (2, 6), (4,)]


def test_views_use_the_memory_of_their_base():
    views = [o for o in OPS if is_view(o, TYPES)]
    assert [o.target for o in views] == ["aten.t.default"] * 2
    assert storage_roots(len(TYPES), views) == [0, 1, 2, 2, 2, 5, 6]
    unread = op("aten.t.default", 3, results=(-1,))
    assert storage_roots(len(TYPES), [*views, unread]) == [0, 1, 2, 2, 2, 5, 6]
