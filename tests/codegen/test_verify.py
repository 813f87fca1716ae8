"""The promise as a test: generated programs on 4 gloo ranks compute what one process computes."""

import re
from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.plan.memory_action import MemoryAction
from plait.ir.plan.strategy import parse_strategy
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import Pin, pin_all
from plait.runtime.verification.verify import Job, verify
from plait.tests.codegen.sources import Sourced, sourced

# fmt: off
STRATEGIES = (
    "dp=4", "zero1=4", "zero2=4", "zero3=4", "tp=4", "pp=4", "dp=2,tp=2", "pp=2,zero3=2",
    "pp=2,tp=2", "dp=4 recompute", "dp=2,zero1=2 recompute", "tp=4,sp", "sp=4", "cp=4",
    "zero3=2,cp=2", "sp=2,tp=2", "pp=2,tp=2,sp", "tp=4,sp save 50%", "pp=2,zero3=2 save 25%",
    "dp=4 split 2", "tp=4,sp split 2", "pp=2,zero3=2 offload 50%",
)
# fmt: on
EXPERTS = ("dp=4", "tp=4", "ep=4", "zero3=2,ep=2", "ep=2,tp=2,sp", "pp=2,ep=2", "ep=2,sp=2")
INTERLEAVED = ("pp=2,dp=2", "pp=2,tp=2,sp recompute", "pp=2,zero3=2")
SCHEDULES = ("gpipe", "bidirectional", "zbv", "v-half", "v-min", "dualpipev", "zb-h1")
SCHEDULED = ("pp=2,dp=2", "pp=2,tp=2,sp recompute", "pp=2,zero3=2 split 2", "pp=2,zero2=2 offload")
MIXED = (  # the rest of the model, then layers by number with their strategy and action
    ("dp=4", "[1-2]:dp=2,tp=2 recompute"),
    ("zero3=4", "2:tp=4 keep", "1:dp=2,tp=2 recompute"),
    ("zero3=2,tp=2", "[2-3]:dp=4 recompute"),
    ("pp=2,dp=2", "[1-2]:pp=2,tp=2 keep"),
    ("dp=2,tp=2,sp", "[0-1]:zero2=4 keep"),
    ("cp=4", "[2-3]:dp=4 keep"),
)


def programs(
    name: str, made_from: Sourced, folder: Path, strategies=STRATEGIES, schedule="1f1b"
) -> list[Job]:
    """Compile one model under every word; four layers, dropout as the model has it."""
    model, source, file = made_from
    jobs = []
    for i, strategy_text in enumerate(strategies):
        strategy, *variant = strategy_text.split(" ", 1)
        parsed = parse_strategy(strategy)
        options = PlanOptions(
            pins=pin_all(strategy),
            memory_actions=tuple(variant) or ("keep",),
            micro_batches=4 if parsed.size("pp") > 1 else 1,
            schedule=schedule,
        )
        made = plan(model, load_cluster("local:4"), options)
        assert parsed.stages == 1 or made.schedule == schedule
        place = folder / f"{name}_{schedule}_{i}"
        write_program(compile_program(made, model), place)
        jobs.append(Job(f"{name} {strategy_text}", str(place), source, file))
    return jobs


def broken(made_from: Sourced, folder: Path) -> Job:
    """A program that lost one of its collectives."""
    job = programs("llama", made_from, folder, ("tp=4",))[0]
    file = Path(job.folder, "functions", "llama_decoder_layer.py")
    text = file.read_text()
    without = re.sub(r"comm\.all_reduce\((\w+), \"tp\"\)", r"\1", text, count=1)
    assert without != text
    file.write_text(without)
    return replace(job, name="a collective is missing")


def mixed(made_from: Sourced, folder: Path, layouts=MIXED) -> list[Job]:
    model, source, file = made_from
    block = max(Counter(c.function for c in model.calls).items(), key=lambda x: x[1])[0]
    jobs = []
    for i, (rest, *others) in enumerate(layouts):
        pins = [*pin_all(rest)]
        for other in others:
            numbers, strategy_text, action = re.split("[: ]", other)
            pins.append(
                Pin(f"{block}{numbers}", parse_strategy(strategy_text), MemoryAction.parse(action))
            )
        options = PlanOptions(pins=tuple(pins), micro_batches=2 if "pp" in rest else 1)
        made = plan(model, load_cluster("local:4"), options)
        assert len(made.strategies) == len(pins)
        write_program(compile_program(made, model), folder / str(i))
        jobs.append(Job(made.strategy_text, str(folder / str(i)), source, file, steps=3))
    return jobs


@pytest.fixture(
    scope="module", params=[22, pytest.param(1, marks=pytest.mark.long)], ids=["some", "all"]
)
def verdicts(request, tmp_path_factory):
    """Verdicts by the name of what is tested: starting ranks costs more than running a program, so
    all programs run in one launch. By default every model takes some of the strategies, others each."""
    share, folder = request.param, tmp_path_factory.mktemp("programs")
    sources = {n: sourced(n, folder, "4, seq=16") for n in ("gpt2", "llama", "bert", "mixtral")}
    jobs = {
        name: programs(name, sources[name], folder, STRATEGIES[7 * i % share :: share])
        for i, name in enumerate(("gpt2", "llama", "bert"))
    }
    jobs["interleaved"] = [
        job
        for i, name in enumerate(("gpt2", "llama"))
        for job in programs(
            name,
            sources[name],
            folder,
            INTERLEAVED if share == 1 else INTERLEAVED[i::3],
            "interleaved",
        )
    ]
    jobs["schedules"] = [
        job
        for i, schedule in enumerate(SCHEDULES)
        for job in programs(
            "llama",
            sources["llama"],
            folder,
            SCHEDULED if share == 1 else SCHEDULED[i % 4 : i % 4 + 1],
            schedule,
        )
        if share == 1 or i % 3 == 1
    ]
    jobs["experts"] = programs(
        "mixtral", sources["mixtral"], folder, EXPERTS if share == 1 else EXPERTS[3::4]
    )
    for i, name in enumerate(("gpt2", "llama")):
        layouts = MIXED if share == 1 else MIXED[i::6]
        jobs[f"{name}, mixed"] = mixed(sources[name], folder / f"{name}_mixed", layouts)
    (folder / "broken").mkdir()
    jobs["broken"] = [broken(sources["llama"], folder / "broken")]
    verdict = iter(verify([job for group in jobs.values() for job in group], 4, 900))
    return {name: [next(verdict) for _ in group] for name, group in jobs.items()}


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_every_strategy_computes_what_one_process_computes(name, verdicts):
    assert len(verdicts[name]) >= len(STRATEGIES) // 22
    for verdict in verdicts[name]:
        assert verdict.passed, str(verdict)


@pytest.mark.ranks
def test_stages_of_several_chunks_compute_what_one_process_computes(verdicts):
    assert len(verdicts["interleaved"]) >= 2
    for verdict in verdicts["interleaved"]:
        assert verdict.passed, str(verdict)


@pytest.mark.ranks
def test_every_schedule_computes_what_one_process_computes(verdicts):
    assert len(verdicts["schedules"]) >= len(SCHEDULES) // 3
    for verdict in verdicts["schedules"]:
        assert verdict.passed, str(verdict)


@pytest.mark.ranks
def test_experts_apart_compute_what_one_process_computes(verdicts):
    assert len(verdicts["experts"]) >= len(EXPERTS[3::4])
    for verdict in verdicts["experts"]:
        assert verdict.passed, str(verdict)


@pytest.mark.ranks
def test_a_removed_collective_is_noticed(verdicts):
    assert [verdict.passed for verdict in verdicts["broken"]] == [False]


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_layers_of_one_plan_may_differ(name, verdicts):
    assert len(verdicts[f"{name}, mixed"]) >= 1
    for verdict in verdicts[f"{name}, mixed"]:
        assert verdict.passed, verdict
