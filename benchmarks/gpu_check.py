"""Acceptance on GPUs in one table: `make gpu-check`.

    python benchmarks/gpu_check.py [--minutes 12] [--only NAME,...] [--rehearse] [-o table.md]

Needs torch 2.11 or later, a GPU, and nothing from the network. Without a GPU it says so and ends well;
`--rehearse` runs the same code on the CPU, on sizes that say nothing about speed. Exit code 1: a check
failed. What could not run says why.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from plait.benchmarks.gpu_check.check import CHECKS, Machine, run, table

OLDEST = (2, 11)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12.0, help="no check begins after them")
    parser.add_argument("--only", default="", help="names of checks, comma-separated")
    parser.add_argument("--rehearse", action="store_true", help="run the code on the CPU")
    parser.add_argument("-o", "--output", help="write the table to this file as well")
    options = parser.parse_args(arguments)
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST:
        print(f"torch {torch.__version__} is too old: 2.11 or later is needed", file=sys.stderr)
        return 2
    if not torch.cuda.is_available() and not options.rehearse:
        print("skipped: torch sees no GPU here (--rehearse runs the code on the CPU)")
        return 0
    # registers the checks; after the look at torch, as they need a recent one
    from plait.benchmarks.gpu_check import codecs, kernels, programs, ranks  # noqa: F401

    device = "cpu" if options.rehearse else "cuda"
    devices = 1 if options.rehearse else torch.cuda.device_count()
    machine = Machine(device, devices, time.monotonic() + 60 * options.minutes)
    wanted = set(filter(None, options.only.split(",")))
    rows = []
    for row in run([c for c in CHECKS if not wanted or c.name in wanted], machine):
        rows.append(row)
        print(f"{row.state:<13} {row.name}: {row.measured} (bar: {row.bar})", flush=True)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, a rehearsal"
    text = "\n".join([f"{devices} × {name}, torch {torch.__version__}", "", *table(rows)])
    print(f"\n{text}")
    if options.output:
        Path(options.output).write_text(text + "\n", encoding="utf-8")
    return int(any(row.state == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
