"""Turn an exception from the user's forward into a TraceError that names their file and line."""

from __future__ import annotations

import linecache
import os
import sysconfig
import traceback
from types import TracebackType

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ..errors import TraceError

_HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
_INSTALLED = tuple(sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib"))
_DATA_DEPENDENT = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
)


def _inside(file: str, folders: tuple[str, ...]) -> bool:
    return any(file.startswith(folder + os.sep) for folder in folders) or file.startswith("<")


def place(trace: TracebackType | None) -> str:
    """`file:line: code` of the innermost frame of the user's own code, else of a library's."""
    return _innermost([(f.f_code.co_filename, line) for f, line in traceback.walk_tb(trace)])


def here() -> str:
    """The same for the code that is running now."""
    frames = [(f.f_code.co_filename, line) for f, line in traceback.walk_stack(None)]
    return _innermost(frames[::-1])


def _innermost(frames: list[tuple[str, int]]) -> str:
    located = [(file if file[:1] == "<" else os.path.abspath(file), line) for file, line in frames]
    outside = [(f, n) for f, n in located if not _inside(f, (_TORCH,)) and not _ours(f)]
    own = [(f, n) for f, n in outside if not _inside(f, _INSTALLED)]
    return line_text(*(own or outside)[-1]) if own or outside else "the model"


def _ours(file: str) -> bool:
    return _inside(file, (os.path.join(_HERE, "ir"), os.path.join(_HERE, "api")))


def line_text(file: str, line: int) -> str:
    code = linecache.getline(file, line).strip()
    return f"{file}:{line}" + (f": `{code}`" if code else "")


def trace_error(error: BaseException) -> TraceError:
    """What to tell the user about an exception that their forward raised while it was recorded."""
    where = place(error.__traceback__)
    if isinstance(error, _DATA_DEPENDENT):
        operator = getattr(error, "func", None)
        what = f"({operator}) " if operator is not None else ""
        return TraceError(
            f"{where}: the computation depends on values of tensors {what}which a compiled program "
            "cannot know in advance; use torch.where or a fixed size there, or compute it outside "
            "the model (for mixtures of experts: the grouped-mm implementation, not the eager one; "
            "for layers skipped at random: layerdrop 0)"
        )
    text = str(error).strip().split("\n")[0] or "no message"
    return TraceError(f"{where}: {type(error).__name__}: {text}")
