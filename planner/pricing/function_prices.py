"""The price of every function under every inner split, local batch and memory variant.

One entry per distinct function, never per layer. The split over the axes inside a batch replica
(tensor, sequence, experts) is solved once per function and word; two local forms give its price for
every local batch.
"""

from __future__ import annotations

from collections.abc import Collection
from math import gcd, prod

import msgspec

from ...cost_model.execution_model import GENERATED, Practice
from ...cost_model.memory.offload import hosted, in_pieces, times
from ...cost_model.operators.function_cost import FunctionCost, FunctionTable
from ...cost_model.operators.operator_cost import BATCH, Load, Pricer, count_flops
from ...ir.analysis.dataflow import Flow, flow
from ...ir.devices.cluster import Cluster
from ...ir.layout import PARTIAL, State, UnreachableLayout, fits
from ...ir.lowering.chunk import Division
from ...ir.lowering.forward_backward import Variant
from ...ir.lowering.localize import MICRO, AxisSharding, Boundary, Choices, localize
from ...ir.mesh import Axis, Mesh
from ...ir.model import Call, Function, Model
from ...ir.plan.plan import DIVIDED, HOSTED, PARTS, Memory, Sharding, variant
from ...ir.plan.strategy import ROLES, Strategy
from ...ir.plan.workload import Piece
from ..activations.chunking import Divider
from ..activations.recompute_ilp import select
from ..compression.activations import Activations
from ..sharding import ShardingProblem, solve
from ..sharding.axis_rules import UnevenTokens, axis_rule
from ..sharding.costs import RooflineCosts
from ..sharding.data_parallel import split_batch, split_values, whole

Word = tuple[tuple[str, int], ...]  # the axes inside a batch replica, outermost first
Splits = dict[str, AxisSharding]  # by axis
TableKey = tuple[str, Word, bool, int]  # function, word, one replica alone, pieces


class Entry(msgspec.Struct, frozen=True):
    """The price of one call; `summed_bytes` are local bytes of gradients to add up, by axis."""

    cost: FunctionCost
    summed_bytes: dict[str, int]


class Table(msgspec.Struct, frozen=True):
    """Prices of a function under a word, for every local batch."""

    costs: FunctionTable
    summed_bytes: dict[str, int]


class Entries:
    """Prices of a model's functions on a cluster, made when first asked for."""

    def __init__(
        self,
        model: Model,
        cluster: Cluster,
        practice: Practice = GENERATED,
        activations: Activations | None = None,
    ) -> None:
        self.model, self.cluster, self.practice = model, cluster, practice
        self.flow: Flow = flow(model)
        self.functions = {f.name: f for f in model.functions}
        # what follows from the batch alone
        self.early = {name for i in model.once() for name in model.calls[i].results}
        self.early.update(item.name for item in model.inputs)
        self.summed = {f.name: self.named(f, {model.loss}) for f in model.functions}
        self.given = {f.name: self.named(f, self.early) for f in model.functions}
        self.batch, self.experts = (
            {f.name: split_batch(f, self.flow, self.summed[f.name], apart) for f in model.functions}
            for apart in (False, True)
        )
        self.activations = activations or Activations()
        self.divider = Divider(self.flow, self.summed)
        self.solved: dict[Word, dict[str, Splits] | None] = {}
        self.tables: dict[TableKey, Table | None] = {}
        self.costs: dict[tuple[str, Word, int, Memory], Entry | None] = {}
        self.selected: dict[tuple[TableKey, Memory], tuple[int, ...]] = {}
        self.loads: dict[tuple[object, ...], Load] = {}
        self.even: dict[str, int] = {}
        self.timed: dict[str, bool] = {}

    @property
    def has_experts(self) -> bool:
        """Whether some function's experts can lie apart."""
        return any(self.experts[name] != self.batch[name] for name in self.functions)

    @property
    def has_tokens(self) -> bool:
        """Whether samples have tokens that can be split."""
        return any(self.flow.tokens.values())

    def named(self, function: Function, names: Collection[str]) -> frozenset[int]:
        """Activations and outputs of a function that some call of it takes or makes under a name."""
        ends = [i.value for i in function.activations()] + [o.value for o in function.outputs]
        return frozenset(
            value
            for call in self.model.calls
            if call.function == function.name
            for name, value in zip((*call.arguments, *call.results), ends, strict=True)
            if name in names
        )

    def splits(self, word: Word) -> dict[str, Splits] | None:
        """Every function's split over searched axes; None where tokens do not divide.

        The costliest function first: a parameter that two functions share lies as the first likes.
        """
        if word not in self.solved:
            try:
                self.solved[word] = self.solve(word)
            except UnevenTokens:
                self.solved[word] = None
        return self.solved[word]

    def solve(self, word: Word) -> dict[str, Splits]:
        if all(size == 1 for _, size in word):
            return {name: {} for name in self.functions}
        decided: dict[str, tuple[State, ...]] = {}
        found: dict[str, Splits] = {}
        order = sorted(self.functions.values(), key=lambda f: (-self.weight(f), f.name))
        for function in order:
            calls = [c for c in self.model.calls if c.function == function.name]
            fixed = {
                item.value: decided[name]
                for call in calls
                for item, name in zip(function.held(), call.parameters, strict=True)
                if name in decided
            }
            made = self.split(function, word, fixed, self.weights(function, calls))
            found[function.name] = {name: axis for (name, _), axis in made}
            for call in calls:
                states = zip(*(axis.inputs for _, axis in made), strict=True)
                decided.update(zip(call.parameters, states, strict=False))
        return found

    def weights(self, function: Function, calls: list[Call]) -> frozenset[int]:
        """Weight matrices of repeated layers: the role promises that they lie in pieces."""
        if len(calls) < 2:
            return frozenset()
        held = (i.value for i in function.held() if i.gradient is not None)
        return frozenset(v for v in held if len(function.types[v].shape) > 1)

    def weight(self, function: Function) -> float:
        return sum(
            count_flops(known.declared) for known in self.flow.axes[function.name].ops
        ) * sum(call.function == function.name for call in self.model.calls)

    def split(
        self,
        function: Function,
        word: Word,
        fixed: dict[int, tuple[State, ...]],
        cut: frozenset[int],
    ) -> list[tuple[tuple[str, int], AxisSharding]]:
        """The cheapest split of one function over the searched axes of a word, jointly."""
        axes = self.flow.axes[function.name]
        searched = [(role, size) for role, size in word if ROLES[role].searched and size > 1]
        rules = tuple(
            axis_rule(
                role,
                size,
                function,
                self.flow,
                tokens_between=Strategy(word).tokens_between,
                given=self.given[function.name],
                summed=self.summed[function.name],
                must_cut=cut,
                fixed={value: states[i] for value, states in fixed.items()},
            )
            for i, (role, size) in enumerate(searched)
        )
        mesh = Mesh(tuple(Axis(role, size) for role, size in searched))
        strides = tuple(mesh.stride(i) for i in range(len(searched)))
        batch = split_values(function, self.batch[function.name], axes.ops)
        costs = RooflineCosts(function, axes, mesh, self.cluster, strides, batch, self.model.batch)
        made = solve(ShardingProblem(function, axes, mesh, rules, costs)).axes
        return list(zip(searched, made, strict=True))

    def token_ways(self, word: Word) -> int:
        """Into how many pieces values between calls lie cut by tokens."""
        flag = Strategy(word).tokens_between
        return prod(
            n for role, n in word if ROLES[role].sequence or (flag and ROLES[role].operators)
        )

    def entry(self, name: str, word: Word, local_batch: int, memory: Memory) -> Entry | None:
        """The price of one call, or None where the function cannot be split so."""
        key = (name, word, local_batch, memory)
        if key not in self.costs:
            self.costs[key] = self.price(name, word, local_batch, memory)
        return self.costs[key]

    def price(self, name: str, word: Word, local_batch: int, memory: Memory) -> Entry | None:
        experts, pieces = self.experts_ways(word), DIVIDED.get(memory, 1)
        ways, left = divmod(self.model.batch, local_batch * experts)
        samples = self.divider.samples(self.functions[name], pieces)
        if left or self.even_batch(name) % (ways * experts) or local_batch % samples:
            return None
        table = self.table_of(name, word, local_batch)
        if table is None:
            return None
        sums = self.activations.reductions(self, word, local_batch)
        whole = table.costs.at(
            local_batch, self.variant(name, word, local_batch, memory), ways, sums
        )
        if memory in HOSTED:
            whole = hosted(whole, self.cluster.device)
        if pieces > 1:
            piece = self.table_of(name, word, local_batch, pieces)
            if piece is None:
                return None
            whole = in_pieces(piece.costs, table.costs, whole, local_batch, pieces, ways, sums)
        return Entry(whole, table.summed_bytes)

    def table_of(self, name: str, word: Word, local_batch: int, pieces: int = 1) -> Table | None:
        """Prices of a function, or of one of its pieces. One replica sends nothing to others: its
        local form has fewer operators."""
        key = self.key(name, word, local_batch, pieces)
        if key not in self.tables:
            batch = self.model.batch // self.experts_ways(word)
            self.tables[key] = self.table(name, word, batch, *key[2:])
        return self.tables[key]

    def key(self, name: str, word: Word, local_batch: int, pieces: int = 1) -> TableKey:
        return name, word, local_batch * self.experts_ways(word) == self.model.batch, pieces

    @staticmethod
    def experts_ways(word: Word) -> int:
        """Into how many parts axes inside a replica cut the batch."""
        return prod(size for role, size in word if ROLES[role].batch)

    def variant(self, name: str, word: Word, local_batch: int, memory: Memory) -> Variant:
        """What forward leaves for backward under a memory action."""
        if memory not in PARTS:
            return variant(memory, ())
        table = self.table_of(name, word, local_batch)
        assert table is not None
        key = self.key(name, word, local_batch), memory
        if key not in self.selected:
            self.selected[key] = select(table.costs, PARTS[memory])
        return self.selected[key]

    def saved(
        self, sharding: Sharding, word: Word, local_batch: int, memory: Memory
    ) -> tuple[int, ...]:
        """The values to save in the local form that is generated: the priced ones where the two forms
        have the same operators."""
        if memory not in PARTS:
            return ()
        name = sharding.function
        table = self.table_of(name, word, local_batch)
        variant = self.variant(name, word, local_batch, memory)
        assert table is not None
        assert isinstance(variant, tuple)
        local = self.local(sharding)
        if [op.target for op in local.ops] == [op.target for op in table.costs.locals[0].ops]:
            return variant
        pricer = Pricer(self.cluster, sharding.mesh, self.loads, self.practice)
        one = FunctionTable(pricer, (local, local), (local_batch, local_batch))
        return select(one, PARTS[memory])

    def amounts(
        self, name: str, word: Word, local_batch: int, memory: Memory
    ) -> tuple[Piece, Piece]:
        """What forward and backward of one call, which has a price, do and send."""
        ways = self.model.batch // (local_batch * self.experts_ways(word))
        pieces = DIVIDED.get(memory, 1)
        table = self.table_of(name, word, local_batch, pieces)
        assert table is not None
        variant = self.variant(name, word, local_batch, memory)
        forward, backward = table.costs.amounts(local_batch, variant, ways)
        moved = table.costs.at(local_batch, variant, ways).leaves if memory in HOSTED else 0
        return times(forward, pieces, moved), times(backward, pieces, moved)

    def division(self, sharding: Sharding, memory: Memory) -> Division:
        """How a function runs in pieces, which has a price."""
        function, axes = self.functions[sharding.function], self.flow.axes[sharding.function]
        made = self.divider.pieces(function, sharding.form(axes), DIVIDED[memory])
        assert made is not None
        return made.division

    def local(self, sharding: Sharding) -> Function:
        """What one device computes of a function that is split so."""
        function = self.functions[sharding.function]
        return sharding.form(self.flow.axes[function.name]).local(function)

    def makers(self, sharding: Sharding, values: tuple[int, ...]) -> tuple[str, ...]:
        """What makes values of the local form: module and operator, for people."""
        local, wanted = self.local(sharding), set(values)
        made = [op for op in local.forward_ops if wanted & set(op.results)]
        return tuple(dict.fromkeys(f"{op.scope} {op.target.split('.')[1]}".strip() for op in made))

    def even_batch(self, name: str) -> int:
        """The most ways that every value of a function lets its batch be split."""
        if name not in self.even:
            function, axes = self.functions[name], self.flow.axes[name]
            shards = ((v, self.flow.batch_shard(function, v)) for v in range(len(function.types)))
            sizes = [
                axes.factors[v][shard[0]][shard[1]] for v, shard in shards if shard is not None
            ]
            self.even[name] = gcd(*sizes) if sizes else self.model.batch
        return self.even[name]

    def table(
        self, name: str, word: Word, batch: int, alone: bool, pieces: int = 1
    ) -> Table | None:
        """Prices for every batch from the local forms for two small ones, not of one sample where
        that can be avoided: dimensions of size 1 walk no loop."""
        function, axes = self.functions[name], self.flow.axes[name]
        samples = self.divider.samples(function, pieces)
        sizes = [n for n in range(samples, batch, samples) if batch % n == 0][:3]
        sizes = [batch] if alone or not sizes else sizes[1:] if len(sizes) > 2 else sizes
        found = []
        for size in (sizes[0], sizes[-1]):
            strategy = Strategy(((BATCH, batch // size), *word))
            sharding = self.sharding(name, strategy, 1)
            if sharding is None:
                return None
            form = sharding.form(axes)
            if pieces == 1:
                found.append((form.local(function), sharding))
                continue
            made = self.divider.pieces(function, form, pieces)
            if made is None:
                return None
            found.append((made.local, sharding))
        local, sharding = found[0]
        pricer = Pricer(self.cluster, sharding.mesh, self.loads, self.practice)
        costs = FunctionTable(pricer, (local, found[1][0]), (sizes[0], sizes[-1]))
        summed = {
            axis.name: sum(
                local.types[mine.value].bytes
                for mine, layout in zip(local.inputs, sharding.boundary.gradients, strict=True)
                if mine.kind == "parameter" and layout is not None and layout[i] == PARTIAL
            )
            for i, axis in enumerate(sharding.mesh.axes)
            if axis.name not in (BATCH, MICRO) and axis.size > 1
        }
        return Table(costs, summed)

    def in_time(self, name: str) -> bool:
        """Whether a function can run on micro-batches: nothing in it mixes their samples."""
        if name not in self.timed:
            sharding = self.sharding(name, Strategy(()), 2)
            self.timed[name] = sharding is not None
            if sharding is not None:
                function, axes = self.functions[name], self.flow.axes[name]
                try:
                    localize(function, axes, sharding.mesh, sharding.choices, sharding.boundary)
                except UnreachableLayout:
                    self.timed[name] = False
        return self.timed[name]

    def sharding(self, name: str, strategy: Strategy, micro_batches: int) -> Sharding | None:
        """The split of a function under a strategy and a number of micro-batches."""
        function, axes = self.functions[name], self.flow.axes[name]
        solved = self.splits(strategy.searched)
        if solved is None:
            return None
        per_axis, mesh_axes = [], []
        for role, size in ((MICRO, micro_batches), *strategy.axes):
            kind = ROLES.get(role)
            if kind is not None and kind.stages:
                continue
            mesh_axes.append(Axis(role, size))
            if role in solved[name]:
                per_axis.append(solved[name][role])
            elif kind is None or kind.batch:
                apart = kind is not None and kind.experts
                per_axis.append(self.experts[name] if apart else self.batch[name])
            else:
                per_axis.append(whole(function))
        mesh = Mesh(tuple(mesh_axes))
        boundary = join(per_axis)
        layouts = zip(
            (*(i.value for i in function.inputs), *(o.value for o in function.outputs)),
            (*boundary.inputs, *boundary.outputs),
            strict=True,
        )
        if not all(fits(axes.factors[v], layout, mesh) for v, layout in layouts):
            return None
        choices: Choices = tuple(zip(*(a.choices for a in per_axis), strict=True))
        return Sharding(name, strategy, mesh, choices, boundary)


def join(per_axis: list[AxisSharding]) -> Boundary:
    """Layouts at the boundary from the states along every axis."""

    def layouts(field: str) -> tuple:  # type: ignore[type-arg]
        columns = zip(*(getattr(a, field) for a in per_axis), strict=True)
        return tuple(None if None in states else tuple(states) for states in columns)

    return Boundary(
        layouts("inputs"), layouts("gradients"), layouts("outputs"), layouts("tangents")
    )
