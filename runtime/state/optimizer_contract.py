"""Finds out what an optimizer needs to see by running it on small tensors.

    elementwise      each element moves by its own gradients    any shards
    per tensor       a norm, spectrum or mean of the tensor     whole tensors, each on some rank
    across tensors   looks at several tensors at once           all tensors on every rank

A copy of the optimizer steps on a tensor, on its halves, and on several tensors together. Gradients
are of several magnitudes, one has zeros and one a NaN, so that clipping and skipping show as well.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from ...ir.plan.plan import OptimizerDemand
from .optimizer_binding import ParameterState, groups_of, rebound, states_of, tensors_in

SMALL, LARGE = (6, 4, 3, 2), 144  # sizes of probed tensors; some optimizers factor only large ones
SCALES = (1.0, 1e-3, 1e3, 1.0, 1.0, 1.0)  # of the gradients, by step
ZEROS_STEP, NAN_STEP, OTHER_NAN_STEP = 3, 4, 5
# with all gradients; then without zeros and NaNs, which may make a decomposition fail
ATTEMPTS = ((torch.float64, len(SCALES)), (torch.float64, 2), (torch.float32, 2))
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
# torch's own, where options such as `capturable` keep them from running here
ELEMENTWISE = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "RMSprop", "SGD", "ASGD")
DEMANDS: tuple[OptimizerDemand, ...] = ("elementwise", "per tensor", "across tensors")


class KindContract(msgspec.Struct, frozen=True):
    """What the tensors of one parameter group and number of dimensions need; `evidence` says how
    that was found."""

    group: int
    dims: int
    demand: OptimizerDemand
    evidence: str


class OptimizerContract(msgspec.Struct, frozen=True):
    """What an optimizer needs to see, kind by kind. `states`: elements of its state per element of a
    parameter, rounded up. `draws_random_numbers`: equal replicas would drift apart."""

    name: str
    kinds: tuple[KindContract, ...]
    states: int
    draws_random_numbers: bool = False

    @property
    def demand(self) -> OptimizerDemand:
        """The strongest demand of any kind."""
        demands = {kind.demand for kind in self.kinds}
        present: list[OptimizerDemand] = [demand for demand in DEMANDS if demand in demands]
        return present[-1] if present else DEMANDS[0]

    @property
    def evidence(self) -> str:
        """How the strongest demand was found."""
        return next((kind.evidence for kind in self.kinds if kind.demand == self.demand), "")

    def demand_of(self, group: int, dims: int) -> OptimizerDemand:
        """The demand of the tensors of a group with so many dimensions."""
        return next(k.demand for k in self.kinds if (k.group, k.dims) == (group, dims))


def probe_optimizer(
    optimizer: Any,
    everything: Iterable[Tensor],
    device: torch.device | None = None,
    sparse: Collection[Tensor] = (),
) -> OptimizerContract:
    """The contract of an optimizer built on whole tensors, which stays as it is.

    `everything`: all tensors that it may refer to; `sparse` of them get gradients of some rows. An
    optimizer that cannot be run on the probe's tensors counts as one that looks across tensors. The
    global random state is put back.
    """
    everything, name = list(everything), type(optimizer).__name__
    failure: Exception | None = None
    with _random_state_put_back():
        for dtype, steps in ATTEMPTS:
            how = _How(dtype, device or torch.device("cpu"), steps, frozenset(sparse))
            probe = _Probe(optimizer, everything, how)
            try:
                return probe.contract()
            except Exception as error:  # whatever a user's optimizer raises
                failure = error
    evidence = f"it could not be tried on small tensors ({type(failure).__name__}: {failure})"
    demand: OptimizerDemand = "across tensors"
    if getattr(torch.optim, name, None) is type(optimizer) and name in ELEMENTWISE:
        demand, evidence = "elementwise", "it is torch's own"
    kinds = [KindContract(*kind[:2], demand, evidence) for kind in _representatives(optimizer, ())]
    return OptimizerContract(name, tuple(kinds), 2)


class _Slice(NamedTuple):
    """A part of a probe tensor: its elements, rows or columns [first, last), or all of it."""

    flat: bool = False
    first: int = 0
    last: int | None = None
    rows: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        if self.rows:
            return tensor[self.first : self.last]
        if self.flat:
            return tensor.reshape(-1)[self.first : self.last]
        return tensor[..., self.first : self.last] if self.last is not None else tensor


class _How(NamedTuple):
    """Element type, device and number of steps of a probe, and which tensors have sparse gradients."""

    dtype: torch.dtype
    device: torch.device
    steps: int
    sparse: frozenset[Tensor]


WHOLE = _Slice()
Kind = tuple[int, int, bool]  # group, dimensions, whether gradients are sparse


class _Representatives(NamedTuple):
    """The largest tensor of a kind, which stands for it, and another one where there is any."""

    first: Tensor
    other: Tensor | None


def _representatives(optimizer: Any, sparse: Collection[Tensor]) -> dict[Kind, _Representatives]:
    """Two tensors of every kind."""
    members: dict[Kind, list[Tensor]] = {}
    for number, group in enumerate(groups_of(optimizer)):
        for parameter in group["params"]:
            kind = number, parameter.dim(), parameter in sparse
            members.setdefault(kind, []).append(parameter)
    return {
        kind: _Representatives(
            (first := max(tensors, key=Tensor.numel)),
            next((t for t in tensors if t is not first), None),
        )
        for kind, tensors in members.items()
    }


class _Probe:
    """Runs copies of one optimizer on tensors that are functions of their positions alone."""

    def __init__(self, optimizer: Any, everything: list[Tensor], how: _How) -> None:
        self.optimizer, self.everything = optimizer, everything
        self.dtype, self.device, self.steps, self.sparse = how
        self.tolerance = TOLERANCE[how.dtype]
        self.kinds = _representatives(optimizer, self.sparse)
        self.elements_of_state: dict[Kind, float] = {}

    def contract(self) -> OptimizerContract:
        draws = self.draws_random_numbers()
        kinds: list[KindContract] = []
        alone: dict[Kind, list[Tensor]] = {}
        for kind, (tensor, _) in self.kinds.items():
            demand, evidence = self.within(kind, tensor, alone)
            kinds.append(KindContract(*kind[:2], demand, evidence))
        kinds.sort(key=lambda k: -DEMANDS.index(k.demand))  # dense and sparse: the stronger demand
        if draws:
            evidence = "it draws random numbers"
            kinds = [KindContract(k.group, k.dims, "per tensor", evidence) for k in kinds]
        elif culprit := self.across(alone):
            kinds = [KindContract(k.group, k.dims, "across tensors", culprit) for k in kinds]
        matrices = {k: v for k, v in self.elements_of_state.items() if k[1] > 1}
        states = max((matrices or self.elements_of_state).values(), default=0.0)
        return OptimizerContract(
            type(self.optimizer).__name__, tuple(kinds), int(-(-states // 1)), draws
        )

    def within(
        self, kind: Kind, tensor: Tensor, alone: dict[Kind, list[Tensor]]
    ) -> tuple[OptimizerDemand, str]:
        """What a kind needs of one tensor, and how that shows."""
        large = tuple(min(size, LARGE if i < 2 else 3) for i, size in enumerate(tensor.shape))
        for number, shape in enumerate(dict.fromkeys((_small(tensor), large))):
            steps = self.steps if number == 0 else 2
            whole = self.run({tensor: shape}, WHOLE, steps, kind)[tensor]
            if number == 0:
                alone[kind] = whole
            if problem := self.splits(tensor, shape, whole):
                return "per tensor", f"{problem} of {list(shape)}"
        return "elementwise", "halves move as the whole does"

    def splits(self, tensor: Tensor, shape: tuple[int, ...], whole: list[Tensor]) -> str:
        """How halves move otherwise than the whole; empty where they do not."""
        elements = torch.Size(shape).numel()
        if elements < 2:
            return ""
        if tensor in self.sparse:
            half = shape[0] // 2
            parts = {"rows": [_Slice(False, 0, half, True), _Slice(False, half, shape[0], True)]}
        else:
            half = elements // 2
            parts = {"flattened halves": [_Slice(True, 0, half), _Slice(True, half, elements)]}
        if len(shape) > 1 and shape[-1] > 1:
            half = shape[-1] // 2
            parts["columns"] = [_Slice(False, 0, half), _Slice(False, half, shape[-1])]
        for name, slices in parts.items():
            for one in slices:
                try:
                    halves = self.run({tensor: shape}, one, len(whole))[tensor]
                except Exception as error:  # it stepped on the whole
                    return f"it refuses {name} ({error})"
                if any(map(self.differs, (one.of(w) for w in whole), halves)):
                    return f"{name} move otherwise than the whole"
        return ""

    def across(self, alone: Mapping[Kind, list[Tensor]]) -> str:
        """How a tensor moves otherwise beside others than alone; empty where it does not."""
        shapes: dict[Tensor, tuple[int, ...]] = {}
        for kind, (tensor, other) in self.kinds.items():
            shapes[tensor] = tuple(alone[kind][0].shape)
            if other is not None:
                shapes[other] = tuple(min(d, 3) for d in other.shape)
        if len(shapes) < 2:
            return ""
        others = [other for _, other in self.kinds.values() if other is not None]
        disturbed = others[0] if others else next(iter(shapes))
        together = self.run(shapes, WHOLE, self.steps, disturbed=disturbed)
        for kind, (tensor, _) in self.kinds.items():
            if tensor is not disturbed and any(map(self.differs, alone[kind], together[tensor])):
                return "a tensor moves otherwise beside others than alone"
            if any(map(self.differs, alone[kind][:-1], together[tensor][:-1])):
                return "a tensor moves otherwise beside others than alone"
        return ""

    def draws_random_numbers(self) -> bool:
        """Whether a run depends on the state of the random generators."""
        shapes = {tensor: _small(tensor) for tensor, _ in self.kinds.values()}
        runs = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            random.seed(seed)
            runs.append(self.run(shapes, WHOLE, 2))
        return any(any(map(self.differs, runs[0][t], runs[1][t])) for t in shapes)

    def run(
        self,
        shapes: Mapping[Tensor, tuple[int, ...]],
        part: _Slice,
        steps: int,
        kind: Kind | None = None,
        disturbed: Tensor | None = None,
    ) -> dict[Tensor, list[Tensor]]:
        """Values after every step of the probe tensors (or a part of each) that stand for these.

        `disturbed` has a NaN in the gradient of the last step."""
        leaves = {
            tensor: torch.nn.Parameter(part.of(self.pattern(shape, 0)).contiguous())
            for tensor, shape in shapes.items()
        }

        def convert(tensor: Tensor, state: ParameterState) -> ParameterState:
            corner = tuple(slice(0, size) for size in shapes[tensor])
            return {
                key: part.of(value[corner]).to(self.device, self.dtype, copy=True)
                if isinstance(value, Tensor) and value.dim() and value.shape == tensor.shape
                else value
                for key, value in state.items()
            }

        copy = rebound(self.optimizer, self.everything, leaves, convert)
        values: dict[Tensor, list[Tensor]] = {tensor: [] for tensor in shapes}
        for step in range(steps):
            for tensor, leaf in leaves.items():
                gradient = self.gradient(shapes[tensor], step)
                if step == OTHER_NAN_STEP and tensor is disturbed:
                    gradient.view(-1)[:1] = torch.nan
                leaf.grad = part.of(gradient).clone()
                if tensor in self.sparse:
                    leaf.grad = _some_rows(leaf.grad, part.of(_is_read(gradient, step)))
            copy.step()
            for tensor, leaf in leaves.items():
                values[tensor].append(leaf.detach().clone())
        if kind is not None:
            self.count_state(kind, copy, next(iter(leaves.values())))
        return values

    def count_state(self, kind: Kind, optimizer: Any, leaf: Tensor) -> None:
        """Note the elements of a tensor's state per element of its own."""
        amounts = [
            v.numel() for v in tensors_in(states_of(optimizer).get(leaf, {})) if v.numel() > 1
        ]
        self.elements_of_state[kind] = sum(amounts) / max(leaf.numel(), 1)

    def pattern(self, shape: tuple[int, ...], number: int) -> Tensor:
        """A tensor that looks random and is a function of positions and a number."""
        positions = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        values = torch.sin(positions * (12.9898 + number) + 4.1414 * number + 1.0) * 0.7
        return values.reshape(shape).to(self.device, self.dtype)

    def gradient(self, shape: tuple[int, ...], step: int) -> Tensor:
        gradient = self.pattern(shape, step + 1) * SCALES[step]
        if step == ZEROS_STEP:
            gradient.view(-1)[gradient.numel() // 2 :] = 0.0
        elif step == NAN_STEP:
            gradient.view(-1)[:1] = torch.nan
        return gradient

    def differs(self, a: Tensor, b: Tensor) -> bool:
        a, b = a.reshape(-1), b.reshape(-1)
        if not torch.equal(a.isnan(), b.isnan()):
            return True
        scale = 1.0 + float(a.nan_to_num().abs().max()) if a.numel() else 1.0
        return bool(((a - b).nan_to_num().abs() > self.tolerance * scale).any())


def _is_read(gradient: Tensor, step: int) -> Tensor:
    """For every element, whether its row is among those that a step reads: two of three."""
    rows = (torch.arange(gradient.shape[0], device=gradient.device) + step) % 3 > 0
    return rows.view(-1, *[1] * (gradient.dim() - 1)).expand(gradient.shape)


def _some_rows(gradient: Tensor, read: Tensor) -> Tensor:
    """A gradient as the rows that are read (sparse)."""
    rows = read.reshape(read.shape[0], -1)[:, 0].nonzero()[:, 0]
    return torch.sparse_coo_tensor(
        rows[None], gradient[rows], gradient.shape, check_invariants=False
    )


def _small(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a small tensor that stands for this one."""
    limits = (*SMALL, *(2 for _ in tensor.shape))
    return tuple(min(sizes) for sizes in zip(tensor.shape, limits, strict=False))


@contextmanager
def _random_state_put_back() -> Iterator[None]:
    state = random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(state)
