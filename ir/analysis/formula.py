"""An operator's flops and bytes as sympy expressions of its loops, from the same declaration."""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from ..model.loops import Dims, Loops, Site
from ..model.tensor import ITEM_BYTES

if TYPE_CHECKING:
    import sympy

MAXIMUM_DENOMINATOR = 10**9


def flops_formula(loops: Loops) -> sympy.Expr:
    """Floating-point operations, in positive integer symbols named as the loops: `2*k*m*n`."""
    from sympy import Mul, Rational

    count = Fraction(loops.flops).limit_denominator(MAXIMUM_DENOMINATOR)
    return Mul(
        Rational(count.numerator, count.denominator), *(_symbol(loop.name) for loop in loops.loops)
    )


def bytes_formula(loops: Loops, site: Site) -> sympy.Expr:
    """Bytes of everything read and made at the site, each tensor once: `4*k*m + 4*k*n + 4*m*n`."""
    from sympy import Add, Integer

    tensors = zip((*loops.inputs, *loops.outputs), (*site.operands, *site.results), strict=True)
    return Add(
        *(Integer(ITEM_BYTES[type_.dtype]) * _elements(dims) for dims, type_ in tensors if type_)
    )


def sizes(loops: Loops) -> dict[sympy.Symbol, int]:
    """What to substitute for the symbols: `flops_formula(loops).subs(sizes(loops))`."""
    return {_symbol(loop.name): loop.size for loop in loops.loops}


def _elements(dims: Dims) -> sympy.Expr:
    from sympy import Mul

    return Mul(*(_symbol(name) for dim in dims for name in dim))


def _symbol(name: str) -> sympy.Symbol:
    from sympy import Symbol

    return Symbol(name, positive=True, integer=True)
