"""Optimizers see what they must see under every layout, and train what one process trains."""

from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from plait.ir.errors import UsageError
from plait.runtime.comm.process_group import Group
from plait.runtime.comm.watchdog import Watchdog
from plait.runtime.state.initialization import InitialValues
from plait.runtime.state.optimizer import OptimizerRequest, make
from plait.tests.ranks import launch
from plait.tests.runtime.comm.test_slicing import store_of
from plait.tests.runtime.state.recipes import ClippedAdamW, groups_by_dimension

WHOLE, SHARDS, COLUMNS = {"dp": 2}, {"zero1": 2}, {"tp": 2}
HERE = Path(__file__).parent


def module() -> torch.nn.Module:
    result = torch.nn.Module()
    result.w = torch.nn.Parameter(torch.randn(5, 4))
    return result


def made(factory, args, sizes, owner=None):
    """The optimizer of rank 0, its store and its module; no rank ever has to speak."""
    owner = owner or module()
    store = store_of(0, sizes, owner)
    store.groups.pool = SimpleNamespace(
        rank=0,
        group=lambda name, ranks: Group(
            name, next(r for r in ranks if 0 in r), Watchdog(0), None, Counter()
        ),
    )
    request = OptimizerRequest(factory, args)
    return make(request, InitialValues(owner), store, store.groups), store


@pytest.mark.parametrize("sizes", [WHOLE, SHARDS, COLUMNS])
@pytest.mark.parametrize("factory", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_elementwise_optimizers_step_on_what_the_rank_has(factory, sizes) -> None:
    local, store = made(factory, {"lr": 0.5}, sizes)
    (one,) = store.trainable()
    assert local.contract.demand == "elementwise"
    assert not local.whole.tensors
    before = one.leaf.detach().clone()
    one.leaf.grad = torch.ones_like(one.leaf)
    local.step()
    assert (one.leaf != before).all()
    level = one.flat.view(2, -1)[0] if sizes is SHARDS else one.flat
    assert torch.equal(level, one.leaf.detach().reshape(-1))  # the leaf is a view of the value


def test_whole_matrices_have_an_owner_where_ranks_have_shards() -> None:
    for factory in (torch.optim.Adafactor, partial(torch.optim.Muon, momentum=0.9)):
        local, _ = made(factory, {"lr": 0.1}, WHOLE)
        assert not local.whole.tensors
        local, _ = made(factory, {"lr": 0.1}, SHARDS)
        assert local.whole.tensors["w"].leaf.shape == (5, 4)


def test_what_couples_tensors_needs_all_of_them() -> None:
    two = module()
    two.v = torch.nn.Parameter(torch.randn(3))
    assert made(ClippedAdamW, {}, WHOLE, two)[0].contract.demand == "across tensors"
    assert not made(ClippedAdamW, {}, WHOLE, two)[0].whole.tensors
    with pytest.warns(match=r"ClippedAdamW looks at several .* every rank keeps"):
        local, _ = made(ClippedAdamW, {}, SHARDS, two)
    assert local.whole.tensors["w"].leaf.shape == (5, 4)


def test_groups_are_made_of_whole_tensors() -> None:
    local, store = made(groups_by_dimension, {}, SHARDS)
    decayed, others = local.optimizer.param_groups
    assert decayed["params"] == [store.parameters["w"].leaf]
    assert decayed["params"][0].ndim == 1
    assert others["params"] == []
    assert local.group_names == (("w",), ())


def test_lbfgs_is_refused_and_nothing_to_train_is_fine() -> None:
    for factory in (torch.optim.LBFGS, partial(torch.optim.LBFGS, lr=0.1)):
        with pytest.raises(UsageError, match="LBFGS evaluates the loss several times per step"):
            made(factory, {}, WHOLE)
    with pytest.raises(UsageError, match="gives a int"):
        made(lambda parameters: 3, {}, WHOLE)
    store = store_of(0, WHOLE, module())
    store.specs = {}
    assert make(OptimizerRequest(), InitialValues(module()), store, store.groups) is None


def test_code_that_knows_the_module_is_refused() -> None:
    owner = module()

    class ClipsModule(torch.optim.SGD):
        def step(self, closure=None):
            torch.nn.utils.clip_grad_norm_(owner.parameters(), 1.0)
            super().step(closure)

    def hooked(parameters):
        optimizer = torch.optim.SGD(parameters)
        owned = list(owner.parameters())
        optimizer.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_norm_(owned, 1.0))
        return optimizer

    for factory, says in ((ClipsModule, "step of ClipsModule .*'owner'"), (hooked, "'owned'")):
        with pytest.raises(UsageError, match=says):
            made(factory, {}, WHOLE, owner)


def test_only_the_program_steps_its_optimizer() -> None:
    local, _ = made(torch.optim.SGD, {"lr": 0.1}, WHOLE)
    with pytest.raises(UsageError, match=r"program\.optimizer_step"):
        local.optimizer.step()


def test_factories_see_the_modules_own_parameters_on_the_meta_device_too() -> None:
    owner = module().to("meta")

    def by_identity(parameters):
        assert [id(p) for p in parameters] == [id(p) for p in owner.parameters()]
        return torch.optim.SGD(parameters, lr=0.1)

    owner.reset_parameters = lambda: None
    store = store_of(0, WHOLE, module())
    request = OptimizerRequest(by_identity)
    local = make(request, InitialValues(owner), store, store.groups)
    assert local.optimizer.param_groups[0]["params"] == [store.parameters["w"].leaf]
    request = OptimizerRequest(torch.optim.Adagrad, {"initial_accumulator_value": 0.5})
    local = make(request, InitialValues(owner), store, store.groups)
    state = local.optimizer.state[store.parameters["w"].leaf]
    assert torch.equal(state["sum"], torch.full((5, 4), 0.5))


@pytest.mark.ranks
def test_users_recipes_train_as_in_one_process(tmp_path: Path) -> None:
    """dp, zero1, zero3, tp and pp against the eager module, a seventh of the recipes each."""
    target = [str(HERE / "optimizer_worker.py"), str(tmp_path), "some"]
    outputs = launch(4, target, timeout_seconds=300)
    assert [o.split()[-2:] for o in outputs] == [["done", str(rank)] for rank in range(4)]


@pytest.mark.ranks
@pytest.mark.long
def test_users_recipes_train_under_every_layout(tmp_path: Path) -> None:
    target = [str(HERE / "optimizer_worker.py"), str(tmp_path), "all"]
    outputs = launch(4, target, timeout_seconds=600)
    assert [o.split()[-2:] for o in outputs] == [["done", str(rank)] for rank in range(4)]
