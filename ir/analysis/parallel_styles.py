"""What PyTorch's ParallelStyles can say of a sharding along a tensor axis.

A style wraps a linear layer or an embedding. By columns, it hands its shard on or gathers it; by rows,
it takes a shard or slices one, and sums. So of a function's forward along the axis

    weights     are transposed before their product, or looked up; vectors that are split are biases
    sums        are left by products with a weight that is split, and by the loss
    gathers     are of products with a weight that is split, before anything else than its bias
    slices      are of what a product with a weight that is split reads
    gradients   of whole weights are partial only beside columns: norms of heads

Everything else is unsaid: the search asks here as the engine does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..model.layout import PARTIAL, REPLICATE, AxisPlacement, is_shard
from ..model.model import Op
from ..ops.loss import CROSS_ENTROPY
from .axes import OpStrategy
from .bound_sharding import BoundSharding

STYLED = {"aten.t.default", "aten.transpose.int", "aten.permute.default", "aten.embedding.default"}


class StyledFunction:
    """A function's forward along the tensor axis, walked once.

    `tokens`: whether they are split between tensor operators, so that styles gather and slice them.
    `gathered`, `sliced`: places of the weights split by columns whose products are gathered, and of
    those split by rows whose operand is sliced. `beside`: of whole weights that split operators read.
    """

    def __init__(self, bound: BoundSharding, axis: str, tokens: bool) -> None:
        self.function, self.tokens = bound.function, tokens
        self.axis = [a.name for a in bound.mesh.axes].index(axis)
        self.gathered, self.sliced, self.beside = set[int](), set[int](), set[int]()
        self._reasons: list[tuple[int | None, str]] = []  # the place of a weight, or None
        self._placements: dict[int, AxisPlacement] = {}  # of values
        self._weights: dict[int, int] = {}  # the place of the weight that a value is a view of
        self._products: dict[int, int] = {}  # ... whose product a value is, perhaps with its bias
        for place, (item, layout) in enumerate(
            zip(self.function.inputs, bound.boundary.inputs, strict=True)
        ):
            placement = self._placements[item.value] = layout[self.axis]
            if item.kind in ("parameter", "buffer"):
                self._weights[item.value] = place
                if isinstance(placement, tuple) and placement[1]:
                    self._reasons.append((place, "a joined weight"))
        self.shards: frozenset[int] = frozenset(
            p for v, p in self._weights.items() if is_shard(self._placements[v])
        )
        for number, op in enumerate(self.function.forward_ops):
            self._walk(op, bound.strategies[number][self.axis])
        for output, layout in zip(self.function.outputs, bound.boundary.outputs, strict=True):
            self._leave(output.value, layout[self.axis])

    def unsaid(self, names: Sequence[str]) -> Iterator[str]:
        """What no style says, by the `names` of the parameters of a call."""
        for place, reason in self._reasons:
            yield reason if place is None else f"{names[place]} ({reason})"
        parents = {_parent(names[p]) for p in self.shards - self.gathered if self._is_matrix(p)}
        for place in () if self.tokens else sorted(self.beside):
            if _parent(names[place]) not in parents:
                yield f"{names[place]} (its gradient is partial, and it is no norm beside columns)"

    def _walk(self, op: Op, option: OpStrategy) -> None:
        weights = [self._weights[v] for v in op.operands() if v in self._weights]
        split = [p for p in weights if p in self.shards]
        for value, wanted in zip(op.operands(), option.inputs, strict=True):
            self._fetch(value, wanted, op, split)
        reduces = PARTIAL in option.outputs and PARTIAL not in option.inputs
        if (reduces or option.joint) and not (split or op.target == CROSS_ENTROPY or self.tokens):
            self._reasons.append((None, f"the sums of {_described(op)}"))
        self._placements.update(zip(op.results, option.outputs, strict=True))
        if len(op.operands()) == 1 and weights:
            self._view(op, weights[0])
        else:
            self._product(op, split)
            if not option.name.replicates:
                self.beside.update(p for p in weights if p not in self.shards)

    def _view(self, op: Op, weight: int) -> None:
        """Note a view of a weight."""
        self._weights[op.results[0]] = weight
        if weight in self.shards and self._is_matrix(weight) and op.target not in STYLED:
            self._reasons.append((weight, "not a linear layer's or an embedding's"))

    def _product(self, op: Op, split: Sequence[int]) -> None:
        """Note a product with a weight that is split, and the sum with its bias."""
        operands, states = op.operands(), {i.value for i in self.function.state_inputs()}
        matrices = [p for p in split if self._is_matrix(p)]
        if matrices:
            self._products[op.results[0]] = matrices[0]
            if op.target not in STYLED and states.intersection(operands):
                self._reasons.append((matrices[0], "not a linear layer's or an embedding's"))
            return
        products = [self._products[v] for v in operands if v in self._products]
        if products and len(operands) - len(split) == 1:
            self._products[op.results[0]] = products[0]
        elif split:
            self._reasons.append((split[0], "not a linear layer's bias"))

    def _is_matrix(self, place: int) -> bool:
        return len(self.function.types[self.function.inputs[place].value].shape) > 1

    def _fetch(self, value: int, wanted: AxisPlacement, op: Op, split: Sequence[int]) -> None:
        """What an operator's operand needs before it."""
        placement = self._placements[value]
        if placement in (wanted, PARTIAL) or (placement, wanted) == (REPLICATE, PARTIAL):
            return
        if value in self._products and wanted == REPLICATE:
            self._gather(value)
        elif value in self._weights:
            self._reasons.append((self._weights[value], f"{_described(op)} reads another layout"))
        elif self.tokens:
            return
        elif split and placement == REPLICATE:
            self.sliced.update(split)
        else:
            self._reasons.append((None, f"what {_described(op)} reads in another layout"))

    def _gather(self, value: int) -> None:
        place = self._products[value]
        self.gathered.add(place)
        if self.tokens:
            self._reasons.append(
                (place, "no rows follow its columns, between tokens that are split")
            )

    def _leave(self, value: int, left: AxisPlacement) -> None:
        """What leaves the function is whole or a sum, or else tokens."""
        if value in self._products and is_shard(self._placements[value]):
            self._gather(value)
        elif is_shard(left) and not self.tokens:
            self._reasons.append((None, f"a result of {self.function.name} that stays split"))


def _parent(name: str) -> str:
    """The module that holds a parameter's module."""
    return name.rpartition(".")[0].rpartition(".")[0]


def _described(op: Op) -> str:
    return op.place()
