"""Load a model from a factory in a module or file, or from a transformers configuration file.

Models are built without allocating (for tracing) or for real (for training and verification).
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...errors import FileError, PlaitError, TraceError, UsageError, at_least_one
from .. import batch as batches
from ..export import LossFunction
from ..literals import DTYPES
from ..locate import user_location
from ..torch_private import FakeTensorMode, constant_of, is_fake, module_converted, tree_leaves
from ..values.known import MAXIMUM_GIVEN
from . import configuration

# Errors of a factory whose tensors have no values; any other error is reported.
NEEDS_VALUES = (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError)
# parameters of a model that is built for real where tensors in its attributes need values
MOST_REAL_ELEMENTS = 1 << 28
TABLES = ("_parameters", "_buffers", "_modules")
FORMS = "pkg.module:factory, file.py:factory or hf:config.json"


@dataclass(frozen=True)
class Source:
    """A model with one batch and its loss function (None: the model computes its own loss)."""

    model: nn.Module
    batch: Any
    loss_fn: LossFunction | None
    name: str
    text: str


def load_source(source: str, *, batch: int | None = None, seq: int | None = None) -> Source:
    """Build the model of `source` without allocating its weights, for `trace`.

    An `hf:` source gets `batch` samples of `seq` tokens; a factory makes its own batch. Raises
    UsageError for a missing source, TraceError with file and line when the factory fails.
    """
    return _build(source, batch, seq, allocate=False, seed=0)


def materialize(
    source: str,
    *,
    batch: int | None = None,
    seq: int | None = None,
    dtype: str | None = None,
    seed: int = 0,
) -> Source:
    """Build the model of `source` with weights and batch drawn under `seed`, floats in `dtype`."""
    built = _build(source, batch, seq, allocate=True, seed=seed)
    if dtype is None:
        return built
    if dtype not in DTYPES or not DTYPES[dtype].is_floating_point:
        raise UsageError(f"unknown floating-point type {dtype!r}")
    cast, pair = DTYPES[dtype], DTYPES["complex128" if dtype == "float64" else "complex64"]
    tensors = dict(batches.leaves(built.batch))

    def converted(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_complex():
            return tensor.to(pair)
        return tensor.to(cast) if tensor.is_floating_point() else tensor

    fed = batches.rebuild(built.batch, lambda path: converted(tensors[path]))
    model = module_converted(built.model, converted)
    return Source(model, fed, built.loss_fn, built.name, built.text)


def _build(source: str, batch: int | None, seq: int | None, *, allocate: bool, seed: int) -> Source:
    at_least_one(batch, "samples in a batch")
    at_least_one(seq, "tokens in a sample")
    kind, colon, rest = source.partition(":")
    if kind == "hf" and colon:
        config = read_configuration(Path(rest))
        with torch.random.fork_rng(devices=[]), _place("real" if allocate else "meta"):
            torch.manual_seed(seed)
            model, samples = configuration.build(config, batch, seq)
        return Source(model, samples, None, type(model).__name__, source)
    factory = source_factory(source)
    result = _call(factory, source, ("real",) if allocate else ("fake", "meta", "real"), seed)
    if not allocate and (_needs_values(result) or _has_few_numbers(result)):
        result = _call(factory, source, ("real",), seed)
    if (
        not isinstance(result, tuple)
        or len(result) not in (2, 3)
        or not isinstance(result[0], nn.Module)
    ):
        raise UsageError(
            f"{source}: the factory must return (model, batch) or (model, batch, loss_fn), "
            f"not {type(result).__name__}"
        )
    loss_fn = result[2] if len(result) == 3 else None
    return Source(result[0], result[1], loss_fn, source.rpartition(":")[2], source)


def _small_module(result: Any) -> nn.Module | None:
    """The module of a factory's result, if it is small enough to be built with values."""
    module = result[0] if isinstance(result, tuple) and result else None
    if not isinstance(module, nn.Module):
        return None
    return module if sum(p.numel() for p in module.parameters()) <= MOST_REAL_ELEMENTS else None


def _has_few_numbers(result: Any) -> bool:
    """Whether a small model has lengths, grids or bounds without values, which its code may ask for, in
    its batch or in buffers."""
    module = _small_module(result)
    if module is None or len(result) < 2:
        return False
    return any(
        not t.is_floating_point()
        and t.numel() <= MAXIMUM_GIVEN
        and (t.is_meta or constant_of(t) is None)
        for t in (*(leaf for _, leaf in batches.leaves(result[1])), *module.buffers())
    )


def _needs_values(result: Any) -> bool:
    """Whether a small model that was built without values keeps tensors in plain attributes, which a
    trace takes as constants."""
    module = _small_module(result)
    if module is None:
        return False
    plain = (v for m in module.modules() for n, v in vars(m).items() if n not in TABLES)
    return any(
        is_fake(leaf)
        for item in plain
        for leaf in tree_leaves(item)
        if isinstance(leaf, torch.Tensor)
    )


def _call(factory: Callable[[], Any], source: str, places: tuple[str, ...], seed: int) -> Any:
    """Call the factory under the first of `places` (fake, meta, real) where it succeeds."""
    for where in places:
        try:
            with torch.random.fork_rng(devices=[]), _place(where):
                torch.manual_seed(seed)
                return factory()
        except PlaitError:
            raise
        except Exception as error:
            if where == places[-1] or not isinstance(error, NEEDS_VALUES):
                what = f"{type(error).__name__}: {error}"
                raise TraceError(
                    f"{source}: {user_location(error.__traceback__)}: {what}"
                ) from error
    raise AssertionError("no place to build in")


class FakeCopies(TorchFunctionMode):
    """Copies tensors without values as `clone` does: torch copies their storage, which has no memory,
    and what it reads and writes there ends the process (an average of weights, a target network)."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not torch.Tensor.__deepcopy__ or not is_fake(args[0]):
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            copied = tensor.detach().clone().requires_grad_(tensor.requires_grad)
            memo[id(tensor)] = copied
        return memo[id(tensor)]


@contextlib.contextmanager
def _place(where: str) -> Iterator[None]:
    if where == "fake":
        with FakeTensorMode(allow_non_fake_inputs=True), FakeCopies():
            yield
    elif where == "meta":
        with torch.device("meta"):
            yield
    else:
        yield


def source_factory(source: str) -> Callable[..., Any]:
    where, colon, name = source.rpartition(":")
    if not colon or not where or not name:
        raise UsageError(_not_a_source(source))
    is_file = where.endswith(".py")
    module = _module_of_file(Path(where), source) if is_file else _module(where, source)
    factory = getattr(module, name, None) if name.isidentifier() else None
    if not callable(factory):
        raise UsageError(f"{source}: {where} has no function {name!r}")
    return factory


def _not_a_source(source: str) -> str:
    """What is wrong with a source that names no factory, and what would do."""
    path = Path(source)
    if path.suffix == ".py" and path.is_file():
        functions = [
            n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)
        ]
        examples = (
            ", ".join(f"{source}:{name}" for name in functions) or "there is no function in it"
        )
        return f"{source}: which function makes the model and its batch? {examples}"
    if path.suffix == ".py":
        return f"{source}: there is no file {path}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return (
            f"source {source!r} looks like a name on a model hub; save its config.json and write "
            "hf:PATH/config.json"
        )
    return f"source {source!r} is not of a known form: {FORMS}"


def _module(name: str, source: str) -> ModuleType:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UsageError(f"{source}: there is no module {name!r}; known forms: {FORMS}")
    with _failing(source):
        return importlib.import_module(name)


def _module_of_file(path: Path, source: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{source}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"plait_source_{path.stem}", path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    # as for a script, modules beside the file can be imported, also later from inside functions
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[spec.name] = module
    with _failing(source):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _failing(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise TraceError(f"{source}: {user_location(error.__traceback__)}: {what}") from error


def read_configuration(path: Path) -> dict[str, Any]:
    """Read a transformers configuration file as a dict. Raises UsageError, FileError."""
    if not path.is_file():
        raise UsageError(
            f"hf:{path}: there is no file {path}; hf: takes the config.json of a transformers model "
            "that is here: nothing is downloaded"
        )
    if os.path.getsize(path) > configuration.MAXIMUM_BYTES:
        raise FileError(f"{path}: a configuration has at most {configuration.MAXIMUM_BYTES} bytes")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise FileError(
            f"{path}: at $.model_type: a transformers configuration names its model type"
        )
    return config
