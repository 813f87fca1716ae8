"""Where a model comes from, as command lines and plans name it, and loading it from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import msgspec

from ...ir.lowering.cast import in_precision, with_half
from ...ir.lowering.rescale import Rescale
from ...ir.model.model import Model
from ...ir.passes import Observer, run
from ...ir.plan.program import ModuleFacts
from . import files
from .trace_cache import cached_trace


class ModelSource(NamedTuple):
    """A factory, an `hf:` configuration or a model file; `batch` samples of `seq` tokens are made for
    `hf:` sources."""

    source: str
    batch: int | None = None
    seq: int | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a traced model's file, which has no weights."""
        return self.source.endswith(".json") and not self.source.startswith("hf:")

    @property
    def is_data(self) -> bool:
        """Whether loading it runs no code of its own: a model file, or a configuration that is here."""
        return self.is_file or (self.source.startswith("hf:") and Path(self.source[3:]).is_file())

    def load(
        self,
        global_batch: int | None = None,
        precision: str | None = None,
        observer: Observer | None = None,
    ) -> Model:
        """The model, with `global_batch` samples where given, else with those of the source, in a
        `precision` where given."""
        return load_model(*self, global_batch, precision, observer)

    def with_half(self, model: Model) -> Model:
        """The source's model as a file has it: with its trace in bfloat16, where that shows casts that
        its own does not."""
        if self.is_file:
            return model
        return with_half(model, lambda precision: self.load(precision=precision))

    def load_for(
        self,
        batch: int | None,
        precision: str | None,
        digest: str | None,
        observer: Observer | None = None,
    ) -> Model:
        """The model of a plan with this digest, be the plan made from the source or from a model file,
        which may have the model in its own precision alone."""
        model = self.load(batch, precision, observer)
        if digest is None or model.fingerprint() == digest:
            return model
        own = self.load(batch)
        return own if own.fingerprint() == digest else model

    def facts(self) -> tuple[ModuleFacts, ...]:
        """What a program takes for granted of the source's module; nothing of a model file."""
        if self.is_file:
            return ()
        from ...ir.capture import load_source
        from ...ir.capture.python_state.module_facts import module_facts

        return module_facts(load_source(self.source, batch=self.batch, seq=self.seq).model)

    @property
    def absolute(self) -> str:
        """The source with its path, if it has one, from the root."""
        if self.source.startswith("hf:"):
            return f"hf:{Path(self.source[3:]).resolve()}"
        if self.is_file:
            return str(Path(self.source).resolve())
        file, colon, factory = self.source.rpartition(":")
        return (
            f"{Path(file).resolve()}:{factory}" if colon and file.endswith(".py") else self.source
        )

    def __str__(self) -> str:
        """The JSON text that plans keep and the `main.py` of a program reads back."""
        fields = self._replace(source=self.absolute)._asdict()
        return json.dumps({k: v for k, v in fields.items() if v is not None})


def named_source(text: str) -> ModelSource | None:
    """The source that a plan or program names in its JSON text; None where it names none."""
    try:
        return ModelSource(**msgspec.structs.asdict(msgspec.json.decode(text, type=_SourceText)))
    except (msgspec.MsgspecError, RecursionError):
        return None


class _SourceText(msgspec.Struct, frozen=True):
    source: str
    batch: int | None = None
    seq: int | None = None


def load_model(
    source: str,
    batch: int | None = None,
    seq: int | None = None,
    global_batch: int | None = None,
    precision: str | None = None,
    observer: Observer | None = None,
) -> Model:
    """Trace or read the model of a source (see `ModelSource`); `observer` is shown what passes give.
    Raises FileError, UsageError and TraceError."""
    if not ModelSource(source).is_file:
        settings = (batch, seq, global_batch, precision)

        def traced(observer: Observer | None = None) -> Model:
            return _trace(source, settings, observer)

        is_configuration = ModelSource(source).is_data
        if observer is not None or not is_configuration:
            return traced(observer)
        return cached_trace(Path(source[3:]), settings, traced)
    model = read_model(Path(source))
    if global_batch is not None and global_batch != model.batch:
        model = run(Rescale(global_batch), model, observer)
    return in_precision(model, precision, observer)


def _trace(
    source: str,
    settings: tuple[int | None, int | None, int | None, str | None],
    observer: Observer | None,
) -> Model:
    from ...ir.capture import load_source, trace

    batch, seq, global_batch, precision = settings
    built = load_source(source, batch=batch, seq=seq)
    return trace(
        built.model,
        built.batch,
        built.loss_fn,
        batch_size=global_batch,
        precision=precision,
        observer=observer,
    )


def read_model(path: Path) -> Model:
    """A traced model's file; raises FileError naming the file and the place in it."""
    return files.read(path, Model, "plait/model")
