"""Mixture of experts: tokens, experts and the hidden units of every expert are independent."""

from __future__ import annotations

from ..model.loops import Loops, OperatorCollective, RoutedRows, Site, declare, loops
from ..model.tensor import ITEM_BYTES
from .pattern import integer, is_tensor, literal

EXPERTS = (("e",),)
# rows of the first weight, by the order of columns that the activation's text says
ROWS = {"halves": "(c! f)", "interleaved": "(f c!)", "single": "f"}


@declare("plait.experts.default", shard_aware=True)
def experts(site: Site) -> Loops:
    """x, choice, share, gate_up, down, activation, experts, places, bias -> x

    One axis may split tokens and experts together: tokens travel to their experts and back."""
    rows = _rows(site, 5)
    bias = f", [e {rows}]" if is_tensor(site, 8) else ""
    text = f"[n h!], [n k!], [n k!], [e {rows} h!], [e o f]{bias} -> [n o]"
    # rows are copied to their expert (2 h), multiplied (h, 2 f), activated (3 f), multiplied (f, h) and
    # added up (h)
    return _declared(text, site, first=0, products=(1, 1), rows=2, streams=(5, 6))


@declare("plait.experts_backward.default", "plait.experts_backward_bias.default", shard_aware=True)
def experts_backward(site: Site) -> Loops:
    """gradient, x, choice, share, gate_up, … -> of x, share, gate_up, down"""
    rows = _rows(site, 6)
    weights, bias = f"[e {rows} h!], [e o f]", f", [e {rows}]" if is_tensor(site, 9) else ""
    text = f"[n o], [n h!], [n k!], [n k!], {weights}{bias} -> [n h!], [n k!], {weights}{bias}"
    # the first product again, then two for each of both; gradients to experts (2 h), two products each
    # (h, f, f, h; 2 f, h, 2 f, h), activation (5 f), sum (h)
    return _declared(text, site, first=1, products=(3, 2), rows=4, streams=(7, 11))


def _rows(site: Site, position: int) -> str:
    text = literal(site, position)
    assert isinstance(text, str)
    return ROWS[text.partition(":")[0] if ":" in text else "halves"]


def _declared(
    text: str,
    site: Site,
    first: int,
    products: tuple[int, int],
    rows: int,
    streams: tuple[float, float],
) -> Loops:
    """`products` with a token's width and with the result's; `rows` travel per choice of a token;
    `streams`: how often a row of a token's width, and one of hidden units, is read or written."""
    x, choice, down = (site.operands[first + i] for i in (0, 1, 4))
    wide, out = x.shape[1], down.shape[1]
    # a token meets its choices of all the experts; the loops walk every expert that is here
    count = integer(site, first + 6)
    width = 2 * products[0] * wide + products[1] * out
    item, choices = ITEM_BYTES[x.dtype], choice.shape[1]
    rate = choices / count
    # backward repeats the first product, of a token's width; it reads tokens, and hidden units before
    # the activation (2 f) and after it
    repeated = 2 * wide / width if first else 0.0
    travel = OperatorCollective("all_to_all", (("n",), ("h",)), item, rows, choices)
    return loops(
        text,
        site,
        linear=((0,),) if first else (),
        work="gemm",
        flops=width / (count * wide * out),
        shard_offsets=((first + 7, EXPERTS),),
        pairs=(("n", "e"),),
        exchanges=(travel,),
        streamed=tuple((("n", "e", loop), rate * n) for loop, n in zip("hf", streams, strict=True)),
        routing=RoutedRows(choices, count, (("h", 1.0), ("f", 3.0)), repeated),
    )
