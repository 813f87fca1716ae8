"""A bias is added inside the product, as torch's own `linear` does.

Local forms add a bias as an operator of its own, so that sums over devices may come in between. Where
nothing does, a pass over the product is saved, and in half precision it rounds once, not twice: what
one process computes, to the last bit.
"""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from ...model.model import Function, Op

FLOATS = ("bfloat16", "float16", "float32", "float64")
RESHAPE = ("aten.reshape.default", "aten.view.default")


def fuse_bias(function: Function, saved: frozenset[int] = frozenset()) -> Function:
    """`add(reshape(mm(x, w)), bias)` as `reshape(addmm(bias, x, w))`; values in `saved` stay."""
    uses = Counter(v for op in function.ops for v in op.operands())
    uses.update(o.value for o in function.outputs)
    uses.update(i.gradient for i in function.inputs if i.gradient is not None)
    made_by = {r: n for n, op in enumerate(function.ops) for r in op.results if r >= 0}
    ops: list[Op | None] = list(function.ops)
    for number, op in enumerate(function.ops):
        chain = _chain(function, op, made_by, uses, saved)
        if chain is None:
            continue
        first, bias = chain[0], op.args[1]
        product = function.ops[first]
        result = op.results if len(chain) == 1 else product.results
        ops[first] = replace(
            product, target="aten.addmm.default", args=(bias, *product.args), results=result
        )
        if len(chain) == 2:
            ops[chain[1]] = replace(function.ops[chain[1]], results=op.results)
        ops[number] = None
    gone = [n for n, op in enumerate(ops) if op is None]
    if not gone:
        return function
    forward = function.forward - sum(n < function.forward for n in gone)
    return replace(function, ops=tuple(op for op in ops if op is not None), forward=forward)


def _chain(
    function: Function, op: Op, made_by: dict[int, int], uses: Counter[int], saved: frozenset[int]
) -> list[int] | None:
    """Numbers of the product, and of the reshape after it, that an addition of a bias ends."""
    if op.target != "aten.add.Tensor" or op.kwargs or len(op.operands()) != 2:
        return None
    value, bias = op.operands()
    types, chain = function.types, list[int]()
    while value in made_by and uses[value] == 1 and value not in saved and len(chain) < 2:
        maker = function.ops[made_by[value]]
        chain.insert(0, made_by[value])
        if maker.target == "aten.mm.default":
            fits = types[value].dtype in FLOATS and types[bias].shape == types[value].shape[-1:]
            same = types[bias].dtype == types[value].dtype == types[op.results[0]].dtype
            before = made_by.get(bias, -1) < chain[0]
            return chain if fits and same and before else None
        if maker.target not in RESHAPE or types[value].shape != types[op.results[0]].shape:
            return None
        value = maker.operands()[0]
    return None
