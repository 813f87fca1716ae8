"""Element-wise optimizers work on pieces; others are refused where there are any, and told why."""

from functools import partial

import pytest
import torch

from plait.ir.errors import UsageError
from plait.runtime.state.optimizer import make
from plait.tests.runtime.comm.test_slicing import store_of

WHOLE, PIECES, COLUMNS = {"dp": 2}, {"zero1": 2}, {"tp": 2}


def kept(sizes: dict[str, int]):
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.randn(5, 4))
    return store_of(0, sizes, module).trainable()


@pytest.mark.parametrize("sizes", [WHOLE, PIECES, COLUMNS])
@pytest.mark.parametrize("factory", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_elementwise_optimizers_step_on_what_the_rank_has(factory, sizes) -> None:
    (one,) = kept(sizes)
    optimizer = make(factory, {"lr": 0.5}, [one])
    before = one.leaf.detach().clone()
    one.leaf.grad = torch.ones_like(one.leaf)
    optimizer.step()
    assert (one.leaf != before).all()
    level = one.flat.view(2, -1)[0] if sizes is PIECES else one.flat
    assert torch.equal(level, one.leaf.detach().reshape(-1))  # the leaf is a view of the value


@pytest.mark.parametrize(
    "factory", [torch.optim.Adafactor, torch.optim.Muon, partial(torch.optim.Muon, momentum=0.9)]
)
def test_whole_matrix_optimizers_need_whole_matrices(factory) -> None:
    assert make(factory, {"lr": 0.1}, kept(WHOLE)) is not None
    for sizes in (PIECES, COLUMNS):
        with pytest.raises(UsageError, match=r"(Adafactor factors|Muon ortho).*sharded here \(w "):
            make(factory, {"lr": 0.1}, kept(sizes))


def test_lbfgs_is_refused_and_nothing_to_train_is_fine() -> None:
    with pytest.raises(UsageError, match="several times per step"):
        make(torch.optim.LBFGS, {}, kept(WHOLE))
    assert make(torch.optim.AdamW, {}, []) is None
