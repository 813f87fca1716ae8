"""The verbs of the command line: their arguments here, their work in `api.work` (loaded when run)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

Parser = argparse.ArgumentParser


class Verb(NamedTuple):
    name: str
    about: str
    arguments: Callable[[Parser], None]

    def run(self, options: argparse.Namespace) -> int:
        work = import_module(".work", __package__)
        return int(getattr(work, self.name)(options) or 0)


SOURCE = "pkg.mod:factory, file.py:factory, hf:config.json, or a model.json"


def _source(p: Parser) -> None:
    p.add_argument("source", metavar="SOURCE", help=SOURCE)
    p.add_argument("--batch", type=int, help="samples, for hf: sources")
    p.add_argument("--seq", type=int, help="tokens per sample, for hf: sources")


def _json(p: Parser) -> None:
    p.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _trace(p: Parser) -> None:
    _source(p)
    _json(p)
    p.add_argument("-o", "--output", metavar="FILE", help="write the model as JSON")
    p.add_argument("--text", action="store_true", help="print every function")


def _plan(p: Parser) -> None:
    _source(p)
    _json(p)
    p.add_argument("--cluster", required=True, help="preset (8x8xh100), local:N, or a TOML file")
    p.add_argument("--global-batch", type=int, help="samples per step")
    p.add_argument("--memory", help="budget per device, as in 72GiB")
    p.add_argument("--precision", choices=("fp64", "fp32", "bf16", "fp16"))
    p.add_argument(
        "--optimizer",
        default="adamw",
        help="adamw, sgd, ..., or one that talks to other "
        "ranks itself: 1-bit-adam, cser, ... (docs/compression.md)",
    )
    p.add_argument("--roles", help="comma-separated roles that may be used")
    p.add_argument("--memory-actions", default="keep,recompute,offload,split")
    p.add_argument(
        "--compress",
        default="none",
        metavar="NAME",
        help="none, auto, or an algorithm (sdp4bit, zero++, int8-activations)",
    )
    p.add_argument(
        "--quality",
        default="safe",
        choices=("lossless", "safe", "all"),
        help="what --compress auto may do to numbers on the wire",
    )
    p.add_argument("--micro-batches", type=int, help="fix the number of micro-batches")
    p.add_argument("--schedule", default="auto", help="of the pipeline: auto, 1f1b or interleaved")
    p.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="GLOB:WORD",
        help="force a strategy: '*:dp=4', 'block[0-3]:dp=2,tp=2', 'exit:zero3=4@1/2' (half "
        "of its weights), or Galvatron's galvatron_config.json; repeatable",
    )
    p.add_argument(
        "--time-limit",
        type=float,
        metavar="S",
        help="seconds of search; then the best plan so far, exit code 4",
    )
    p.add_argument(
        "--front",
        action="store_true",
        help="also show the fastest plans for less memory, and for more",
    )
    p.add_argument(
        "--buckets",
        metavar="SEQ[:BATCH],...",
        help="a plan for each sequence length (4096:64,16384:16) of an hf: source, and "
        "what switching sends; -o plan.json writes plan.4096.json",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("-o", "--output", metavar="FILE", help="write the plan as JSON")


def _place(p: Parser) -> None:
    _source(p)
    _json(p)
    p.add_argument("--devices", type=int, help="how many; default: those of the cluster")
    p.add_argument("--memory", help="per device, as in 8GiB; default: the cluster's")
    p.add_argument("--cluster", help="preset, local:N or a TOML file: times, memory and links")
    p.add_argument("--alpha-us", type=float, default=10.0, help="microseconds of every transfer")
    p.add_argument("--beta-us-per-byte", type=float, default=1 / 12e3, help="and of every byte")
    p.add_argument("--link", default="duplex", choices=("parallel", "duplex", "half-duplex"))
    p.add_argument("--memory-rule", default="train", choices=("train", "infer"))
    p.add_argument(
        "--algorithm", default="auto", choices=("auto", "m-topo", "m-etf", "m-sct", "list", "exact")
    )
    p.add_argument(
        "--colocation",
        default="free",
        choices=("free", "keep"),
        help="keep: a group of a graph file stays on one device",
    )
    p.add_argument("--optimizer", default="adamw", help="whose states a model's parameters have")
    p.add_argument(
        "--time-limit", type=float, metavar="S", help="seconds of search; default: enough"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("-o", "--output", metavar="FILE", help="write the placement as JSON")


def _predict(p: Parser) -> None:
    p.add_argument("runs", metavar="RUNS.csv", help="configurations, one a row")
    p.add_argument("-o", "--output", required=True, metavar="FILE", help="predictions as CSV")
    _json(p)


def _pack(p: Parser) -> None:
    p.add_argument(
        "buffers", metavar="FILE", help="CSV with columns id, lower, upper, size; or plan.json"
    )
    p.add_argument(
        "--capacity", help="bytes of the arena, as in 1048576 or 72GiB; a plan needs none"
    )
    p.add_argument(
        "--time-limit", type=float, metavar="S", help="seconds; default 60, of a plan 10"
    )
    p.add_argument("--minimise", action="store_true", help="go on to the least peak")
    p.add_argument("-o", "--output", required=True, metavar="FILE", help="buffers with offsets")
    p.add_argument("--model", metavar="SOURCE", help="the plan's model; default: the file it names")
    p.add_argument("--batch", type=int, help="samples, for hf: sources")
    p.add_argument("--seq", type=int, help="tokens per sample, for hf: sources")
    _json(p)


def _explain(p: Parser) -> None:
    p.add_argument("plan", metavar="PLAN")
    p.add_argument(
        "where", nargs="?", help="call, function or stage: model.layers.3, 'block*', stage0"
    )
    p.add_argument("--memory", action="store_true", help="memory terms of every stage")
    p.add_argument(
        "--why-not", metavar="WORD", help="price this strategy too, and say what is worse"
    )
    p.add_argument(
        "--model", metavar="SOURCE", help="its model, for --why-not; default: the file it names"
    )
    p.add_argument("--batch", type=int, help="samples, for hf: sources")
    p.add_argument("--seq", type=int, help="tokens per sample, for hf: sources")
    _json(p)


def _diff(p: Parser) -> None:
    p.add_argument("plan", metavar="A", help="plan.json")
    p.add_argument("other", metavar="B", nargs="?", help="another plan.json")
    p.add_argument(
        "--against",
        metavar="BASELINES",
        help="ddp, fsdp, hsdp, zero1..3, megatron:tp=8,pp=4, word:dp=2,tp=2",
    )
    p.add_argument(
        "--model",
        metavar="SOURCE",
        help="the plan's model, for --against; default: the file it names",
    )
    p.add_argument("--batch", type=int, help="samples, for hf: sources")
    p.add_argument("--seq", type=int, help="tokens per sample, for hf: sources")
    _json(p)


def _view(p: Parser) -> None:
    p.add_argument("file", metavar="FILE", help="plan.json, model.json or placement.json")
    p.add_argument(
        "-o", "--output", metavar="FILE", help="default: report.html, or as the format is"
    )
    p.add_argument(
        "--format",
        default="html",
        choices=("html", "svg", "chrome-trace", "model-explorer", "galvatron"),
    )
    p.add_argument("--model", metavar="MODEL", help="the plan's model.json, to show its operators")


def _simulate(p: Parser) -> None:
    p.add_argument("plan", metavar="PLAN")
    p.add_argument(
        "--slow",
        action="append",
        default=[],
        metavar="RANK=TIMES",
        help="a rank that computes more slowly: rank3=1.3; repeatable",
    )
    p.add_argument(
        "--link-down",
        action="append",
        default=[],
        metavar="LINK[=PART]",
        help="a level (network), one rank's (rank3:network) or its innermost (rank3), "
        "lost as a whole or in part (network=0.5); repeatable",
    )
    _json(p)


def _compile(p: Parser) -> None:
    p.add_argument("plan", metavar="PLAN", help="plan.json or placement.json")
    _source(p)
    p.add_argument("-o", "--output", required=True, metavar="DIR")


def _verify(p: Parser) -> None:
    p.add_argument("plan", metavar="PLAN", help="plan.json or placement.json")
    _source(p)
    _json(p)
    p.add_argument(
        "--ranks",
        type=int,
        help="gloo ranks; default: the plan's devices; 4 at most with --scale tiny",
    )
    p.add_argument(
        "--scale",
        choices=("tiny",),
        help="tiny: the same decisions on a small model (hf: sources) and few ranks: axes "
        "of 2, as many roles as fit, a layer of every sort",
    )
    p.add_argument("--steps", type=int, default=3, help="optimizer steps to compare")
    p.add_argument(
        "--program", metavar="DIR", help="verify the float64 program in DIR instead of a fresh one"
    )
    p.add_argument("--keep", metavar="DIR", help="leave the verified float64 program in DIR")
    p.add_argument("--timeout", type=float, default=300.0, help="seconds")


def _kernels(p: Parser) -> None:
    p.add_argument(
        "name", metavar="NAME", help="an algorithm (sdp4bit) or program (sdp4bit.weights)"
    )
    p.add_argument("-o", "--output", metavar="DIR", help="leave sources and assembly there")
    p.add_argument(
        "--target",
        metavar="TARGETS",
        help="cpu,cuda:80,cuda:90,hip:gfx942; default: all that compile here",
    )
    _json(p)


def _run(p: Parser) -> None:
    p.add_argument("directory", metavar="DIR")
    p.add_argument("rest", nargs=argparse.REMAINDER, metavar="-- args")


def _calibrate(p: Parser) -> None:
    p.add_argument("--quick", action="store_true", help="fewer sizes, less than two minutes")
    p.add_argument(
        "--ranks", type=int, help="at work at the same time; default: GPUs or processors"
    )
    p.add_argument(
        "--log",
        metavar="STEPS.jsonl",
        help="do not measure: fit the cluster of plans to their steps, one a line: "
        '{"plan": "plan.json", "step_seconds": 0.41, "peak_bytes": 1000}',
    )
    p.add_argument("-o", "--output", default="machine.toml", metavar="FILE")
    _json(p)


def _check(p: Parser) -> None:
    p.add_argument("file", metavar="FILE")
    _json(p)


VERBS = (
    Verb("trace", "trace a model into the IR and print what it is", _trace),
    Verb("plan", "choose how to spread training over a cluster", _plan),
    Verb("place", "put every operator of a graph on a device", _place),
    Verb("predict", "step time and peak memory of configurations given as rows", _predict),
    Verb("pack", "an address for every buffer of known lifetime, in an arena", _pack),
    Verb("explain", "the numbers behind a plan", _explain),
    Verb("diff", "what another plan, or what others would do, costs more", _diff),
    Verb("view", "draw a plan, model or placement as one HTML file", _view),
    Verb("simulate", "a plan's timeline when ranks are slow or links are down", _simulate),
    Verb("compile", "write the training program of a plan or placement", _compile),
    Verb("verify", "hold the program on gloo ranks against one process, in float64", _verify),
    Verb("kernels", "the kernels of a compression program, compiled for targets", _kernels),
    Verb("run", "start a program's ranks with torchrun", _run),
    Verb("calibrate", "measure this machine and write it as a cluster file", _calibrate),
    Verb("check", "validate a plan or model file without running anything", _check),
)
