"""Sound files of every kind, and the commands that read each: what the mutants are mutants of."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from plait.api.cli import main
from plait.api.formats.model_source import ModelSource
from plait.api.plans.compositions import Composition, Trial, plan_of
from plait.codegen import compile_program, write_program
from plait.ir.files.json_files import dump
from plait.ir.lowering.cast import in_precision
from plait.ir.model.model import Model
from plait.ir.plan.plan import Plan
from plait.ir.plan.strategy import parse_strategy
from plait.runtime.launch.session import session
from plait.runtime.program import Program
from plait.tests.faults.files.mutate import Mutant, json_mutants, line_mutants, toml_mutants
from plait.tests.paths import LLAMA

SOURCE = "plait.benchmarks.composition_models:language"
Verb = Callable[[], object]
# fmt: off
COMPOSITIONS = (
    Composition("dp=2,tp=2", precision="fp32"),
    Composition("pp=2,dp=2", micro_batches=2, memory="split 2", precision="fp32"),
    Composition("pp=2,zero3=2@1/2", "layers.1", "pp=2,tp=2", 2, "save 50%", "interleaved"),
    Composition("zero2=2,tp=2", memory="offload 50%", precision="bf16"),
)
COMPRESSED = Composition("zero2=4", memory="recompute", compress="sdp4bit", precision="fp32")
GALVATRON = {
    "pp_deg": 2, "tp_sizes_enc": "1,1,2,2", "tp_consecutive_flags": "1,1,1,1", "dp_types_enc": "1,0,1,0",
    "use_sp": "0,0,1,0", "checkpoint": "1,0,0,1", "global_bsz": 32, "chunks": 4, "pp_division": "2,2",
    "pipeline_type": "pipedream_flush", "default_dp_type": "zero2", "vtp": 2, "vsp": 0, "embed_sdp": 1,
}
# fmt: on
CLUSTER = """name = "lab"
[device]
kind = "own"
memory_gb = 80.0
tflops = { float32 = 60.0, bfloat16 = 400.0 }
achievable = 0.7
memory_gb_per_s = 2000.0
launch_us = 4.0
runtime_gb = 1.0
source = "measured"
sources = { tflops = "vendor" }
sustained = 0.9
host_gb_per_s = 25.0
[[device.curve]]
name = "gemm"
by = "flops"
amounts = [1e6, 1e9]
us = [5.0, 30.0]
dtype = "float32"
[[level]]
name = "network"
latency_us = 10.0
gb_per_s = 25.0
size = 2
[[level]]
name = "nvlink"
latency_us = 3.0
gb_per_s = 300.0
size = 2
[[level.curve]]
name = "all_reduce"
amounts = [1e3, 1e6]
us = [5.0, 30.0]
ranks = 2
"""
PARTS = """name = "two kinds"
[[part]]
kind = "h100"
[[part.level]]
name = "nvlink"
latency_us = 3.0
gb_per_s = 300.0
size = 2
[[part]]
kind = "a100-80"
[[part.level]]
name = "nvlink"
latency_us = 3.0
gb_per_s = 200.0
size = 2
[link]
name = "network"
latency_us = 10.0
gb_per_s = 25.0
"""


class Subject(NamedTuple):
    """A sound file. `place` is where its mutants are written; `verbs` read them there, by name;
    `check` is the first of them. `lenient` ones do not ask torch for the types of a model, and may take
    what `check` refuses."""

    kind: str
    sound: bytes
    place: Path
    verbs: dict[str, Verb]
    mutants: Callable[[bytes, random.Random], Iterator[Mutant]]
    lenient: frozenset[str] = frozenset()


def command(*line: object) -> Verb:
    return lambda: main([str(part) for part in line])


def subjects(folder: Path, kinds: frozenset[str]) -> list[Subject]:
    """The subjects of these kinds, all where none is named; their files lie in `folder`."""
    model, plan = folder / "sound_model.json", folder / "sound_plan.json"
    source = ModelSource(SOURCE)
    traced = source.with_half(source.load())  # as `plait trace` writes it
    model.write_bytes(dump(traced, "plait/model"))
    plan.write_bytes(dump(_plan(COMPOSITIONS[0], traced), "plait/plan"))
    makers: dict[str, Callable[[], list[Subject]]] = {
        "plan": lambda: _plan_subjects(folder, traced),
        "model": lambda: [_model_subject(folder, traced, plan)],
        "cluster": lambda: _cluster_subjects(folder, model),
        "graph": lambda: [_graph_subject(folder)],
        "placement": lambda: [_placement_subject(folder, model)],
        "program": lambda: [_program_subject(folder, traced)],
        "checkpoint": lambda: [_checkpoint_subject(folder, traced)],
        "galvatron": lambda: [_galvatron_subject(folder)],
        "log": lambda: [_log_subject(folder, plan)],
    }
    return [s for kind, make in makers.items() if not kinds or kind in kinds for s in make()]


def _plan(composition: Composition, model: Model) -> Plan:
    ranks = parse_strategy(composition.strategy).devices
    return plan_of(Trial(composition, ModelSource(SOURCE), model), ranks)


def _plan_subjects(folder: Path, model: Model) -> list[Subject]:
    path, large = folder / "sound_model.json", folder / "large_model.json"
    compressible = ModelSource(LLAMA).load()
    large.write_bytes(dump(compressible, "plait/model"))
    plans = [_plan(one, model) for one in COMPOSITIONS]
    subjects = [_plan_subject(folder, plan, str(n), path) for n, plan in enumerate(plans)]
    return [*subjects, _plan_subject(folder, _plan(COMPRESSED, compressible), "compressed", large)]


def _plan_subject(folder: Path, plan: Plan, name: str, model: Path) -> Subject:
    path, out = folder / "plan.json", folder / "out"
    log = folder / "plan_log.jsonl"
    log.write_text('{"plan": "plan.json", "step_seconds": 0.4, "peak_bytes": 1000}\n')
    with_model = ("--model", model)
    verbs = {
        "check": command("check", path),
        "explain": command("explain", path),
        "explain --json": command("explain", path, "--json"),
        "explain --memory": command("explain", path, "--memory"),
        "explain stage0": command("explain", path, "stage0"),
        "explain --sharding": command("explain", path, "--sharding", *with_model),
        "explain --why-not": command("explain", path, "--why-not", "dp=4", *with_model),
        "view": command("view", path, "-o", out),
        "view --model": command("view", path, "-o", out, *with_model),
        "view svg": command("view", path, "-o", out, "--format", "svg"),
        "view chrome-trace": command("view", path, "-o", out, "--format", "chrome-trace"),
        "view galvatron": command("view", path, "-o", out, "--format", "galvatron"),
        "diff": command("diff", path, folder / "sound_plan.json"),
        "diff --against": command("diff", path, "--against", "ddp", *with_model),
        "simulate": command("simulate", path, "--slow", "rank0=1.5"),
        "pack": command("pack", path, "-o", out, "--time-limit", "0.2", *with_model),
        "compile": command("compile", path, model, "-o", folder / "program_of_plan"),
        "calibrate": command("calibrate", "--log", log, "-o", folder / "fitted.toml"),
    }
    return Subject(f"plan {name}", dump(plan, "plait/plan"), path, verbs, json_mutants)


def _model_subject(folder: Path, model: Model, plan: Path) -> Subject:
    path, out = folder / "model.json", folder / "out"
    limit = ("--time-limit", "0.2")
    verbs = {
        "check": command("check", path),
        "trace": command("trace", path),
        "trace --text": command("trace", path, "--text"),
        "plan": command("plan", path, "--cluster", "4xh100", "--pin", "dp=2,tp=2", *limit),
        "place": command("place", path, "--cluster", "2xh100", *limit, "-o", out),
        "view": command("view", path, "-o", out),
        "view --model": command("view", plan, "--model", path, "-o", out),
        "compile": command("compile", plan, path, "-o", folder / "program_of_model"),
        "explain --sharding": command("explain", plan, "--sharding", "--model", path),
        "pack": command("pack", plan, "-o", out, "--model", path, *limit),
    }
    lenient = frozenset(verbs) - {"check", "compile"}
    return Subject("model", dump(model, "plait/model"), path, verbs, json_mutants, lenient)


def _cluster_subjects(folder: Path, model: Path) -> list[Subject]:
    path = folder / "cluster.toml"
    limit = ("--time-limit", "0.2")
    verbs = {
        "check": command("check", path),
        "plan": command("plan", model, "--cluster", path, *limit, "--roles", "dp,tp"),
        "place": command("place", model, "--cluster", path, *limit, "--devices", "2"),
    }
    joined = {name: verb for name, verb in verbs.items() if name != "place"}
    return [
        Subject("cluster", CLUSTER.encode(), path, verbs, toml_mutants),
        Subject("joined clusters", PARTS.encode(), path, joined, toml_mutants),
    ]


def _graph_subject(folder: Path) -> Subject:
    path = folder / "graph.json"
    nodes = [
        {"id": i, "compute_us": 5.0 + i, "mem_output": 100.0, "name": f"n{i}"} for i in range(9)
    ]
    nodes[3] |= {"mem_persistent": 50, "mem_temporary": 7, "colocation": "a", "backward": True}
    edges = [{"src": i, "dst": j, "bytes": 100.0 * i} for i in range(9) for j in range(i + 1, 9, 3)]
    edges[0] |= {"tensor": 1, "comm_us": 3.5}
    sound = {
        "format": "placement-graph/1",
        "name": "g",
        "source": "hand",
        "nodes": nodes,
        "edges": edges,
    }
    place = ("place", path, "--devices", "2", "--memory", "1GiB", "--time-limit", "0.2")
    verbs = {
        "check": command("check", path),
        "place": command(*place, "-o", folder / "out"),
        "place exact": command(*place, "--algorithm", "exact", "--colocation", "keep"),
    }
    return Subject("graph", json.dumps(sound).encode(), path, verbs, json_mutants)


def _placement_subject(folder: Path, model: Path) -> Subject:
    path, sound = folder / "placement.json", folder / "sound_placement.json"
    line = ("place", model, "--cluster", "2xh100", "--time-limit", "1", "-o", sound)
    assert command(*line)() in (0, 4)
    verbs = {
        "check": command("check", path),
        "view": command("view", path, "-o", folder / "out"),
        "view chrome-trace": command(
            "view", path, "-o", folder / "out", "--format", "chrome-trace"
        ),
        "compile": command("compile", path, model, "-o", folder / "program_of_placement"),
    }
    return Subject("placement", sound.read_bytes(), path, verbs, json_mutants)


def _program_folder(folder: Path, name: str, model: Model) -> Path:
    """A program for one rank."""
    plan = _plan(Composition("dp=1", micro_batches=2, precision="fp32"), model)
    write_program(compile_program(plan, in_precision(model, "fp32"), ""), folder / name)
    return folder / name


def _program_subject(folder: Path, model: Model) -> Subject:
    program = _program_folder(folder, "program", model)
    path = program / "table.json"
    verbs = {"check": command("check", program), "step": lambda: _step(program)}
    return Subject("program", path.read_bytes(), path, verbs, json_mutants)


def _step(folder: Path) -> float:
    """One training step of a program for one rank."""
    from plait.ir.capture import materialize

    with session("gloo"):
        source = materialize(SOURCE, dtype="float32", seed=0)
        return Program.open(folder, source.model).step(source.batch).item()


def _checkpoint_subject(folder: Path, model: Model) -> Subject:
    from plait.ir.capture import materialize

    program, store = _program_folder(folder, "saved_program", model), folder / "checkpoints"
    source = materialize(SOURCE, dtype="float32", seed=0)
    with session("gloo"):
        opened = Program.open(program, source.model)
        opened.step(source.batch)
        path = opened.save(store) / "manifest.json"

    def load() -> None:
        with session("gloo"):
            Program.open(program, source.model).load_checkpoint(store)

    verbs = {"check": command("check", store), "load": load}
    return Subject("checkpoint", path.read_bytes(), path, verbs, json_mutants)


def _galvatron_subject(folder: Path) -> Subject:
    path, model = folder / "galvatron.json", folder / "llama.json"
    model.write_bytes(dump(ModelSource(LLAMA).load(), "plait/model"))
    pinned = ("plan", model, "--cluster", "4xh100", "--pin", path)
    verbs = {"check": command("check", path), "plan": command(*pinned, "--time-limit", "0.2")}
    return Subject("galvatron", json.dumps(GALVATRON).encode(), path, verbs, json_mutants)


def _log_subject(folder: Path, plan: Path) -> Subject:
    path = folder / "log.jsonl"
    line = json.dumps({"plan": plan.name, "step_seconds": 0.4, "peak_bytes": 1000})
    fit = command("calibrate", "--log", path, "-o", folder / "fitted.toml")
    return Subject("log", f"{line}\n{line}\n".encode(), path, {"check": fit}, line_mutants)
