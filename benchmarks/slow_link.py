"""Whole steps of generated programs over shaped links: `python benchmarks/slow_link.py [--gbit 1]`.

A model whose step is little but communication (more compute with `--samples`) is planned for a cluster
with that link, compiled, and trained by ranks in network namespaces. Plans differ in what travels: fp32
under dp, zero1, zero3 and in slices of 4 MiB, beside calls or apart from them, four bits where they are
asked for, and what the planner takes itself. `plan ms` is what the plan says. Needs root, `ip` and `tc`;
says so and ends where it cannot. Checks bytes on the wire, never time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from msgspec.structs import replace

from plait.benchmarks.namespaces import MISSING, network, run
from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.ir.devices.cluster import Cluster, Link
from plait.ir.lowering.overlap import Overlap
from plait.ir.lowering.products import slices
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all

WORKER = Path(__file__).with_name("slow_link_worker.py")
FACTORY = """\
from plait.benchmarks import slow_link

def make():
    return slow_link.make({samples})
"""
WIDTH, LAYERS = 2048, 4
CASES = {  # strategy, what is compressed, and how much travels beside calls
    "dp, fp32": ("dp", "none", None),
    "dp, apart": ("dp", "none", Overlap(0)),
    "zero1, fp32": ("zero1", "none", None),
    "zero3, fp32": ("zero3", "none", None),
    "zero3, apart": ("zero3", "none", Overlap(0)),
    "slice, fp32": ("slice", "none", None),
    "slice, apart": ("slice", "none", Overlap(0)),
    "zero1, sdp4bit": ("zero1", "sdp4bit", None),
    "zero1, auto": ("zero1", "auto", None),
}
MTU, HEADERS = 1500, 20 + 32  # of them IP and TCP with time stamps
FRAME = 14  # what a link counts beside packets
PAYLOAD_SHARE = (MTU - HEADERS) / (MTU + FRAME)
SLICE_BYTES = 4 * 2**20  # a quarter of a weight
COMPRESSED_AT_MOST = 0.2  # of the bytes of fp32


class Deep(torch.nn.Module):
    """Linear layers; the loss is the mean square of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        made = [torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
        self.layers = torch.nn.Sequential(*made)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.layers(input).square().mean()


def make(samples: int = 4) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """(model, batch): 16 Mi weights, few samples."""
    return Deep(), {"input": torch.randn(samples, WIDTH)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gbit", type=float, default=1.0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--samples", type=int, default=4, help="of the global batch")
    parser.add_argument("--cases", default=",".join(CASES).replace(", ", "+"), help="a+b,c+d")
    parser.add_argument("--cluster", help="a measured cluster file of one rank on this machine")
    options = parser.parse_args()
    slices.SLICE_BYTES = SLICE_BYTES
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            with network(options.ranks, f"{options.gbit * 1e3:.0f}mbit"):
                names = [name.replace("+", ", ") for name in options.cases.split(",")]
                cluster = shaped(options.ranks, options.gbit, options.cluster or "local:1")
                compiled(folder, cluster, names, options.samples)
                failed = run(options.ranks, [str(WORKER), str(folder), str(options.steps)])
        except MISSING as error:
            print(f"no network namespaces here ({error}): root, ip and tc are needed")
            return 0
        return failed or report(json.loads((folder / "out.json").read_text()))


def shaped(ranks: int, gbit: float, one: str) -> Cluster:
    """Nodes of one rank each, like the cluster `one`, with that link between them: it passes so many
    bits of frames, of which tensors are a share."""
    local = load_cluster(one)
    link = Link("shaped", ranks, 1e-4, PAYLOAD_SHARE * gbit * 1e9 / 8, source="given")
    return replace(local, name=f"shaped:{ranks}", levels=(link, *local.levels))


def compiled(folder: Path, cluster: Cluster, names: Sequence[str], samples: int) -> None:
    """A program per case, and what was decided for it."""
    factory = folder / "factory.py"
    factory.write_text(FACTORY.format(samples=samples))
    text = f"{factory}:make"
    source = load_source(text)
    model, jobs = trace(source.model, source.batch, source.loss_fn), {}
    for number, name in enumerate(names):
        role, compress, overlap = CASES[name]
        pins = pin_all(f"{role}={cluster.devices}")
        options = PlanOptions(pins=pins, compress=compress, memory_actions=("keep",))
        planned = plan(model, cluster, options)
        write_program(compile_program(planned, model, overlap=overlap), folder / str(number))
        strategies = [str(strategy) for strategy in planned.strategies]
        strategies += dict.fromkeys(c.program for c in planned.compression)
        jobs[name] = {
            "folder": str(folder / str(number)),
            "source": text,
            "is": ", ".join(strategies),
            "planned": 1e3 * planned.prediction.step_seconds,
        }
    (folder / "jobs.json").write_text(json.dumps(jobs))


def report(rows: dict[str, dict[str, float]]) -> int:
    """Prints a table; gains are over the faster fp32 program. The number of wrong byte counts."""
    plain = [row for name, row in rows.items() if CASES[name][1] == "none"]
    wrong = 0
    print(
        f"{'':<16}{'median ms':>10}{'gain':>7}{'best ms':>10}{'gain':>7}{'CPU ms':>8}{'MB':>8}"
        f"{'plan ms':>9}"
    )
    for name, row in rows.items():
        gains = [min(p[key] for p in plain) / row[key] for key in ("ms", "best")]
        print(
            f"{name:<16}{row['ms']:10.0f}{gains[0]:7.1f}{row['best']:10.0f}{gains[1]:7.1f}"
            f"{row['cpu']:8.0f}{row['wire'] / 1e6:8.2f}{row['planned']:9.0f}  {row['is']}"
        )
        counted = abs(row["wire"] / row["sent"] - 1) < 0.1  # the rest is headers
        few = row["wire"] < COMPRESSED_AT_MOST * min(p["wire"] for p in plain)
        wrong += not counted or (CASES[name][1] != "none" and not few)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
