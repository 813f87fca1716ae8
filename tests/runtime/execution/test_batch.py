"""Only the global batch is taken, and a wrong one is refused with both sizes."""

import pytest
import torch

from plait.ir.errors import MismatchError
from plait.runtime.execution.batch import local_batch
from plait.tests.runtime import toy

TABLE = toy.table({"dp": 2, "zero3": 2}, 2)
CPU = torch.device("cpu")


def test_every_rank_gets_its_rows_of_every_micro_batch() -> None:
    """Two micro-batches of four rows, one for each of four ranks."""
    x = torch.arange(float(toy.ROWS * toy.WIDTH)).view(toy.ROWS, toy.WIDTH)
    for rank in range(4):
        (mine,) = local_batch({"x": x}, TABLE, rank, ("x",), CPU)
        assert torch.equal(mine, x[[rank, 4 + rank]].double())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.zeros(2, 6)}, r"\[2, 6\]; this is one rank's piece; .*\[8, 6\].*4 ranks"),
        ({"x": torch.zeros(9, 6)}, r"batch\['x'\] is \[9, 6\]; step takes the global batch"),
        ({"y": torch.zeros(8, 6)}, r"batch has batch\['y'\], .*; it takes batch\['x'\]"),
        ({}, "the batch has nothing"),
        ({"x": [1.0]}, "the batch has a list"),
        (torch.zeros(8, 6), "the batch has batch, which"),
        ({"x": torch.zeros(8, 6, dtype=torch.int64)}, "int64, the program takes float64"),
    ],
)
def test_a_wrong_batch_is_refused(batch, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        local_batch(batch, TABLE, 0, (), CPU)
