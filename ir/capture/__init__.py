"""Trace a PyTorch model into the IR: the only package of plait.ir that imports torch.

Names load when they are asked for: ranks take parts of this package and need no tracer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..late_names import late_names

if TYPE_CHECKING:
    from .operators.elementary import call_key as call_key
    from .outputs import ForwardOutputs as ForwardOutputs
    from .outputs import evaluating as evaluating
    from .sources.source import Source as Source
    from .sources.source import load_source as load_source
    from .sources.source import materialize as materialize
    from .tracing import TRACE_PASSES as TRACE_PASSES
    from .tracing import trace as trace
    from .tracing import trace_outputs as trace_outputs

__getattr__ = late_names(
    __name__,
    {
        "ForwardOutputs": ".outputs",
        "Source": ".sources.source",
        "TRACE_PASSES": ".tracing",
        "call_key": ".operators.elementary",
        "evaluating": ".outputs",
        "load_source": ".sources.source",
        "materialize": ".sources.source",
        "trace": ".tracing",
        "trace_outputs": ".tracing",
    },
)
