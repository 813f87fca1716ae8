"""One declaration in one place: options, flops, formula, splits in time and the local form follow."""

import ast
import random
import re

import pytest
import torch
from torch import nn

from plait.cost_model.operators.operator_cost import model_flops
from plait.ir.analysis.axes import analyse
from plait.ir.analysis.bound_sharding import BoundSharding
from plait.ir.analysis.formula import flops_formula
from plait.ir.capture import trace
from plait.ir.lowering.cast import cast_model
from plait.ir.lowering.localize import localize
from plait.ir.model.layout import UnreachableLayout
from plait.ir.model.loops import OPERATORS, declaration, declare, loops, site_of
from plait.ir.model.mesh import MICRO, Axis, Mesh
from plait.ir.plan.sharding import Boundary
from plait.tests.ir.lowering.test_lockstep import MESHES, Whole
from plait.tests.paths import ROOT

ROOMS = (
    "ir",
    "cost_model",
    "planner",
    "codegen",
    "runtime",
    "api",
)  # `plait.api.python` is a module
TARGET = "plait_test.outer_sum.default"
# What local form, steps and codegen write themselves, views whose results are one list, and those that a
# placement refuses because they depend on strides.
# fmt: off
KNOWN = {
    "aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten.div.Scalar",
    "aten.split.Tensor", "aten.split_with_sizes.default", "aten.unbind.int", "aten.chunk.default",
    "aten.as_strided.default", "aten.as_strided_copy.default", "aten.add.Tensor",
    # what torch's own ParallelStyles wrap, and the loss that frameworks compute in float32
    "aten.t.default", "aten.transpose.int", "aten.permute.default", "aten.embedding.default",
    "plait.cross_entropy_backward.default",
}
# fmt: on


@pytest.fixture(scope="module")
def operator():
    """`outer_sum(x [m k], y [n k]) -> [m n]`: a product as somebody else's library would bring it."""
    library = torch.library.Library("plait_test", "DEF")
    library.define("outer_sum(Tensor x, Tensor y) -> Tensor")
    library.impl("outer_sum", lambda x, y: x @ y.t(), "CPU")
    torch.library.register_fake(
        "plait_test::outer_sum", lambda x, y: x.new_empty(len(x), len(y)), lib=library
    )
    torch.library.register_autograd(
        "plait_test::outer_sum",
        lambda ctx, g: (g @ ctx.saved_tensors[1], g.t() @ ctx.saved_tensors[0]),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
        lib=library,
    )
    yield torch.ops.plait_test.outer_sum
    library._destroy()


@pytest.fixture
def declared(monkeypatch):
    monkeypatch.setattr("plait.ir.model.loops.OPERATORS", dict(OPERATORS))

    @declare(TARGET)
    def outer_sum(site):
        return loops("[m k], [n k] -> [m n]", site, linear=((0,), (1,)), work="gemm", flops=2)


class Net(nn.Module):
    def __init__(self, product):
        super().__init__()
        self.product, self.weight = product, nn.Parameter(torch.randn(12, 16))

    def forward(self, x):
        return self.product(x.tanh(), self.weight).square().sum()


@pytest.fixture
def model(operator):
    return cast_model(trace(Net(operator), {"x": torch.randn(8, 16)}), "float64")


def place(model):
    """The function with the operator, the operator's number, and what is known of it."""
    for function in model.functions:
        for number, op in enumerate(function.ops):
            if op.target == TARGET:
                return function, number, analyse(function)
    raise AssertionError


def test_undeclared_it_is_whole_and_correct(model):
    function, number, axes = place(model)
    assert axes.ops[number].opaque
    check(function)


def test_options_flops_and_formula(model, declared):
    function, number, axes = place(model)
    known = axes.ops[number]
    assert {option.loop for option in known.options} == {"m", "k", "n", ""}
    assert model_flops(model) >= 2 * 8 * 16 * 12
    found = declaration(site_of(function.ops[number], function.types))
    assert str(flops_formula(found)) == "2*k*m*n"


def test_local_form(model, declared):
    check(place(model)[0])


def check(function):
    rng = random.Random(0)
    whole = Whole(function, torch.Generator().manual_seed(0))
    for trial in range(30):
        whole.check(MESHES[trial % len(MESHES)], rng)


@pytest.mark.parametrize(("loop", "legal"), [("m", True), ("k", False)])
def test_split_in_time(model, declared, loop, legal):
    """Rows may come one part after the other; a sum over parts is not there when it is squared."""
    function, number, axes = place(model)
    mesh = Mesh((Axis(MICRO, 2),))
    (activation,) = (i for i in function.inputs if i.kind == "activation")
    rows = axes.factor_ids[activation.value][0][0]
    split = next(o for o in axes.ops[number].options if o.loop == loop)

    def choice(position, known):
        if position == number:
            return (split,)
        along = [o for o in known.options if o.factor_id == rows]
        through = [o for o in known.options[1:] if not o.loop]
        return ((*along, *through, known.options[0])[0],)

    choices = tuple(choice(i, known) for i, known in enumerate(axes.ops))
    placement = ((0, 0),) if loop == "m" else ("R",)
    boundary = Boundary(
        tuple(placement if i is activation else ("R",) for i in function.inputs),
        tuple(None if i.gradient is None else ("P",) for i in function.inputs),
        tuple(("P",) for _ in function.outputs),
        tuple(None if o.tangent is None else ("R",) for o in function.outputs),
    )
    bound = BoundSharding(function, axes, mesh, choices, boundary)
    if legal:
        assert not any(op.target == "comm.all_reduce" for op in localize(bound).ops)
    else:
        with pytest.raises(UnreachableLayout):
            localize(bound)


def test_no_other_room_knows_operators_by_name():
    files = [*(ROOT / "ir").glob("*.py")]
    for room in ROOMS[1:]:
        files += (ROOT / room).rglob("*.py")
    texts = {
        node.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    targets = {t for t in texts if re.fullmatch(r"(aten|plait)\.\w+\.(\w+)", t)}
    assert {t for t in targets if t.split(".")[1] not in ROOMS} <= KNOWN


def test_every_operator_is_declared_in_one_place():
    with pytest.raises(AssertionError, match="twice"):
        declare("aten.mm.default")(OPERATORS["aten.mm.default"])
