"""Random models and functions for hypothesis: any names, arguments and types that the IR can hold."""

from hypothesis import strategies as st
from msgspec.structs import replace

from plait.ir.model.mesh import Axis, Mesh
from plait.ir.model.model import (
    BatchConstant,
    Call,
    Function,
    GraphHalves,
    Input,
    Model,
    ModelInput,
    Op,
    Output,
    Parameter,
    Ref,
)
from plait.ir.model.tensor import ITEM_BYTES, TensorType
from plait.ir.plan.sharding import Boundary, LoopFactor, OpSplit, Sharding
from plait.ir.plan.strategy import ROLES, Strategy, parse_strategy

names = st.sampled_from(
    [
        "x",
        "h0",
        "a.b.0",
        "output",
        "loss",
        "with",
        "none",
        "_",
        "backward",
        "f32",
        "",
        "%3",
        '"',
        "a b",
    ]
) | st.text(max_size=6)
types = st.builds(
    TensorType,
    st.lists(st.integers(0, 99), max_size=3).map(tuple),
    st.sampled_from([*ITEM_BYTES, "f32"]),
)
literals = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False)
    | st.sampled_from(["dtype:float32", "float:-inf", "tp", "a=b", "memory_format:channels_last"])
    | names
)


def arguments(count):
    """Arguments that may use the values below `count`."""
    leaves = literals | st.integers(0, count - 1).map(Ref) if count else literals
    return st.recursive(leaves, lambda parts: st.lists(parts, max_size=3).map(tuple), max_leaves=5)


def operators(results, count):
    return st.builds(
        Op,
        st.sampled_from(["aten.mm.default", "comm.all_reduce", "output", "backward", "parameter"])
        | names,
        st.lists(arguments(count), max_size=4).map(tuple),
        st.dictionaries(names, arguments(count), max_size=2),
        st.just(results),
        names,
    )


@st.composite
def functions(draw, function_names=names):
    """A function whose values are numbered in any order; some may be defined by nothing."""
    number_of_inputs, number_of_outputs = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    number_of_results = draw(st.lists(st.integers(0, 2), max_size=5))
    count = number_of_inputs + number_of_outputs + sum(number_of_results) + draw(st.integers(0, 2))
    order = iter(draw(st.permutations(range(count))))
    some_value = st.integers(0, max(count - 1, 0)) if count else st.just(0)
    inputs = tuple(
        Input(
            next(order),
            draw(st.sampled_from(["parameter", "buffer", "activation", "key"])),
            draw(names),
            draw(st.none() | some_value),
        )
        for _ in range(number_of_inputs)
    )
    outputs = tuple(
        Output(draw(some_value), draw(st.sampled_from([None, next(order)])))
        for _ in range(number_of_outputs)
    )
    ops = [
        draw(operators(tuple(draw(st.sampled_from([-1, next(order)])) for _ in range(n)), count))
        for n in number_of_results
    ]
    value_types = tuple(draw(types) for _ in range(count))
    forward = draw(st.integers(0, len(ops)))
    return Function(draw(function_names), value_types, inputs, outputs, tuple(ops), forward)


@st.composite
def halves(draw):
    """A function's types, and operators of it in two lists."""
    function = draw(functions())
    split = draw(st.integers(0, len(function.ops)))
    saved = draw(st.lists(st.integers(0, 50), max_size=3).map(tuple))
    return GraphHalves(function.ops[:split], function.ops[split:], saved), function.types


tuples_of_names = st.lists(names, max_size=3).map(tuple)
calls = st.builds(
    Call,
    st.sampled_from(["f", "g"]) | names,
    names,
    tuples_of_names,
    tuples_of_names,
    tuples_of_names,
    st.lists(st.tuples(names, names), max_size=2).map(tuple),
)
parameters = st.builds(
    Parameter,
    names,
    types,
    st.sampled_from(["parameter", "buffer", "constant"]),
    st.booleans(),
    tuples_of_names,
    st.none() | st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
)
model_inputs = st.builds(
    ModelInput,
    names,
    types,
    st.lists(names | st.integers(0, 9), max_size=2).map(tuple),
    st.booleans(),
)
constants = st.builds(
    BatchConstant,
    st.lists(names | st.integers(0, 3), min_size=1, max_size=2).map(tuple),
    st.sampled_from(["8", "True", "'mean'", '"a\\n"', "1.5", ""]),
)
plain_models = st.builds(
    Model,
    names,
    st.lists(functions(st.sampled_from(["f", "g"]) | names), max_size=3).map(tuple),
    st.lists(calls, max_size=4).map(tuple),
    st.lists(parameters, max_size=3).map(tuple),
    st.lists(model_inputs, max_size=3).map(tuple),
    names,
    st.integers(1, 64),
    st.lists(constants, max_size=2).map(tuple),
    st.lists(names, max_size=2).map(tuple),
)
models = plain_models | st.builds(
    lambda model, half: replace(model, half=half), plain_models, plain_models
)


loops = st.sampled_from(["m", "n", "d0", "split", "partial", "replicate", "over", "on"])
splits = (
    st.just(OpSplit())
    | st.lists(st.builds(LoopFactor, loops, st.integers(0, 3)), min_size=1, max_size=2)
    .map(tuple)
    .map(OpSplit)
    | st.lists(st.integers(0, 9), max_size=2).map(lambda numbers: OpSplit(partial=tuple(numbers)))
    | st.integers(0, 99).map(lambda number: OpSplit(position=number))
)
placements = st.sampled_from(["R", "P"]) | st.tuples(st.integers(0, 12), st.integers(0, 12))
strategies = st.sampled_from(
    [parse_strategy(t) for t in ("dp=2,tp=2", "zero3=8@3/4,sp", "pp=2")]
) | st.builds(
    Strategy,
    st.lists(st.tuples(st.sampled_from([*ROLES, "odd role"]), st.integers(1, 9)), max_size=2).map(
        tuple
    ),
)


@st.composite
def shardings(draw):
    """A sharding with a few operators and values over a mesh of any axes."""
    axis_names = draw(st.lists(names, max_size=3, unique=True))
    mesh = Mesh(tuple(Axis(name, draw(st.integers(1, 9))) for name in axis_names))

    def per_axis(of):
        return st.tuples(*(of for _ in axis_names))

    def several(of, count):
        return tuple(draw(of) for _ in range(count))

    layout = per_axis(placements)
    inputs, outputs = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    boundary = Boundary(
        several(layout, inputs),
        several(st.none() | layout, inputs),
        several(layout, outputs),
        several(st.none() | layout, outputs),
    )
    op_splits = draw(st.lists(per_axis(splits), max_size=4).map(tuple))
    return Sharding(draw(names), draw(strategies), mesh, op_splits, boundary)
