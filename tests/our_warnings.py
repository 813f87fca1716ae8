"""Warnings of libraries that calls in our files cause are errors, as under `-W error` for those alone.

The innermost frame outside of libraries says whose call it is: a module that users wrote may warn.
"""

import linecache
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from plait.tests.paths import ROOT

LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
TESTS = str(ROOT / "tests")


@contextmanager
def our_warnings_are_errors() -> Iterator[None]:
    """Raise every warning of a library under a call of ours; others go where they went."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        default_show = warnings.showwarning

        def show(message, category, filename, lineno, file=None, line=None) -> None:
            if _is_ours(sys._getframe(1)):
                raise message
            default_show(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def _is_ours(frame: FrameType | None) -> bool:
    """Whether the innermost frame outside of libraries is a call in our files, other than our own
    `warnings.warn`."""
    while frame is not None and _is_library(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return False
    path = frame.f_code.co_filename
    said = "warn(" in linecache.getline(path, frame.f_lineno)
    return path.startswith(f"{ROOT}/") and not path.startswith(f"{TESTS}/") and not said


def _is_library(path: str) -> bool:
    return path.startswith(LIBRARIES) or path.startswith("<frozen")
