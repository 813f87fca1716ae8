"""What a command line names and asks, and how it answers: models, clusters, options, notes, JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ...ir.devices.cluster import Cluster
from ...ir.devices.heterogeneous import Fleet
from ...ir.errors import FileError
from ...ir.model import Model
from ...ir.verify import verify_model
from .. import files
from ..units import memory_bytes

TIME_LIMIT = 4  # exit code: time is up, the best so far is written


def note(text: str) -> None:
    print(text, file=sys.stderr)


def show(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=1))


def load_model(options: argparse.Namespace, batch: int | None = None) -> Model:
    """The model of SOURCE, traced with `batch` samples if given."""
    if options.source.endswith(".json") and not options.source.startswith("hf:"):
        model = files.read(Path(options.source), Model, "plait/model")
        verify_model(model)
        if batch is None or batch == model.batch:
            return model
        from ...ir.lowering.rescale import rescale

        return rescale(model, batch)
    from ...ir.capture import load_source
    from ...ir.capture import trace as traced

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
    if head not in files.FORMATS:
        raise FileError(f"{path}: $.format: {head!r:.60} is none of {', '.join(files.FORMATS)}")
    return str(head)


def source_text(options: argparse.Namespace) -> str:
    """SOURCE with its batch, as `main.py` reads it back."""
    words = {"source": options.source, "batch": options.batch, "seq": options.seq}
    return json.dumps({k: v for k, v in words.items() if v is not None})


def subject(options: argparse.Namespace) -> tuple[Model, Cluster | Fleet]:
    """The model with a sample for every device, at least, and the cluster."""
    from ...cost_model.hardware import load_fleet

    cluster = load_fleet(options.cluster)
    model = load_model(options, options.global_batch)
    if options.global_batch is None and model.batch < cluster.devices:
        batch = -(-cluster.devices // model.batch) * model.batch
        note(f"global batch {batch}: {model.batch} would leave devices without a sample")
        model = load_model(options, batch)
    return model, cluster


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """The words of the command line as arguments of `question`."""
    return {
        "loss_fn": None,
        "global_batch": None,
        "precision": options.precision,
        "roles": options.roles,
        "pin": options.pin,
        "memory_bytes": memory_bytes(options.memory),
        "optimizer": options.optimizer,
        "micro_batches": options.micro_batches,
        "schedule": options.schedule,
        "seed": options.seed,
        "memory_actions": tuple(options.memory_actions.split(",")),
        "time_limit_seconds": options.time_limit,
        "compress": options.compress,
        "quality": options.quality,
    }
