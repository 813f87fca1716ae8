"""A number with its formula: one arithmetic for prices and their explanation.

Pricing functions are written once. Over plain numbers they price; over quantities the same lines also
write down the formula:

    bytes / rate                          2e9 / 1e12                  0.002
    Quantity bytes / Quantity rate        amount("B", 2e9) / ...      0.002, "B/W", {"B": 2e9}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

import msgspec

from ..ir.devices.curve import Curve

SUM, PRODUCT, ATOM = range(3)  # how tightly the outermost operation of a formula binds


class Quantity(msgspec.Struct, frozen=True):
    """`value` is `formula` at `amounts` and at constants of the cluster, which a legend explains.
    `source`: where measured numbers in it come from; `binding` of its outermost operation."""

    value: float
    formula: str
    amounts: Mapping[str, float] = {}
    source: str = ""
    binding: int = ATOM

    def __add__(self, other: Quantity | float) -> Quantity:
        if isinstance(other, Quantity):
            text = f"{self.formula} + {other.formula}"
            return self._with(self.value + other.value, text, SUM, other)
        return self + _literal(other) if other else self

    def __radd__(self, other: float) -> Quantity:
        return _literal(other) + self if other else self

    def __sub__(self, other: Quantity | float) -> Quantity:
        other = _as_quantity(other)
        text = f"{self.formula} - {other._inside(PRODUCT)}"
        return self._with(self.value - other.value, text, SUM, other)

    def __mul__(self, other: Quantity | float) -> Quantity:
        other = _as_quantity(other)
        text = f"{self._inside(PRODUCT)}*{other._inside(PRODUCT)}"
        return self._with(self.value * other.value, text, PRODUCT, other)

    def __rmul__(self, other: float) -> Quantity:
        return self if other == 1 else _literal(other) * self

    def __truediv__(self, other: Quantity | float) -> Quantity:
        other = _as_quantity(other)
        text = f"{self._inside(PRODUCT)}/{other._inside(ATOM)}"
        return self._with(self.value / other.value, text, PRODUCT, other)

    def __floordiv__(self, other: Quantity | float) -> Quantity:
        other = _as_quantity(other)
        text = f"floor({self._inside(PRODUCT)}/{other._inside(ATOM)})"
        return self._with(self.value // other.value, text, ATOM, other)

    def __lt__(self, other: Quantity) -> bool:
        return self.value < other.value

    def __gt__(self, other: Quantity) -> bool:
        return self.value > other.value

    def _inside(self, binding: int) -> str:
        """The formula as an operand of an operation that binds so."""
        return self.formula if self.binding >= binding else f"({self.formula})"

    def _with(self, value: float, formula: str, binding: int, other: Quantity) -> Quantity:
        amounts = {**self.amounts, **other.amounts}
        return Quantity(value, formula, amounts, self.source or other.source, binding)


Number = TypeVar("Number", float, Quantity)
Whole = TypeVar("Whole", int, Quantity)  # bytes, counts


def amount(name: str, value: float) -> Quantity:
    """An amount of the plan, under its symbol."""
    return Quantity(value, name, {name: value})


def constant(beside: Number, name: str, value: float) -> Number:
    """A constant of the cluster, as the kind of number that it meets in a formula."""
    return cast(Number, Quantity(value, name) if isinstance(beside, Quantity) else value)


def known(beside: Whole, name: str, value: int) -> Whole:
    """An amount of the plan, as the kind of number that it meets in a formula."""
    return cast(Whole, amount(name, value) if isinstance(beside, Quantity) else value)


def curve_seconds(curve: Curve, amount: Number) -> Number:
    """Seconds read off a measured curve at an amount (bytes or flops, as the curve is by)."""
    if not isinstance(amount, Quantity):
        return curve.at(amount)
    name, seconds = f"t_{curve.name}", curve.at(amount.value)
    amounts = {**amount.amounts, name: seconds}
    return Quantity(seconds, name, amounts, f"measured: {curve.source}")


def at_least_zero(number: Number) -> Number:
    """The number, or zero where it is negative."""
    if isinstance(number, Quantity):
        text = f"Max(0, {number.formula})"
        return Quantity(max(0.0, number.value), text, number.amounts, number.source)
    return max(0.0, number)


def longest(one: Quantity, other: Quantity) -> Quantity:
    """The larger of two, with both formulas."""
    text = f"Max({one.formula}, {other.formula})"
    amounts = {**one.amounts, **other.amounts}
    return Quantity(max(one.value, other.value), text, amounts, one.source or other.source)


def share_of(amount: Whole, fraction: float) -> Whole:
    """The whole part of a fraction of a positive amount."""
    if isinstance(amount, Quantity):
        text = f"floor({(fraction * amount).formula})"
        return Quantity(int(fraction * amount.value), text, amount.amounts, amount.source)
    return int(fraction * amount)


def _literal(number: float) -> Quantity:
    return Quantity(number, repr(number), binding=ATOM if number >= 0 else SUM)


def _as_quantity(number: Quantity | float) -> Quantity:
    return number if isinstance(number, Quantity) else _literal(number)
