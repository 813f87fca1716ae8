"""The operators of real models are declared, and the batch splits through their layers."""

import pytest

from plait.ir.analysis.axes import analyse
from plait.ir.model.loops import OPERATORS, declaration, site_of
from plait.ir.model.model import Function, Model
from plait.tests import zoo
from plait.tests.sampling import some

# Operators that mix the samples of a batch, by what they do.
# fmt: off
EXPERTS = {
    # experts sort the tokens of the whole batch by expert
    "aten.sort.default", "aten.histc.default", "aten.arange.default", "aten.index_put.default",
    "transformers.grouped_mm_fallback.default",
    "transformers.grouped_mm_fallback_backward.default",
}
# fmt: on
# fmt: off
MIXING = {
    **dict.fromkeys((make.__name__ for make in zoo.KINDS["mixture of experts"]), EXPERTS),
    # every picture is compared with every text
    "clip": {"aten.arange.default", "plait.cross_entropy.default",
             "plait.cross_entropy_backward.default"},
}
# fmt: on


@pytest.fixture(scope="module", params=some(sorted(zoo.ZOO), 6))
def named(request: pytest.FixtureRequest, traced) -> tuple[str, Model]:
    return request.param, traced(request.param)


def test_nothing_is_opaque(named: tuple[str, Model]) -> None:
    _, model = named
    targets = {op.target for function in model.functions for op in function.ops}
    assert sorted(targets - OPERATORS.keys()) == []
    for function in model.functions:
        axes = analyse(function)
        pairs = zip(function.ops, axes.ops, strict=True)
        assert [op.target for op, known in pairs if known.opaque] == []


def test_batch_splits(named: tuple[str, Model]) -> None:
    """Every operator that touches the batch axis of a layer may be split along it."""
    name, model = named
    for function in model.functions:
        if function.differentiable:
            assert _whole_along_batch(function, model.batch) <= MIXING.get(name, set())


def _whole_along_batch(function: Function, batch: int) -> set[str]:
    axes = analyse(function)
    first = next(i for i in function.activations() if i.name.startswith("x"))
    (atom,) = axes.factor_ids[first.value][0]
    assert axes.sizes[atom] == batch
    names = set()
    for op, known in zip(function.ops, axes.ops, strict=True):
        values = (*op.operands(), *(r for r in op.results if r >= 0))
        touched = any(atom in dim for value in values for dim in axes.factor_ids[value])
        if touched and all(option.factor_id != atom for option in known.options):
            names.add(op.target)
    return names


def test_products_split_along_every_loop(named: tuple[str, Model]) -> None:
    """Rows, columns and the sum: biases are added afterwards, to matrices and to convolutions."""
    _, model = named
    for function in model.functions:
        for op in function.ops:
            declared = declaration(site_of(op, function.types))
            assert declared is not None
            channels = [loop for loop in declared.loops if loop.name in ("n", "g", "co", "ci")]
            if op.target.startswith(("aten.mm.", "aten.bmm.", "aten.addmm.", "aten.baddbmm.")):
                assert {loop.kind for loop in declared.loops} == {"split"}
            elif declared.work == "convolution":
                assert {loop.kind for loop in channels} == {"split"}
