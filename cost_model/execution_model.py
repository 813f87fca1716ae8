"""How programs are run, beyond what a plan says: what overlaps, what is fused, what is kept in which
precision. The defaults are what generated programs do; published runs of other frameworks differ."""

from __future__ import annotations

import msgspec

from ..ir.loops import Work

COMPILED: tuple[Work, ...] = ("pointwise", "reduce")  # what a compiler fuses


class Practice(msgspec.Struct, frozen=True):
    """`overlap`: batch-axis traffic runs beside compute, and sends between stages too.
    `fused`: kinds of work whose neighbouring operators are one kernel.
    `rematerialised`: fused kernels of backward make values again that only they read, and write over
    what dies.
    `fused_attention`: scores are never written to memory.
    `dispatch_seconds`: time of the host per operator, or per kernel of a `compiled` program; a device
    never finishes before its host.
    `matrix_dtype`: type that products of matrices run in, if not their operands'.
    `gradient_item_bytes`: bytes of an accumulated gradient's element, if not its parameter's.
    `sent_in_place`: gradients are there all the time, and are sent, as all else, without a copy.
    `lets_go`: what a micro-batch saves goes as its backward reads it, call by call, not at its end.
    `states_over_all`: zero also spreads states over the other axes that a weight is whole along.
    `chunks`: pieces of the model per pipeline stage (interleaved 1F1B).
    `even_layers`: stages hold equally many layers, instead of equally much time.
    `recompute_every`: of the layers that may recompute, every how manieth does.
    """

    overlap: bool = False
    fused: tuple[Work, ...] = ()
    rematerialised: bool = False
    fused_attention: bool = True
    dispatch_seconds: float = 0.0
    compiled: bool = False
    matrix_dtype: str | None = None
    gradient_item_bytes: int | None = None
    sent_in_place: bool = False
    lets_go: bool = True
    states_over_all: bool = False
    chunks: int = 1
    even_layers: bool = False
    recompute_every: int = 1


GENERATED = Practice()
