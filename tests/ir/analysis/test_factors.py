"""Common refinements against the definition: every product of outer factors of both is one of it."""

from itertools import accumulate
from operator import mul

import pytest

from plait.ir.analysis.axes import analyse
from plait.ir.analysis.factors import common_refinement, refined_index
from plait.ir.model.model import Function, Input, Op, Output, Ref
from plait.ir.model.tensor import TensorType

CASES = (
    ((4, 6), (2, 12), (2, 2, 6)),
    ((24,), (2, 3, 4), (2, 3, 4)),
    ((2, 6), (4, 3), (2, 2, 3)),
    ((6, 4), (4, 6), None),
    ((2,), (4,), None),
    ((), (), ()),
    ((0,), (0,), (0,)),
    ((1, 4), (4,), (4,)),
)


@pytest.mark.parametrize(("one", "other", "expected"), CASES)
def test_common_refinements(one, other, expected):
    assert common_refinement(one, other) == common_refinement(other, one) == expected
    if expected is not None and one != other:
        ends = set(accumulate(expected, mul)) | {1}
        assert ends == {1, *accumulate(one, mul), *accumulate(other, mul)}


def test_a_factor_is_found_where_it_begins():
    assert [refined_index((4, 6), (2, 2, 6), i) for i in (0, 1)] == [0, 2]
    assert refined_index((4, 6), (8, 3), 1) is None
    assert refined_index((4, 6), (24,), 0) == 0
    assert refined_index((4,), (4,), 0) == 0


def test_a_dim_with_two_factorisations_is_split_outside_of_where_they_differ() -> None:
    """Rows are 8 samples of 4 · 3 and of 6 · 2 tokens: samples are split, tokens are not."""
    shapes = ((8, 4, 3), (8, 6, 2), (96,), (96,), (96,))
    inputs = tuple(Input(v, "activation", "", None) for v in (0, 1))
    views = tuple(Op("aten.view.default", (Ref(v), (96,)), {}, (v + 2,)) for v in (0, 1))
    rows = Op("aten.add.Tensor", (Ref(2), Ref(3)), {}, (4,))
    types = tuple(TensorType(shape, "float32") for shape in shapes)
    function = Function("rows", types, inputs, (Output(4),), (*views, rows), 3)
    sizes = [option.size for option in analyse(function).ops[-1].options if option.loop]
    assert sizes == [8]
