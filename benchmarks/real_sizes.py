"""Published sizes planned on clusters of their time: `python benchmarks/real_sizes.py PATH`.

PATH has transformers configuration files; each that `PUBLISHED` names is traced and planned by a whole
`plait plan` in a process of its own, imports included. A row says the layout, the part of the devices'
peak that it reaches (MFU), what was published, and what planning took. `--markdown FILE` writes the
table of docs, `--only` names models, `--json FILE` takes rows of earlier runs along.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from plait.benchmarks.coverage import first_line, table
from plait.ir.plan.schedules.registry import schedule_text

MOST_CPU_SECONDS, MOST_RSS_BYTES = 20.0, 1 << 30
COLUMNS = (
    "model", "cluster", "batch × tokens", "plan", "MFU %", "GiB", "published", "CPU-s", "RSS MiB",
)  # fmt: skip
INTRODUCTION = """\
# Real sizes

Written by `python benchmarks/real_sizes.py PATH --markdown docs/results/real_sizes.md`. PATH has
published configurations; each is traced and planned in bf16 by one `plait plan`, imports included, on
one core. *published* is what papers and engines' reports used for that size or its like, and the MFU
that they state. GiB is the peak per device.
"""


class Question(msgspec.Struct, frozen=True):
    """A size as it was trained: cluster, samples a step, tokens a sample, and what was published."""

    name: str
    cluster: str
    batch: int
    tokens: int | None
    published: str
    file: str = ""


PUBLISHED = (
    Question("deepseek_v3", "256x8xh100", 15360, 4096, "pp16 ep64 zero1, 2,048 H800"),
    Question("gpt_oss_120b", "16x8xh100", 1024, 4096, "ep8 to ep64 with pp or fully sharded"),
    Question("llama4_scout", "32x8xh100", 512, 8192, "tp ep16, pp or fully sharded"),
    Question("qwen3_235b", "32x8xh100", 1024, 4096, "tp2 pp8 ep32, 30 to 33 %"),
    Question("mixtral_8x22b", "16x8xh100", 256, 4096, "tp2 to tp4, pp8 ep8, 46 to 49 %"),
    Question("kimi_k2", "128x8xh100", 16384, 4096, "pp16 ep16 zero1, H800"),
    Question("llama4_maverick", "64x8xh100", 1024, 8192, "not stated"),
    Question("glm_4_6", "64x8xh100", 1024, 4096, "not stated"),
    Question("minimax_m2", "32x8xh100", 1024, 4096, "not stated"),
    Question("minimax_text_01", "64x8xh100", 512, 8192, "not stated"),
    Question("nemotron_h_8b", "8x8xh100", 256, 8192, "not stated"),
    Question("gpt3_175b", "128x8xa100-80", 1536, 2048, "tp8 pp8 to pp16, 44 to 52 %"),
    Question("llama31_70b", "8x8xh100", 16, 131072, "tp8 cp8 to cp16, recomputation, 35 to 40 %"),
    Question("llama31_405b", "2048x8xh100", 2048, 8192, "tp8 pp16 dp128, 38 to 43 %"),
    Question("t5_11b", "8x8xa100-80", 512, 512, "tp8 and dp, 40 to 50 %"),
    Question("vit_22b", "128x8xa100-80", 65536, None, "54.9 % on another chip"),
    Question("mamba_2_8b", "8xa100-80", 256, 2048, "dp or zero1, 35 to 45 % with a fused scan"),
    Question("llama31_70b_1m", "64x8xh100", 16, 1048576, "tp8 cp32 and more", "llama31_70b"),
    Question("mixtral_8x22b_32", "4x8xh100", 256, 4096, "tp2 to tp4, pp8 ep8", "mixtral_8x22b"),
)


class Row(msgspec.Struct):
    """One plan. `failure`: the last line of the error; `mfu` in [0, 1]."""

    name: str
    cluster: str
    size: str
    published: str
    plan: str = ""
    mfu: float = 0.0
    peak_bytes: int = 0
    failure: str = ""
    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0

    @property
    def in_bounds(self) -> bool:
        quick = self.cpu_seconds <= MOST_CPU_SECONDS
        return not self.failure and quick and self.peak_rss_bytes <= MOST_RSS_BYTES


def measure(question: Question, file: Path) -> Row:
    """Plan one size in a process of its own."""
    size = f"{question.batch} × {question.tokens or 'picture'}"
    row = Row(question.name, question.cluster, size, question.published)
    command = ["plan", f"hf:{file}", "--batch", "2", "--global-batch", str(question.batch)]
    command += ["--seq", str(question.tokens)] if question.tokens else []
    command += ["--cluster", question.cluster, "--precision", "bf16", "--json"]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "plait", *command], stdout=output, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        answer, complaint = output.read(), errors.read().strip().splitlines()
    row.cpu_seconds = round(usage.ru_utime + usage.ru_stime, 1)
    row.peak_rss_bytes = usage.ru_maxrss * 1024
    found = json.loads(answer) if answer.strip() else {}
    if "mfu" in found:
        row.plan, row.mfu, row.peak_bytes = layout(found), found["mfu"], peak(found)
    else:
        row.failure = first_line(complaint[0]) if complaint else "no answer"
    return row


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    known = earlier(options.json)
    for question in PUBLISHED:
        file = options.path / f"{question.file or question.name}.json"
        if not file.is_file() or (options.only and question.name not in options.only):
            continue
        row = known[question.name] = measure(question, file)
        print(json.dumps(msgspec.to_builtins(row), ensure_ascii=False), flush=True)
        if options.json:
            options.json.write_bytes(msgspec.json.format(msgspec.json.encode(list(known.values()))))
    if options.markdown:
        options.markdown.write_text(document(list(known.values())))
    return 0 if all(row.in_bounds for row in known.values()) else 1


def layout(answer: dict[str, Any]) -> str:
    """The strategies of a plan, its pipeline and its memory actions."""
    pipeline = answer["pipeline"]
    actions = sorted({layer["memory"] for layer in answer["strategy"]} - {"keep"})
    chunks = ""
    if pipeline["schedule"] != "1f1b":
        chunks = f", {schedule_text(pipeline['schedule'], pipeline['chunks'])}"
    memory = f", {' and '.join(actions)}" if actions else ""
    return f"{answer['word']}, {pipeline['micro_batches']} micro-batches{chunks}{memory}"


def peak(answer: dict[str, Any]) -> int:
    """Bytes of the fullest device."""
    return max(stage["peak"] for stage in answer["memory"])


def earlier(file: Path | None) -> dict[str, Row]:
    """Rows of earlier runs by name."""
    if file is None or not file.is_file():
        return {}
    return {row.name: row for row in msgspec.json.decode(file.read_bytes(), type=list[Row])}


def document(rows: Sequence[Row]) -> str:
    bounds = f"{MOST_CPU_SECONDS:.0f} CPU-s and {MOST_RSS_BYTES >> 20} MiB"
    fine = sum(row.in_bounds for row in rows)
    count = f"**{fine} of {len(rows)} are feasible within {bounds}.**"
    return "\n".join([INTRODUCTION, count, "", table(COLUMNS, [cells(r) for r in rows]), ""])


def cells(row: Row) -> tuple[str, ...]:
    facts = (row.name, row.cluster, row.size, row.plan or row.failure.replace("|", "/"))
    reached = (f"{100 * row.mfu:.1f}", f"{row.peak_bytes / 2**30:.1f}") if row.plan else ("", "")
    spent = f"{row.cpu_seconds:.1f}", f"{row.peak_rss_bytes / 2**20:.0f}"
    return *facts, *reached, row.published, *spent


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
