"""Small random sharding problems, and their optimum by trying everything."""

from itertools import product
from math import inf, prod
from random import Random

from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.axes import analyse
from plait.ir.model.mesh import Axis, Mesh
from plait.ir.model.model import Function, Input, Op, Output, Ref
from plait.ir.model.tensor import TensorType
from plait.ir.plan.sharding import AxisSharding, Boundary
from plait.planner.sharding import AxisRule, ShardingProblem, price
from plait.planner.sharding.costs import RooflineCosts

MOST = 1200  # assignments that are tried for one problem


class RandomCosts:
    """A random price for everything that has one; a few values only, so that ties occur."""

    def __init__(self, seed: int) -> None:
        self.random, self.known = Random(seed), {}

    def amount(self, key) -> float:
        if key not in self.known:
            self.known[key] = self.random.choice((0.0, 1.0, 2.0, 3.0, self.random.random() * 5))
        return self.known[key]

    def operator(self, op, options):
        return self.amount(("op", op, options))

    def step(self, value, step):
        return self.amount(("step", value, step))


def random_problem(seed: int) -> ShardingProblem:
    """One problem; `count(problem)` says how many assignments it has."""
    random = Random(seed)
    sizes = random.choice(((2,), (4,), (3,), (2, 2), (2, 4), (2, 1), (2, 2, 2)))
    function = random_function(random, random.randint(1, 5 - len(sizes)))
    axes = analyse(function)
    mesh = Mesh(tuple(Axis(f"a{i}", n) for i, n in enumerate(sizes)))
    rules = tuple(random_rule(random, function, axes, axis.size) for axis in mesh.axes)
    costs = RandomCosts(seed)
    if random.random() < 0.3:
        strides = tuple(mesh.stride(i) for i in range(len(sizes)))
        costs = RooflineCosts(function, axes, mesh, load_cluster("4x4xh100"), strides)
    limit = inf
    if random.random() < 0.3:
        limit = random.uniform(0.3, 1.0) * sum(
            function.types[i.value].bytes for i in function.state_inputs()
        )
    return ShardingProblem(function, axes, mesh, rules, costs, limit)


def random_function(random: Random, ops: int) -> Function:
    types = [TensorType((random.choice((4, 8, 12)), random.choice((4, 8))), "float32")]
    inputs = [Input(0, "activation", "x")]
    drawn: list[Op] = []
    forward = random.randint(1, ops)
    tangent = None
    for i in range(ops):
        if i == forward:
            types.append(types[drawn[-1].results[0]])
            tangent = len(types) - 1
        drawn.append(random_op(random, types, inputs))
    output = drawn[forward - 1].results[0]
    if tangent is not None:
        inputs = [with_gradient(random, i, types, drawn[forward:], tangent) for i in inputs]
    outputs = (Output(output, tangent),)
    return Function("f", tuple(types), tuple(inputs), outputs, tuple(drawn), forward)


def with_gradient(random: Random, item: Input, types, ops, tangent: int) -> Input:
    """The input with some value of its shape, made in backward, as its gradient."""
    made = [tangent, *(op.results[0] for op in ops)]
    same_shape = [v for v in made if types[v].shape == types[item.value].shape]
    if not same_shape:
        return item
    return Input(item.value, item.kind, item.name, random.choice(same_shape))


def random_op(random: Random, types: list[TensorType], inputs: list[Input]) -> Op:
    def state_bytes(shape: tuple[int, ...]) -> int:
        types.append(TensorType(shape, "float32"))
        inputs.append(Input(len(types) - 1, random.choice(("parameter", "buffer")), "w"))
        return len(types) - 1

    value = random.randrange(len(types))
    shape = types[value].shape
    other = next((v for v in range(len(types) - 1, -1, -1) if types[v].shape == shape), value)
    name, args = "aten.silu.default", (Ref(value),)
    match random.randrange(6 if len(shape) == 2 else 2):
        case 1:
            second = other if random.random() < 0.7 else state_bytes(shape)
            name, args = "aten.add.Tensor", (Ref(value), Ref(second))
        case 2:
            second = state_bytes((shape[1], random.choice((4, 8))))
            name, args = "aten.mm.default", (Ref(value), Ref(second))
            shape = (shape[0], types[second].shape[1])
        case 3:
            name, args, shape = "aten.transpose.int", (Ref(value), 0, 1), shape[::-1]
        case 4:
            shape = random.choice(((prod(shape),), (2, shape[0] // 2, shape[1])))
            name, args = "aten.view.default", (Ref(value), shape)
        case 5:
            name, args, shape = "aten.sum.dim_IntList", (Ref(value), (0,), False), shape[1:]
    types.append(TensorType(shape, "float32"))
    return Op(name, args, {}, (len(types) - 1,))


def random_rule(random: Random, function: Function, axes, size: int) -> AxisRule:
    atoms = sorted(axes.sizes)
    loops = frozenset(random.sample(atoms, min(len(atoms), random.randint(1, 3))))
    states = {}
    for item in function.inputs:
        states[item.value] = some_states(random, axes, item.value, size, item.kind != "activation")
        if item.gradient is not None and item.kind == "activation":
            states.setdefault(item.gradient, some_states(random, axes, item.gradient, size, False))
    for output in function.outputs:
        for value in (output.value, output.tangent):
            if value is not None and value not in states:
                states[value] = some_states(random, axes, value, size, random.random() < 0.2)
    pins = {}
    if random.random() < 0.2:
        op = random.randrange(len(function.ops))
        pins[op] = random.choice(axes.ops[op].options).name
    return AxisRule(loops, states, random.choice(({}, {"R": "P"})), pins)


def some_states(random: Random, axes, value: int, size: int, several: bool):
    splits = [
        (dim, part)
        for dim, parts in enumerate(axes.factors[value])
        for part, n in enumerate(parts)
        if n % size == 0
    ]
    every = ["R", *splits]
    if several:
        return tuple(sorted(random.sample(every, random.randint(1, min(3, len(every)))), key=str))
    return (random.choice(every),)


def assignments(problem: ShardingProblem):
    """Per axis everything that its rule allows, written without looking at the search."""
    per_axis = []
    for rule, axis in zip(problem.rules, problem.mesh.axes, strict=True):
        per_axis.append(axis_parts(problem, rule, axis.size))
    return per_axis


def axis_parts(problem: ShardingProblem, rule: AxisRule, size: int):
    """Lists of what each operator, input, gradient, output and tangent may do on one axis."""
    function = problem.function

    def may(value):
        return (
            (None,)
            if value is None
            else ("R",)
            if size == 1
            else rule.placements.get(value, ("R",))
        )

    ops = [
        [known.options[0].name]
        if size == 1
        else [
            o.name
            for o in known.options
            if rule.pins.get(i, o.name) == o.name
            and (i in rule.pins or o.factor_id < 0 or o.factor_id in rule.loops)
            and (not o.loop or o.size % size == 0)
        ]
        for i, known in enumerate(problem.axes.ops)
    ]
    gradients = [may(i.gradient) if i.kind == "activation" else (None,) for i in function.inputs]
    return [
        *ops,
        *(may(i.value) for i in function.inputs),
        *gradients,
        *(may(o.value) for o in function.outputs),
        *(may(o.tangent) for o in function.outputs),
    ]


def count(problem: ShardingProblem) -> int:
    return prod(len(part) for parts in assignments(problem) for part in parts)


def sharding(problem: ShardingProblem, rule: AxisRule, size: int, parts) -> AxisSharding:
    function = problem.function
    n, inputs, outputs = len(function.ops), len(function.inputs), len(function.outputs)
    states = parts[n : n + inputs]
    gradients = tuple(
        None
        if item.gradient is None
        else placement
        if item.kind == "activation"
        else state
        if size == 1
        else rule.gradients.get(state, state)
        for item, state, placement in zip(
            function.inputs, states, parts[n + inputs : n + 2 * inputs], strict=True
        )
    )
    rest = parts[n + 2 * inputs :]
    boundary = Boundary(states, gradients, rest[:outputs], rest[outputs:])
    return AxisSharding(parts[:n], boundary)


def brute_force(problem: ShardingProblem) -> float:
    """The least price of all assignments."""
    columns = [
        [sharding(problem, rule, axis.size, parts) for parts in product(*lists)]
        for rule, axis, lists in zip(
            problem.rules, problem.mesh.axes, assignments(problem), strict=True
        )
    ]
    return min((price(problem, made) for made in product(*columns)), default=inf)
