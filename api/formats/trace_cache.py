"""Traces of `hf:` configurations by content, in the user's private cache.

A second plan of a configuration traces nothing, and imports neither torch nor transformers. A key has
the configuration's bytes, the samples, tokens and precision of the trace, the versions of what traces,
and the state of Plait's sources. A factory may run any code, so it is traced each time (`plait trace`
writes its model to a file).
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from ...ir.errors import FileError
from ...ir.files.private_cache import PrivateCache
from ...ir.files.text_value import decode_text, encode_text
from ...ir.model.model import Model

MOST_TRACES = 64
PACKAGE = Path(__file__).resolve().parent.parent.parent
TRACED_BY = ("ir", "api/formats")  # folders of the package
LIBRARIES = ("torch", "transformers", "msgspec")


def cached_trace(configuration: Path, question: object, trace: Callable[[], Model]) -> Model:
    """The model that `trace` gives of a configuration file under a `question`, from the cache if it is
    there unharmed. Without a cache that is the user's alone, or room in it, `trace` answers."""
    try:
        traces = PrivateCache(user_cache_directory() / "traces", MOST_TRACES)
        key = f"{configuration.read_bytes()!r}\n{question}\n{_tracer()}"
    except (FileError, OSError, RuntimeError):  # others can write to it, or no home, or no file
        return trace()
    model = _model(traces.get(key))
    if model is None:
        model = trace()
        data = msgspec.msgpack.encode(model, enc_hook=encode_text)
        if _model(data) == model:
            traces.try_put(key, data)
    return model


def _model(data: bytes | None) -> Model | None:
    """The model in the bytes of an entry; None where there is none."""
    try:
        return msgspec.msgpack.decode(data or b"", type=Model, dec_hook=decode_text)
    except (msgspec.MsgspecError, ValueError):
        return None


def user_cache_directory() -> Path:
    """Where this user's programs cache files (as torch's `user_cache_dir`, which would load torch).

    Raises RuntimeError where the user has no home.
    """
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "plait"
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "plait"


@cache
def _tracer() -> str:
    """What a trace depends on beside its source: versions, and Plait's sources as they are now."""
    versions = [f"python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    files = sorted(path for folder in TRACED_BY for path in (PACKAGE / folder).rglob("*.py"))
    states = ((path, path.stat()) for path in files)
    versions += [f"{path} {state.st_size} {state.st_mtime_ns}" for path, state in states]
    return "\n".join(versions)
