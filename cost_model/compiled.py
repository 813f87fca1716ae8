"""Functions that numba compiles, and a cache of them in a directory of the user's own.

numba's own cache lies beside the sources, where whoever can write there runs code, and damage is an
error until it is deleted by hand. Here a compiled function is a file of its own, named by what it was
made from (its code and that of the compiled functions that it calls, types, versions, processor) and
begun by its checksum. Whatever is wrong with a file, it is removed and the function is compiled again.

Functions that compiled functions alone call (`inner`) are linked into each caller before it is
optimized. numba would optimize and load each by itself first: every operation once more for each call
above it. No function allocates, so that references to arrays need not be counted: a seventh of the time
to compile.

Names of numba's that are not public: `Dispatcher._cache`, which decides where compiled functions come
from, and `CompileResult._reduce` and `_rebuild`, their form on disk; without them every process would
compile all functions. `Dispatcher.get_call_template` and `_compile_for_args`: the form that a call from
compiled code takes, and what a call from Python finds; without them constants make forms of their own,
and a call of an inner function from Python ends the process. `JITCodeLibrary._optimize_functions`,
`_optimize_final_module` and `_finalize_final_module`, the steps that inner functions leave out;
`Dispatcher.add_overload`, which enters a form under its address; `Flags.no_compile`; the option `_nrt`.
"""

from __future__ import annotations

import os
import pickle
import stat
import sys
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast

import llvmlite  # pyright: ignore[reportMissingTypeStubs]
import numba
import numpy as np
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult
from numba.core.dispatcher import Dispatcher

from ..ir.files.whole_file import write_whole

F = TypeVar("F", bound=Callable[..., Any])
DIGEST_BYTES = 32
DIRECTORY = "~/.cache/plait/numba"
njit: Any = cast("Any", numba).njit
numba_types: Any = cast("Any", numba).types
NO_REFERENCES = {"_nrt": False}  # compiled functions allocate nothing: arrays are their callers'
VERSIONS = (sys.version, numba.__version__, llvmlite.__version__, np.__version__)


def compiled(function: F) -> F:
    """Compile a function with numba when it is first called, or load it from the cache."""
    dispatcher = _widened(njit(**NO_REFERENCES, no_cfunc_wrapper=True)(function))
    dispatcher._cache = FunctionCache(dispatcher)
    return dispatcher


def inner(function: F) -> F:
    """Compile a function that compiled functions alone call, and no further than into what they link in:
    they optimize it together with themselves. Called from Python it is a TypeError."""
    linked = njit(
        **NO_REFERENCES,
        pipeline_class=LinkedCompiler,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
    )
    dispatcher = _widened(linked(function))
    dispatcher.add_overload = partial(_insert_linked, dispatcher)
    dispatcher._compile_for_args = partial(_refuse, function.__name__)
    return dispatcher


class LinkedLibrary(JITCodeLibrary):
    """Code that is neither optimized nor loaded by itself, but linked into other libraries."""

    def _optimize_functions(self, ll_module: Any) -> None:
        codegen: Any = self._codegen
        ll_module.data_layout = codegen._data_layout

    def _optimize_final_module(self) -> None:
        return

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class LinkedCompiler(Compiler):
    """Compiles a function into a library of its own that is only linked."""

    def __init__(self, *context: Any) -> None:
        super().__init__(*context)
        state: Any = self.state
        state.flags.no_compile = True
        state.library = LinkedLibrary(state.targetctx.codegen(), "linked")


def _insert_linked(dispatcher: Any, result: Any) -> None:
    """Enter a form under a key, since it has no address that could be one."""
    entered = result._replace(entry_point=object())
    dispatcher.targetctx.insert_user_function(
        entered.entry_point, entered.fndesc, [entered.library]
    )
    dispatcher.overloads[tuple(entered.signature.args)] = entered


def _refuse(name: str, *_: object, **__: object) -> None:
    raise TypeError(f"{name} is called by compiled functions only")


def _widened(dispatcher: Any) -> Any:
    """A dispatcher with one form for all constants among the arguments of a call."""
    template = dispatcher.get_call_template

    def of_types(args: Any, keywords: Any) -> Any:
        widened: dict[str, Any] = {
            name: numba_types.unliteral(kind) for name, kind in keywords.items()
        }
        return template(tuple([numba_types.unliteral(kind) for kind in args]), widened)

    dispatcher.get_call_template = of_types
    return dispatcher


class FunctionCache:
    """The compiled forms of one function by its argument types, as numba's dispatcher asks for them."""

    def __init__(self, dispatcher: Any) -> None:
        self.dispatcher = dispatcher

    @property
    def cache_path(self) -> str:
        return str(Path(DIRECTORY).expanduser())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The function for these types; None where it is not in the cache, or not whole."""
        target_context.refresh()
        path = self._path(sig, target_context.codegen())
        if path is None:
            return None
        try:
            data = path.read_bytes()
            whole = data[:DIGEST_BYTES] == sha256(data[DIGEST_BYTES:]).digest()
            if whole:
                payload = pickle.loads(data[DIGEST_BYTES:])
                rebuild = cast("Callable[..., Any]", CompileResult._rebuild)  # pyright: ignore
                return rebuild(target_context, *payload)
        except FileNotFoundError:
            return None
        except Exception:  # of unpickling and linking: whatever it is, the file is of no use
            pass
        remove(path)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compiled function, whole or not at all; a full disk is no reason to fail, nor is a
        library without its object, as an interrupt during compilation leaves it."""
        path = self._path(sig, data.codegen)
        if path is None or data.lifted or data.library.has_dynamic_globals:
            return
        try:
            value = pickle.dumps(data._reduce(), protocol=pickle.HIGHEST_PROTOCOL)
            write_whole(path, sha256(value).digest() + value)
        except (OSError, RuntimeError):
            return

    def flush(self) -> None:
        """Part of numba's interface."""

    enable = disable = flush

    def _path(self, sig: Any, codegen: Any) -> Path | None:
        """The file of the function for these types; None without a directory of the user's own."""
        directory = private_directory(Path(self.cache_path))
        if directory is None:
            return None
        parts = (*sources(self.dispatcher, set()), str(sig), repr(codegen.magic_tuple()), *VERSIONS)
        name = self.dispatcher.py_func.__name__
        return directory / f"{name}-{sha256(repr(parts).encode()).hexdigest()[:32]}"


def remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        return


def private_directory(directory: Path) -> Path | None:
    """The directory, made if need be; None where its owner is another or others can write to it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except (OSError, RuntimeError):
        return None
    own = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o022
    return directory if own and os.access(directory, os.W_OK) else None


def sources(dispatcher: Any, seen: set[str]) -> Iterator[str]:
    """What a function is compiled from: its code, the constants it reads, the functions it calls."""
    function: FunctionType = dispatcher.py_func
    name = f"{function.__module__}.{function.__qualname__}"
    if name in seen:
        return
    seen.add(name)
    yield f"{name} {code_text(function.__code__)} {function.__defaults__!r}"
    for read in function.__code__.co_names:
        value = function.__globals__.get(read)
        if isinstance(value, Dispatcher):
            yield from sources(value, seen)
        elif isinstance(value, int | float | str | tuple | np.dtype):
            yield f"{read}={value!r}"


def code_text(code: CodeType) -> str:
    """Code apart from where it stands."""
    constants = [code_text(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code, code.co_names, code.co_varnames, constants))
