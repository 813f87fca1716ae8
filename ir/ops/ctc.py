"""Connectionist temporal classification: samples are independent, all else is whole."""

from __future__ import annotations

from ..model.loops import Loops, Site, declare, loops

READ = "[t! b c!], [b s!], [b], [b]"
WORK = 12  # operations per frame and state of an alignment: logarithms of sums of three


@declare("plait.ctc.default")
def ctc(site: Site) -> Loops:
    """x, labels, frames, lengths, blank, zero_infinity -> losses"""
    flops = WORK * 2 / site.operands[0].shape[2]
    return loops(f"{READ} -> [b]", site, work="reduce", flops=flops)


@declare("plait.ctc_backward.default")
def ctc_backward(site: Site) -> Loops:
    """gradient, x, labels, frames, lengths, blank, zero_infinity -> of x"""
    flops = 2 * WORK * 2 / site.operands[1].shape[2]
    return loops(f"[b], {READ} -> [t! b c!]", site, linear=((0,),), work="reduce", flops=flops)
