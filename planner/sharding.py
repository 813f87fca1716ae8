"""Which loop every operator splits over one tensor-parallel axis: an exact search.

One choice per operator; a value made in one layout and wanted in another pays the collective between
them once per phase. The boundary is whole on both sides (what is replicated outside stays so), held
inputs may be cut any way that their users like. Solved by HiGHS through MathOpt to a proven gap.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from ortools.math_opt.python import mathopt

from ..ir.axes import Axes, Option
from ..ir.errors import PlaitError
from ..ir.layout import REPLICATE, State, transition
from ..ir.model import Function
from .batch import AxisSharding

GAP = 0.01  # proven: no split of a function is better by more than this part
OptionSeconds = Callable[[int, Option], float]
MoveSeconds = Callable[[int, str], float]


class Costs(msgspec.Struct, frozen=True):
    """Prices for one axis: of an operator under an option, of a collective on a value."""

    operator: OptionSeconds
    collective: MoveSeconds


def weight_loops(function: Function, axes: Axes) -> frozenset[int]:
    """Axes that weight matrices walk: what the role splits. Sequence and batch are other roles'."""
    weights = (i.value for i in function.held() if len(function.types[i.value].shape) > 1)
    return frozenset(atom for v in weights for dim in axes.atoms[v] for atom in dim)


class OperatorSplit:
    """The cheapest split of one function over an axis of `ways` devices: `solve()` gives it.

    `fixed` gives the state of held inputs that other functions share; those in `cut` must not lie
    whole on every device if any factor of theirs can be cut.
    """

    def __init__(
        self,
        function: Function,
        axes: Axes,
        ways: int,
        costs: Costs,
        fixed: dict[int, State],
        cut: frozenset[int],
    ) -> None:
        self.must_cut, self.loops = cut, weight_loops(function, axes)
        self.function, self.axes, self.ways, self.costs = function, axes, ways, costs
        self.model = mathopt.Model()
        self.objective: list[tuple[mathopt.Variable, float]] = []
        # per value: state -> expression that is 1 when the value lies so
        self.lies: dict[int, dict[State, list[mathopt.Variable]]] = {}
        # per (value, backward phase): state -> variable that is 1 when somebody wants it so
        self.wanted: dict[tuple[int, bool], dict[State, mathopt.Variable]] = {}
        self.sources(fixed)
        self.choice = [self.operator(i) for i in range(len(function.ops))]
        self.sinks()
        self.moves()

    def one(self, name: str = "") -> mathopt.Variable:
        return self.model.add_variable(lb=0.0, ub=1.0, is_integer=True, name=name)

    def sources(self, fixed: dict[int, State]) -> None:
        """Activations and tangents come whole; a held input lies as one variable per state says."""
        for item in self.function.inputs:
            states = [REPLICATE] if item.kind != "parameter" else self.cuts(item.value)
            if item.value in fixed:
                states = [fixed[item.value]]
            self.lies[item.value] = {state: [self.one()] for state in states}
            self.exactly_one(self.lies[item.value])
        for output in self.function.outputs:
            if output.tangent is not None:
                self.lies[output.tangent] = {REPLICATE: [self.one()]}
                self.exactly_one(self.lies[output.tangent])

    def cuts(self, value: int) -> list[State]:
        cuts: list[State] = []
        for dim, parts in enumerate(self.axes.factors[value]):
            cuts += [(dim, part) for part, size in enumerate(parts) if size % self.ways == 0]
        return cuts if cuts and value in self.must_cut else [REPLICATE, *cuts]

    def exactly_one(self, states: dict[State, list[mathopt.Variable]]) -> None:
        self.model.add_linear_constraint(sum(v for vs in states.values() for v in vs) == 1)

    def operator(self, i: int) -> list[tuple[int, mathopt.Variable]]:
        """One variable per usable option."""
        op, known = self.function.ops[i], self.axes.ops[i]
        late = i >= self.function.forward
        chosen = []
        for number, option in enumerate(known.options):
            if option.loop and (option.size % self.ways or option.atom not in self.loops):
                continue
            variable = self.one()
            chosen.append((number, variable))
            self.objective.append((variable, self.costs.operator(i, option)))
            for value, state in zip(op.results, option.outputs, strict=True):
                if value >= 0:
                    self.lies.setdefault(value, {}).setdefault(state, []).append(variable)
        self.model.add_linear_constraint(sum(v for _, v in chosen) == 1)
        for position, value in enumerate(op.operands()):
            self.want(value, late, known.options, chosen, position)
        return chosen

    def want(
        self,
        value: int,
        late: bool,
        options: tuple[Option, ...],
        chosen: list[tuple[int, mathopt.Variable]],
        position: int,
    ) -> None:
        needs: dict[State, list[mathopt.Variable]] = {}
        for number, variable in chosen:
            needs.setdefault(options[number].inputs[position], []).append(variable)
        for state, variables in needs.items():
            self.model.add_linear_constraint(self.demand(value, late, state) >= sum(variables))

    def demand(self, value: int, late: bool, state: State) -> mathopt.Variable:
        wanted = self.wanted.setdefault((value, late), {})
        if state not in wanted:
            wanted[state] = self.model.add_variable(lb=0.0, ub=1.0)
        return wanted[state]

    def sinks(self) -> None:
        """Outputs and activation gradients leave whole, gradients of held inputs as those lie."""
        for output in self.function.outputs:
            self.model.add_linear_constraint(self.demand(output.value, False, REPLICATE) >= 1)
        for item in self.function.inputs:
            if item.gradient is None:
                continue
            for state, variables in self.lies[item.value].items():
                demand = self.demand(item.gradient, True, state)
                self.model.add_linear_constraint(demand >= sum(variables))

    def moves(self) -> None:
        """Whoever wants a value as `b` is served from the one state `a` it lies in, and pays for
        a -> b. Serving is a flow bounded by where the value lies, which keeps the relaxation tight."""
        for (value, _), wanted in self.wanted.items():
            for want, demand in wanted.items():
                served = []
                for have, variables in self.lies[value].items():
                    flow = self.model.add_variable(lb=0.0, ub=1.0)
                    self.model.add_linear_constraint(flow <= sum(variables))
                    served.append(flow)
                    if have != want:
                        self.objective.append((flow, self.move_seconds(value, have, want)))
                self.model.add_linear_constraint(sum(served) >= demand)

    def move_seconds(self, value: int, have: State, want: State) -> float:
        steps = transition((have,), (want,))
        return sum(self.costs.collective(value, step.kind) for step in steps)

    def solve(self) -> AxisSharding:
        scale = 1e6
        self.model.minimize(sum(variable * (cost * scale) for variable, cost in self.objective))
        limits = mathopt.SolveParameters(relative_gap_tolerance=GAP)
        result = mathopt.solve(self.model, mathopt.SolverType.HIGHS, params=limits)
        if not result.has_primal_feasible_solution():
            raise PlaitError(f"{self.function.name}: no split over {self.ways} devices was found")
        values = result.variable_values()
        return self.read(values)

    def read(self, values: dict[mathopt.Variable, float]) -> AxisSharding:
        choices = tuple(
            next(number for number, variable in chosen if values[variable] > 0.5)
            for chosen in self.choice
        )
        inputs = tuple(
            next(s for s, vs in self.lies[i.value].items() if values[vs[0]] > 0.5)
            for i in self.function.inputs
        )
        return AxisSharding(
            choices,
            inputs,
            tuple(
                None if i.gradient is None else s
                for i, s in zip(self.function.inputs, inputs, strict=True)
            ),
            tuple(REPLICATE for _ in self.function.outputs),
            tuple(None if o.tangent is None else REPLICATE for o in self.function.outputs),
        )
