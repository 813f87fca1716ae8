"""Turn an exception from the user's forward into a TraceError that names file and line."""

from __future__ import annotations

import inspect
import linecache
import os
import sys
import sysconfig
import traceback
from functools import cache
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch

from ..errors import TraceError
from .torch_private import DATA_DEPENDENT_ERRORS

_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_TORCH_ROOT = os.path.dirname(os.path.abspath(torch.__file__))
# folders of installed packages: this Python's, and those that it takes from elsewhere (the user's, the
# system's under a virtual environment, PYTHONPATH)
PACKAGES = (
    *(sysconfig.get_path(kind) for kind in ("purelib", "platlib")),
    *(p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")),
)
INSTALLED = (*PACKAGES, sysconfig.get_path("stdlib"))


def _inside(file: str, folders: tuple[str, ...]) -> bool:
    return any(file.startswith(folder + os.sep) for folder in folders) or file.startswith("<")


def user_location(trace: TracebackType | None) -> str:
    """`file:line: code` of the innermost frame of the user's own code, else of a library's."""
    return _innermost([(f.f_code.co_filename, line) for f, line in traceback.walk_tb(trace)])


class CodeLine(NamedTuple):
    """A line of a file."""

    file: str
    number: int

    def __str__(self) -> str:
        return line_text(os.path.abspath(self.file), self.number)


def current_line() -> CodeLine | None:
    """Like `user_location`, for the code that is running now under a trace, or None outside of one."""
    frame: FrameType | None = sys._getframe(1)
    user: CodeLine | None = None
    library: CodeLine | None = None
    of_trace: CodeLine | None = None
    while frame is not None:
        kind = _kind(frame.f_code.co_filename)
        if kind == PACKAGE:
            if user is not None:
                return user  # not of the code that asked for the trace, which is further out
            of_trace = library
        elif kind == USER and user is None:
            user = CodeLine(frame.f_code.co_filename, frame.f_lineno)
        elif kind == LIBRARY and library is None:
            library = CodeLine(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return of_trace


def current_user_line() -> str:
    return str(current_line() or "the model")


PACKAGE, TORCH, LIBRARY, USER = "package", "torch", "library", "user"


@cache
def _kind(file: str) -> str:
    """Whose code a file is; code without a file, such as `<frozen runpy>`, counts as torch's."""
    path = file if file[:1] == "<" else os.path.abspath(file)
    if file[:1] != "<" and _in_package(path):
        return PACKAGE
    if _inside(path, (_TORCH_ROOT,)):
        return TORCH
    return LIBRARY if _inside(path, INSTALLED) else USER


def is_users(file: str) -> bool:
    """Whether a file has code of the user's, not of a library, torch or this package."""
    return _kind(file) == USER


def _innermost(frames: list[tuple[str, int]]) -> str:
    located = [(file if file[:1] == "<" else os.path.abspath(file), line) for file, line in frames]
    outside = [(f, n) for f, n in located if not _inside(f, (_TORCH_ROOT,)) and not _in_package(f)]
    of_user = [(f, n) for f, n in outside if not _inside(f, INSTALLED)]
    return line_text(*(of_user or outside)[-1]) if of_user or outside else "the model"


def in_torch(file: str) -> bool:
    """Whether a file is one of torch, except for what runs functions of users that it decorates."""
    return _inside(file, (_TORCH_ROOT,)) and not file.endswith("_contextlib.py")


def _in_package(file: str) -> bool:
    return _inside(file, (os.path.join(_PACKAGE_ROOT, "ir"), os.path.join(_PACKAGE_ROOT, "api")))


def line_text(file: str, line: int) -> str:
    code = linecache.getline(file, line).strip()
    return f"{file}:{line}" + (f": `{code}`" if code else "")


def depends_on_data(error: BaseException) -> bool:
    """Whether an error says that a value or a size depends on data."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # imports sympy

    return isinstance(error, (*DATA_DEPENDENT_ERRORS, GuardOnDataDependentSymNode))


def trace_error(error: BaseException) -> TraceError:
    """The TraceError for an exception that the user's forward raised while it was recorded."""
    where = user_location(error.__traceback__)
    if depends_on_data(error):
        operator = getattr(error, "func", None)
        detail = f"({operator}) " if operator is not None else ""
        return TraceError(
            f"{where}: the computation depends on values of tensors {detail}which a compiled "
            "program cannot know in advance; use torch.where or a fixed size there, or compute it "
            "outside the model (for mixtures of experts: the grouped-mm implementation, not the "
            "eager one; for layers skipped at random: layerdrop 0)"
        )
    text = str(error).strip().split("\n")[0] or "no message"
    if isinstance(error, TypeError) and "forward()" in text:
        text += "; a tuple is the model's positional arguments, a dict its keyword arguments"
    return TraceError(f"{where}: {type(error).__name__}: {text}")


def definition(function: Any) -> str:
    """`file:line: code` of where a function is defined; its name where that is not known."""
    inner = inspect.unwrap(getattr(function, "func", function))
    code = getattr(getattr(inner, "__func__", inner), "__code__", None)
    code = code or getattr(vars(type(inner)).get("__call__"), "__code__", None)
    return line_text(code.co_filename, code.co_firstlineno) if code else repr(function)
