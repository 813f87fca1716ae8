"""Execution model: what a framework overlaps, fuses and stores in which precision, beyond the plan.

The defaults describe generated programs; published runs of other frameworks differ."""

from __future__ import annotations

import msgspec

from ..ir.model.loops import Work

COMPILED: tuple[Work, ...] = ("pointwise", "reduce")  # what a compiler fuses


class ExecutionModel(msgspec.Struct, frozen=True):
    """How a framework executes a plan.

    `overlap`: data-parallel collectives and stage transfers overlap with compute. `fused`: kinds of
    work whose neighbouring operators run as one kernel. `rematerialised`: fused backward kernels
    recompute values that only they read, and reuse the memory of operands that die.
    `fused_attention`: scores are never written to memory. `dispatch_seconds`: host time per
    operator, or per kernel of a `compiled` program; a device never finishes before its host.
    `matrix_dtype`: dtype that matrix products run in; None: that of their operands.
    `gradient_item_bytes`: bytes per element of an accumulated gradient; None: those of its
    parameter. `contiguous_buffers`: gradients live in persistent flat buffers; nothing is copied to
    be sent. `frees_per_call`: saved activations are freed call by call during backward, not at its
    end. `shards_replicated_states`: ZeRO also shards optimizer states along the model axes over
    which the weight is replicated. `chunks`: model chunks per pipeline stage (interleaved 1F1B).
    `even_layers`: stages have equal layer counts instead of balanced times. `recompute_every`:
    every n-th of the layers that may recompute does."""

    overlap: bool = False
    fused: tuple[Work, ...] = ()
    rematerialised: bool = False
    fused_attention: bool = True
    dispatch_seconds: float = 0.0
    compiled: bool = False
    matrix_dtype: str | None = None
    gradient_item_bytes: int | None = None
    contiguous_buffers: bool = False
    frees_per_call: bool = True
    shards_replicated_states: bool = False
    chunks: int = 1
    even_layers: bool = False
    recompute_every: int = 1


GENERATED = ExecutionModel()
