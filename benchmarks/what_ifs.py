"""CPU milliseconds of a warm server's answers: `python benchmarks/what_ifs.py [SEED]`.

A session plans each job (`first plan`); then every question is asked once, in an order that the seed
shuffles, so that none is answered from an equal one. Refusals have a star. Prints the table of
docs/guide/agents.md.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plait.api.serve.methods import call
from plait.api.serve.session import Session
from plait.ir.errors import PlaitError

CONFIGS = Path(__file__).resolve().parent.parent / "examples" / "configs"


class Job(NamedTuple):
    """A model on a cluster, and its questions by name."""

    name: str
    params: dict[str, Any]
    questions: dict[str, tuple[str, dict[str, Any]]]


def questions(tokens: int, layers: str, uniform: str, clusters: tuple[str, str]) -> dict[str, Any]:
    """The questions to a job: half its `tokens`, a pin of some
    `layers`, one of all, more nodes and another device."""
    nodes, device = clusters

    def change(**of: Any) -> tuple[str, dict[str, Any]]:
        return "what_if", {"change": of}

    return {
        "half the batch": change(global_batch=128),
        "twice the batch": change(global_batch=512),
        "less memory": change(memory="60GiB"),
        "much less memory": change(memory="40GiB"),
        "half the tokens": change(seq=tokens // 2),
        "pin of some layers": change(pin=layers),
        "pin of all layers": change(pin=f"*:{uniform}"),
        "more nodes": change(cluster=nodes),
        "another device": change(cluster=device),
        "fits a strategy": ("fits", {"strategy": uniform}),
        "compare": ("compare", {"against": "ddp,fsdp,megatron:tp=2,pp=2"}),
        "explain": ("explain", {}),
        "explain memory": ("explain", {"of_memory": True}),
    }


JOBS = (
    Job(
        "GPT-2 on 8",
        {"source": f"hf:{CONFIGS / 'gpt2.json'}", "seq": 1024, "cluster": "8xh100"},
        questions(1024, "transformer.h.[0-5]:zero3=8", "dp=4,tp=2", ("16xh100", "8xa100-80")),
    ),
    Job(
        "Llama-3-8B on 64",
        {"source": f"hf:{CONFIGS / 'llama3-8b.json'}", "seq": 4096, "cluster": "8x8xh100"},
        questions(4096, "model.layers.[0-7]:zero3=64", "dp=8,tp=8", ("16x8xh100", "8x8xa100-80")),
    ),
    Job(
        "Llama-3.1-405B on 16,384",
        {
            "source": f"hf:{CONFIGS / 'llama3.1-405b.json'}",
            "seq": 8192,
            "cluster": "2048x8xh100",
            "precision": "bf16",
            "global_batch": 2048,
        },
        questions(
            8192,
            "model.layers.[0-7]:pp=16,zero1=128,tp=8",
            "pp=16,zero1=128,tp=8",
            ("1024x8xh100", "2048x8xa100-80"),
        ),
    ),
    Job(
        "Mixtral-8x7B on 64",
        {"source": f"hf:{CONFIGS / 'mixtral-8x7b.json'}", "seq": 4096, "cluster": "8x8xh100"},
        questions(
            4096, "model.layers.[0-7]:zero3=64", "zero3=8,tp=8", ("16x8xh100", "8x8xa100-80")
        ),
    ),
)


def asked(session: Session, method: str, params: dict[str, Any]) -> str:
    """CPU milliseconds of one answer."""
    start, refused = time.process_time(), ""
    try:
        call(session, method, params)
    except PlaitError:
        refused = "*"
    return f"{1e3 * (time.process_time() - start):.0f}{refused}"


def measure(job: Job, seed: int) -> dict[str, str]:
    """Milliseconds of every question of a job, the first plan first."""
    base = {"global_batch": 256, **job.params, "batch": 1}
    session, order = Session(), list(job.questions)
    random.Random(seed).shuffle(order)
    milliseconds = {"first plan": asked(session, "plan", base), **dict.fromkeys(job.questions, "")}
    for name in order:
        method, params = job.questions[name]
        milliseconds[name] = asked(session, method, {**base, **params})
    return milliseconds


def table(jobs: Sequence[Job], seed: int) -> str:
    """One row a question, one column a job."""
    columns = [measure(job, seed) for job in jobs]
    lines = [
        "| CPU ms | " + " | ".join(job.name for job in jobs) + " |",
        "|---" * (len(jobs) + 1) + "|",
    ]
    lines += [f"| {name} | " + " | ".join(c[name] for c in columns) + " |" for name in columns[0]]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(JOBS, int(sys.argv[1]) if sys.argv[1:] else 0))
