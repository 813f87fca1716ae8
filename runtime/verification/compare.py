"""Compares a program's numbers with those of one process, and names the first wrong tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...ir.model.model import Model
from .training import Gradients, Reference
from .verify import TOLERANCE

# Errors of tensors that are nearly zero are taken against this part of the largest tensor of all:
# some gradients (a key's bias in attention) are exactly zero but for rounding.
GRADIENT_FLOOR = 1e-4
CAST_FLOOR = 1e-2  # the same where rounding of narrow floats is compared
CAST_EPSILONS = 50  # rounding steps of the narrowest float that lifting casts may change
ROUNDED_MARGIN = 8  # times the error of one process in the same precision
LOSSY = (0.05, 0.5)  # errors of loss and gradients that compressed communication may cause
BY_ROUNDING = "rounding of gradients decides, by the optimizer's step, over"  # begins a note
RATIOS = (2.0, 3.0, 4.0, 8.0, 0.5, 1 / 3, 0.25, 0.125, 0.0, -1.0)


class Actual(NamedTuple):
    """What a program computed: as `Reference`."""

    losses: list[float]
    gradients: list[Gradients]
    state: dict[str, Tensor]


class Worst(NamedTuple):
    """The largest relative error of several tensors, and the tensor with it."""

    error: float
    name: str


class Comparison(NamedTuple):
    """The worst errors of a program, and its first wrong tensor ("" where there is none).

    `arbitrary`: tensors that differ no more than a rounding step of the gradients changes them."""

    loss: float
    gradient: Worst
    parameter: Worst
    first_wrong: str
    arbitrary: tuple[str, ...] = ()


def backward_order(model: Model) -> list[str]:
    """Names of parameters in the order in which backward completes their gradients: the last ones of
    the last calls come first."""
    first_read: dict[str, tuple[int, int]] = {}
    for number, call in enumerate(model.calls):
        for position, name in enumerate(call.parameters):
            first_read.setdefault(name, (number, position))
    return sorted(first_read, key=lambda name: first_read[name], reverse=True)


def compare(
    expected: Reference, actual: Actual, order: Sequence[str] = (), rounded: Reference | None = None
) -> Comparison:
    """Compare losses and gradients of every step, and parameters and buffers after the last.

    `order`: names of gradients as backward completes them; the first wrong one is named by it.
    `rounded`: the reference with gradients a rounding step off (`reference.with_rounded_gradients`).
    """
    arbitrary = frozenset[str]()
    if rounded is not None:
        actual, arbitrary = _beyond_rounding(expected, actual, rounded)
    pairs = list(zip(actual.losses, expected.losses, strict=True))
    losses = [relative(abs(a - b), abs(b)) for a, b in pairs]
    gradients = [
        worst(a, b, GRADIENT_FLOOR)
        for a, b in zip(actual.gradients, expected.gradients, strict=True)
    ]
    parameter = worst(actual.state, expected.state, 1.0)
    faults = []
    for step, loss in enumerate(losses):
        if not loss <= TOLERANCE:
            a, b = pairs[step]
            faults.append(f"the loss of step {step + 1} is {a:.12g}, not {b:.12g}")
        fault = first_wrong(actual.gradients[step], expected.gradients[step], order, GRADIENT_FLOOR)
        if fault:
            faults.append(f"gradient of {fault} in step {step + 1}")
        if faults:
            break
    if not faults and parameter.error > TOLERANCE:
        faults.append(first_wrong(actual.state, expected.state, list(expected.state), 1.0))
    return Comparison(
        max(losses),
        max(gradients, key=lambda w: w.error),
        parameter,
        "; ".join(faults),
        tuple(sorted(arbitrary)),
    )


def _beyond_rounding(
    expected: Reference, actual: Actual, rounded: Reference
) -> tuple[Actual, frozenset[str]]:
    """What is off by more than `rounded` is, several times over; the rest is as expected. Also the names
    of tensors in the rest.

    An optimizer that divides by a gradient's size takes rounding, where the exact gradient is zero, for
    a direction; a chain of norms over tiny variances multiplies rounding by each one's 1/std.
    """
    names = set[str]()

    def settled(
        a: dict[str, Tensor], e: dict[str, Tensor], r: dict[str, Tensor], floor: float
    ) -> Gradients:
        off, noise = errors(a, e, floor), errors(r, e, floor)
        near = {n for n in off if TOLERANCE < off[n] <= ROUNDED_MARGIN * noise.get(n, 0.0)}
        near = {n for n in near if math.isfinite(off[n])}
        names.update(near)
        return {n: e[n] if n in near else t for n, t in a.items()}

    losses = [
        e if abs(a - e) <= ROUNDED_MARGIN * abs(r - e) else a
        for a, e, r in zip(actual.losses, expected.losses, rounded.losses, strict=True)
    ]
    steps = zip(actual.gradients, expected.gradients, rounded.gradients, strict=True)
    gradients = [settled(a, e, r, GRADIENT_FLOOR) for a, e, r in steps]
    state = settled(actual.state, expected.state, rounded.state, 1.0)
    return Actual(losses, gradients, state), frozenset(names)


def cast_fault(
    retained: Reference, lifted: Reference, narrowest: torch.dtype, shaken: Reference | None = None
) -> str:
    """What lifting casts changed beyond rounding of the narrowest float; "" for nothing. `shaken`: what
    a rounding step of every cast changes, where that may be more."""
    bound = CAST_EPSILONS * torch.finfo(narrowest).eps
    if shaken is not None:
        noise, gradient_noise = _first_step_errors(shaken, lifted)
        bound = max(bound, ROUNDED_MARGIN * noise, ROUNDED_MARGIN * gradient_noise.error)
    loss, gradient = _first_step_errors(retained, lifted)
    if max(loss, gradient.error) <= bound:
        return ""
    return (
        f"casts of the module to {str(narrowest).removeprefix('torch.')} change its loss by "
        f"{loss:.1e} and the gradient of {gradient.name} by {gradient.error:.1e}, more than rounding "
        f"({bound:.1e}): a program in float64 cannot be held against it"
    )


def _first_step_errors(one: Reference, other: Reference) -> tuple[float, Worst]:
    """Relative errors of the losses and of the gradients of the first step."""
    pairs = zip(one.losses, other.losses, strict=False)
    loss = max(relative(abs(a - b), abs(b)) for a, b in pairs)
    return loss, worst(one.gradients[0], other.gradients[0], CAST_FLOOR)


class Rounding(NamedTuple):
    """What may differ in a narrow precision: its type, and how far an optimizer moves a weight whose
    gradient is rounding alone."""

    dtype: torch.dtype
    steps_length: float
    lossy: bool = False  # what ranks send each other is compressed as well


class RoundedComparison(NamedTuple):
    """A comparison in a narrow precision, and the largest errors that pass."""

    comparison: Comparison
    allowed: tuple[float, float, float]


def compare_rounded(
    exact: Reference, rounded: Reference, actual: Actual, rounding: Rounding
) -> RoundedComparison:
    """Compare a program of narrow precision with float64: its errors may be a few times those of one
    process in the same precision (`rounded`), for sums are taken in another order.
    """
    order = Actual(rounded.losses, rounded.gradients, rounded.state)
    eager, ours = (_rounded_errors(exact, side) for side in (order, actual))
    steps = (
        1 if rounding.dtype in (torch.float16, torch.bfloat16) else 4
    )  # one process may be lucky
    floor = steps * torch.finfo(rounding.dtype).eps
    size = max((_size(t) for t in exact.state.values() if t.is_floating_point()), default=1.0)
    moved = 2 * rounding.steps_length / max(size, 1e-300)
    lossy_loss, lossy_gradient = LOSSY if rounding.lossy else (0.0, 0.0)
    allowed = (
        max(floor, ROUNDED_MARGIN * eager.loss, lossy_loss),
        max(floor, ROUNDED_MARGIN * eager.gradient.error, lossy_gradient),
        max(floor, moved + ROUNDED_MARGIN * eager.parameter.error),
    )
    return RoundedComparison(ours, allowed)


def _rounded_errors(exact: Reference, side: Actual) -> Comparison:
    losses = [relative(abs(a - b), abs(b)) for a, b in zip(side.losses, exact.losses, strict=True)]
    gradient = norm_error(side.gradients[0], exact.gradients[0])
    return Comparison(max(losses), gradient, worst(side.state, exact.state, 1.0), "")


def norm_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> Worst:
    """The norm of the difference of all tensors over theirs, and the tensor that adds most to it."""
    if actual.keys() != expected.keys() or not expected:
        return worst(actual, expected, 1.0)
    squares = {
        n: float((actual[n].double() - t.double()).square().sum()) for n, t in expected.items()
    }
    total = sum(float(t.double().square().sum()) for t in expected.values())
    error = relative(math.sqrt(sum(squares.values())), math.sqrt(total))
    return Worst(error, max(squares, key=lambda name: squares[name]))


def worst(actual: dict[str, Tensor], expected: dict[str, Tensor], floor: float) -> Worst:
    """The largest relative error and its tensor; a tensor that only one side has is infinitely off.

    The error of a tensor is max|a - b| / max|b|, where max|b| is taken to be at least `floor` times
    that of the largest floating-point tensor.
    """
    largest = Worst(0.0, "none")
    for name, error in errors(actual, expected, floor).items():
        if largest.name == "none" or not error <= largest.error:
            largest = Worst(error, name)
    if math.isinf(largest.error):
        largest = Worst(math.inf, _oddity(largest.name, actual, expected))
    return largest


def errors(
    actual: dict[str, Tensor], expected: dict[str, Tensor], floor: float
) -> dict[str, float]:
    """The relative error of every tensor that either side has."""
    sizes = {n: _size(t) for n, t in expected.items()}
    scale = max((sizes[n] for n, t in expected.items() if t.is_floating_point()), default=0.0)
    by_name = {}
    for name in (*expected, *(n for n in actual if n not in expected)):
        a, b = actual.get(name), expected.get(name)
        if a is None or b is None or a.shape != b.shape:
            by_name[name] = math.inf
            continue
        by_name[name] = relative(_size(a.double() - b.double()), max(sizes[name], floor * scale))
    return by_name


def _oddity(name: str, actual: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    if name not in actual or name not in expected:
        return f"{name} ({'missing' if name in expected else 'not expected'})"
    a, b = list(actual[name].shape), list(expected[name].shape)
    return name if a == b else f"{name} (shape {a}, not {b})"


def first_wrong(
    actual: dict[str, Tensor], expected: dict[str, Tensor], order: Sequence[str], floor: float
) -> str:
    """The first tensor, in `order`, beyond the tolerance, by how much it is wrong and where."""
    by_name = errors(actual, expected, floor)
    ranks = {name: rank for rank, name in enumerate(order)}
    for name in sorted(by_name, key=lambda n: ranks.get(n, len(ranks))):
        if not by_name[name] <= TOLERANCE:
            if name not in actual or name not in expected:
                return _oddity(name, actual, expected)
            if actual[name].shape != expected[name].shape:
                return _oddity(name, actual, expected)
            return f"{name} is off by {by_name[name]:.1e} ({locate(actual[name], expected[name])})"
    return ""


def locate(actual: Tensor, expected: Tensor) -> str:
    """Where a tensor differs most, which part of it differs, and by which factor if by one."""
    a, b = actual.double(), expected.double()
    difference = (a - b).abs().nan_to_num(math.inf, math.inf)
    wrong = difference > TOLERANCE * max(_size(b), 1e-300)
    if not a.dim():
        return f"{float(a):.6g}, not {float(b):.6g}{_factor(a, b)}"
    place = torch.unravel_index(difference.argmax(), difference.shape)
    index = [int(i) for i in place]
    text = f"{float(a[place]):.6g}, not {float(b[place]):.6g}, at {index}"
    ranges = [_span(wrong.nonzero()[:, dim], size) for dim, size in enumerate(wrong.shape)]
    region = "" if bool(wrong.all()) else f", all of them in [{', '.join(ranges)}]"
    return f"{text}; {int(wrong.sum())} of {wrong.numel()} elements{region}{_factor(a, b)}"


def _span(positions: Tensor, size: int) -> str:
    if not positions.numel():
        return ":"
    first, last = int(positions.min()), int(positions.max()) + 1
    return ":" if (first, last) == (0, size) else f"{first}:{last}"


def _factor(a: Tensor, b: Tensor) -> str:
    """A factor between the two where there is a simple one."""
    size = float((b * b).sum())
    ratio = float((a * b).sum()) / size if size else math.nan
    for factor in RATIOS:
        if abs(ratio - factor) < 1e-6 and _size(a - factor * b) <= 1e-6 * _size(b):
            return f"; {factor:.3g} times what it should be"
    return ""


def _size(tensor: Tensor) -> float:
    return float(tensor.double().abs().max()) if tensor.numel() else 0.0


def relative(difference: float, size: float) -> float:
    """A relative error; not-a-number counts as infinitely wrong."""
    if difference == 0.0:
        return 0.0
    error = difference / max(size, 1e-300)
    return math.inf if math.isnan(error) else error
