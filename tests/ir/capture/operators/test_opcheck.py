"""Every operator of ours keeps torch's rules: schema, shape function and strides, no hidden autograd."""

import pytest
import torch

from plait.ir.capture.operators.branch import BRANCH
from plait.ir.capture.operators.user_backward import TANGENT, USER_BACKWARD
from plait.ir.capture.resolve import resolve
from plait.tests.ir.ops.drawn import real
from plait.tests.ir.ops.samples import SAMPLES
from plait.tests.ir.ops.shards import Sample

ROWS = Sample(
    "plait.dropout_rows.default",
    (real(4, 6), real(4, 6), torch.tensor([3, 0]), 0.5, 1, (8, 6, 0, 6, 1, 0), 6, 6),
)
OURS = [sample for sample in SAMPLES if sample.target.startswith("plait.")] + [ROWS]
MARKERS = {TANGENT, USER_BACKWARD, BRANCH}  # of a recording; no program runs them


@pytest.mark.parametrize("sample", OURS, ids=lambda s: str(s).replace(" ", ""))
def test_operator_keeps_the_rules(sample: Sample) -> None:
    arguments = tuple(list(a) if isinstance(a, tuple) else a for a in sample.args)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(resolve(sample.target), arguments, test_utils=tests)


def reordered(sample: Sample, place: int) -> tuple[object, ...]:
    """The arguments, of which one lies in memory with its first dimension innermost."""
    arguments = [list(a) if isinstance(a, tuple) else a for a in sample.args]
    moved = arguments[place]
    assert isinstance(moved, torch.Tensor)
    arguments[place] = moved.movedim(0, -1).contiguous().movedim(-1, 0)
    return tuple(arguments)


ORDERS = [
    (sample, place)
    for sample in OURS
    for place, value in enumerate(sample.args)
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.is_floating_point()
]


@pytest.mark.long
@pytest.mark.parametrize(("sample", "place"), ORDERS, ids=lambda s: str(s).replace(" ", ""))
def test_strides_are_known_for_operands_of_other_orders(sample: Sample, place: int) -> None:
    arguments = reordered(sample, place)
    torch.library.opcheck(resolve(sample.target), arguments, test_utils=("test_faketensor",))


def test_every_operator_has_a_sample() -> None:
    names = torch._C._dispatch_get_all_op_names()
    ours = {f"{n.replace('::', '.')}.default" for n in names if n.startswith("plait::")}
    assert ours - MARKERS == {sample.target for sample in OURS}
