"""What a command line names, and how it answers: sources of models, kinds of files, notes, JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..ir.errors import FileError
from ..ir.model import Model
from ..ir.verify import verify_model
from . import documents

TIME_LIMIT = 4  # exit code: time is up, the best so far is written


def note(text: str) -> None:
    print(text, file=sys.stderr)


def show(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=1))


def load_model(options: argparse.Namespace, batch: int | None = None) -> Model:
    """The model of SOURCE, traced with `batch` samples if given."""
    if options.source.endswith(".json") and not options.source.startswith("hf:"):
        model = documents.read(Path(options.source), Model, "plait/model")
        verify_model(model)
        if batch is None or batch == model.batch:
            return model
        from ..ir.rescale import rescale

        return rescale(model, batch)
    from ..ir.capture import load_source
    from ..ir.capture import trace as traced

    source = load_source(options.source, batch=options.batch, seq=options.seq)
    return traced(source.model, source.batch, source.loss_fn, batch_size=batch)


def format_of(path: Path) -> str:
    """The format a file says it has."""
    try:
        head = json.loads(path.read_bytes()).get("format")
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except (ValueError, AttributeError, RecursionError):
        raise FileError(f"{path}: $: not a JSON object") from None
    if head not in documents.FORMATS:
        raise FileError(f"{path}: $.format: {head!r:.60} is none of {', '.join(documents.FORMATS)}")
    return str(head)


def source_text(options: argparse.Namespace) -> str:
    """SOURCE with its batch, as `main.py` reads it back."""
    words = {"source": options.source, "batch": options.batch, "seq": options.seq}
    return json.dumps({k: v for k, v in words.items() if v is not None})
