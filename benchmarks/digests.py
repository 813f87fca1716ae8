"""Digests of plans and programs: `python benchmarks/digests.py [-o FOLDER] [MODEL …]`.

Twelve models of tests/zoo are planned for four clusters, each under other options, and compiled. The
digest of every plan and of every program is printed; a change that must not alter behaviour prints the
same lines before and after. `-o` keeps the files themselves, so that a change on purpose can be read.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import plait
from plait.codegen import compile_program, write_program
from plait.ir.capture import trace
from plait.ir.files.json_files import dump
from plait.tests import zoo

# fmt: off
MODELS = (
    "gpt2", "llama", "gemma2", "mixtral", "mamba", "bert", "t5", "whisper", "swin", "convnext",
    "wav2vec2", "clip",
)
# fmt: on
CASES: dict[str, dict[str, Any]] = {
    "local:4": {},
    "8xh100": {"pin": "*:dp=2,tp=4"},
    "2x8xa100-80": {"pin": "*:pp=2,zero3=4,tp=2", "micro_batches": 2},
    "2x4xrtx-titan": {
        "compress": "auto",
        "quality": "all",
        "memory_actions": ("recompute", "offload"),
    },
}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def row(name: str, model: plait.Model, cluster: str, folder: Path | None) -> str:
    """One line: the digests of a plan and of its program, or why there is none."""
    try:
        plan = plait.plan(model, cluster=cluster, global_batch=16, **CASES[cluster])
        program = compile_program(plan, model if model.batch == 16 else _scaled(model))
    except Exception as error:  # a refusal or a crash is behaviour too
        return f"{name} {cluster} {type(error).__name__} {digest(str(error).encode())}"
    data = dump(plan, "plait/plan")
    text = "".join(f"{path}\n{content}" for path, content in program.files).encode()
    text += dump(program.table, "plait/program")
    if folder is not None:
        place = folder / f"{name}-{cluster.replace(':', '')}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "plan.json").write_bytes(data)
        write_program(program, place / "program")
    return f"{name} {cluster} {digest(data)} {digest(text)}"


def _scaled(model: plait.Model) -> plait.Model:
    from plait.ir.lowering.rescale import rescale

    return rescale(model, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    for name in options.models:
        module, batch = zoo.ZOO[name]()
        model = trace(module.train(), batch)
        for cluster in CASES:
            print(row(name, model, cluster, options.output), flush=True)


if __name__ == "__main__":
    main()
