"""Silent faults, planted one at a time in generated programs, in the runtime below them, or in a trace.

Each leaves a program that runs, with numbers of the right shapes that are wrong. Faults of the runtime
are planted on the objects of one program (`run`), so that other programs of a launch are sound.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HOOK = """

_batch_only = batch_only


def batch_only(run, *inputs):
    if not hasattr(run, "sound"):
        run.sound = False
        _plant(run)
    return _batch_only(run, *inputs)


def _plant(run):
    import torch.distributed as dist
    store = run.store
"""


class Setting(NamedTuple):
    """A program that is sound: model, strategy, micro-batches and memory action."""

    model: str
    strategy: str
    micro_batches: int = 1
    memory: str = "keep"


class Mutation(NamedTuple):
    """One fault: `plant` edits a program's folder, `trace` the traced model's JSON. `first` is a pattern
    of what verify must say is wrong first."""

    name: str
    setting: Setting
    first: str
    plant: Callable[[Path], None] = lambda folder: None
    trace: Callable[[str], str] | None = None


def text(pattern: str, new: str, files: str = "functions/*.py", count: int = 1, after: str = ""):
    """Replace a pattern in the first `count` places (0: in all) of files, behind `after`."""

    def plant(folder: Path) -> None:
        planted = 0
        for path in sorted(folder.glob(files)):
            before = path.read_text()
            start = before.find(after)
            if start < 0 or (count and planted):
                continue
            changed, number = re.subn(pattern, new, before[start:], count=count)
            path.write_text(before[:start] + changed)
            planted += number
        assert planted, f"nothing to spoil: {pattern}"

    return plant


def runtime(*lines: str, files: str = "stage_*.py"):
    """Statements on `run` and its `store`, run once before the program's first step."""

    def plant(folder: Path) -> None:
        for path in sorted(folder.glob(files)):
            path.write_text(path.read_text() + HOOK + "".join(f"    {line}\n" for line in lines))

    return plant


def append(code: str, files: str):
    def plant(folder: Path) -> None:
        for path in sorted(folder.glob(files)):
            path.write_text(path.read_text() + code)

    return plant


def both(*plants: Callable[[Path], None]):
    def plant(folder: Path) -> None:
        for one in plants:
            one(folder)

    return plant


BACKWARD = "def backward"
ALL_REDUCE = r'comm\.all_reduce\((\w+), "(tp|dp)"\)'
START, WAIT = r'comm\.start\("all_reduce", (\w+), "(tp|dp)"\)', r"comm\.wait\((\w+)\)"
MASK = r'(dropout\(\s*\w+, \w+, 0\.15, \d+, \[\[\d+, \d+, )\["dp"\]'
DATA, TENSORS = Setting("language", "dp=2"), Setting("language", "tp=2")
MICRO = Setting("language", "dp=2", 2)
STAGES = Setting("language", "pp=2", 2)
FIRST_STALE = """

_forward = forward
_first = {}


def forward(run, *received):
    first = _first.setdefault("value", received[-1])
    return _forward(run, *received[:-1], first)
"""
SHIFTED = """

_batch_only = batch_only


def batch_only(run, ids, labels):
    return _batch_only(run, ids, labels.roll(1, 1))
"""

MUTATIONS = (
    Mutation("an all-reduce is missing", TENSORS, "loss of step 1", text(ALL_REDUCE, r"\1")),
    Mutation(
        "an all-reduce is done twice",
        TENSORS,
        "loss of step 1",
        text(ALL_REDUCE, r'comm.all_reduce(comm.all_reduce(\1, "\2"), "\2")'),
    ),
    Mutation(
        "a mean where a sum belongs",
        TENSORS,
        "loss of step 1",
        text(ALL_REDUCE, r'(comm.all_reduce(\1, "\2") / 2)'),
    ),
    Mutation(
        "an all-reduce of backward is missing",
        TENSORS,
        "gradient of layers",
        both(text(START, r"\1", after=BACKWARD), text(WAIT, r"\1", after=BACKWARD)),
    ),
    Mutation(
        "an all-reduce beside operators is done twice",
        TENSORS,
        "gradient of layers",
        text(WAIT, r'comm.all_reduce(comm.wait(\1), "tp")', after=BACKWARD),
    ),
    Mutation(
        "an all-reduce beside operators runs over the wrong group",
        Setting("language", "dp=2,tp=2"),
        "gradient of layers",
        text(START, r'comm.start("all_reduce", \1, "dp")', after=BACKWARD),
    ),
    Mutation(
        "a collective is awaited in place of another",
        TENSORS,
        "gradient of layers",
        text(
            r"(?s)= comm\.wait\((\w+)\)(.*?)del \1\n *(.*)comm\.wait\(\w+\)",
            r"= comm.wait(\1)\2\3comm.wait(\1)",
            after=BACKWARD,
        ),
    ),
    Mutation(
        "weights are gathered before they are updated",
        Setting("language", "zero3=2"),
        "loss of step 2",
        runtime(
            "gathers, first = store.gathers, {}",
            "whole = gathers.posted",
            "def early(sharded):",
            "    names = tuple(p.name for p in sharded)",
            "    arrival = whole(sharded)",
            "    flats = first.setdefault(names, [flat.clone() for flat in arrival()])",
            "    return lambda: list(flats)",
            "gathers.posted = early",
        ),
    ),
    Mutation(
        "a bucket travels before its last gradient",
        DATA,
        r"gradient of (head|tokens)\.weight is .* in step 2",
        runtime(
            "buckets, uses = store.reductions.buckets, [0]",
            "def early(parameter, flat, whole=buckets.add):",
            "    uses[0] += parameter.name == 'tokens.weight'",
            "    if parameter.name != 'tokens.weight' or uses[0] != 4:",
            "        whole(parameter, flat)",
            "buckets.add = early",
        ),
    ),
    Mutation(
        "a buffer stays stale",
        Setting("averaged", "dp=2"),
        "loss of step 2|center",
        runtime("run.update = lambda call, results: None"),
    ),
    Mutation("a mask of the wrong shard", DATA, "loss of step 1", text(MASK, r"\1[]", count=0)),
    Mutation(
        "a backward with another mask than forward",
        DATA,
        "gradient of layers.2.1.down.weight",
        text(r", 0\.15, 1,", ", 0.15, 7,", count=0, after="def backward"),
    ),
    Mutation("a seed per rank", DATA, "loss of step 1", runtime("run.seed = dist.get_rank()")),
    Mutation(
        "shards are gathered in another order",
        Setting("language", "zero3=2"),
        "loss of step 1",
        runtime(
            "for levels in store.flat_groups:",
            "    def turned(x, whole=levels[0].start_all_gather):",
            "        transfer = whole(x)",
            "        transfer.value = transfer.wait().flip(0)",
            "        return transfer",
            "    levels[0].start_all_gather = turned",
        ),
    ),
    Mutation(
        "a part of a tied weight's gradient is lost",
        DATA,
        "gradient of (head|tokens).weight",
        runtime(
            "whole, uses = store.accumulate, [0]",
            "def lossy(gradients):",
            "    uses[0] += 'tokens.weight' in dict(gradients)",
            "    whole([g for g in gradients if g[0] != 'tokens.weight' or uses[0] % 2])",
            "store.accumulate = lossy",
        ),
    ),
    Mutation(
        "a second loss term is scaled by ranks",
        DATA,
        "loss of step 1",
        text(r", 0\.001\)", ", 0.002)", count=0),
    ),
    Mutation(
        "a norm over a piece of the batch",
        Setting("pictures", "dp=2"),
        "loss of step 1",
        text(WAIT, r"(comm.wait(\1) * 2)", files="functions/sequential*.py"),
    ),
    Mutation("labels are shifted once more", DATA, "loss of step 1", append(SHIFTED, "stage_0.py")),
    Mutation(
        "a mean of means over unequal shards",
        DATA,
        "loss of step 1",
        text(ALL_REDUCE, r"(\1 * 2)", files="functions/data.py"),
    ),
    Mutation(
        "gradients of the last micro-batch alone",
        MICRO,
        "gradient of norm",
        runtime(
            "whole = store.accumulate",
            "def last(gradients):",
            "    for name, _ in gradients:",
            "        if run.micro and name != 'tokens.weight':",
            "            bucket = store.reductions.buckets.bucket_of[name]",
            "            bucket.written.discard(name)",
            "    whole(gradients)",
            "store.accumulate = last",
        ),
    ),
    Mutation(
        "a stage takes the first micro-batch again",
        STAGES,
        "loss of step 1",
        append(FIRST_STALE, "stage_1.py"),
    ),
    Mutation(
        "updated shards are not gathered",
        Setting("language", "zero1=2"),
        "loss of step 2",
        runtime("store.gather_updated = lambda: None"),
    ),
    Mutation(
        "gradients are not summed over data ranks",
        DATA,
        "gradient of norm",
        runtime("store.groups.partial = {}"),
    ),
    Mutation(
        "a collective over the wrong group",
        Setting("language", "dp=2,tp=2"),
        "loss of step 1",
        text(r'all_reduce\((\w+), "tp"\)', r'all_reduce(\1, "dp")'),
    ),
    Mutation(
        "the trace has another factor than the module",
        DATA,
        "loss of step 1",
        trace=lambda data: data.replace("0.001", "0.0015"),
    ),
    Mutation(
        "the trace lost a dropout rate",
        DATA,
        "draws a mask of .* in layers.0.0",
        trace=lambda data: data.replace("0.15", "0.1"),
    ),
    Mutation(
        "the trace has another activation than the module",
        Setting("language", "tp=2"),
        "loss of step 1",
        trace=lambda data: data.replace("aten.gelu.default", "aten.relu.default"),
    ),
)
