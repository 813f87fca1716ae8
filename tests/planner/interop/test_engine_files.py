"""Files of engines: published layouts come back as they were written; the engines' own parsers agree."""

import csv
import json
import random
import shlex
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from plait.api.formats.engine_files import FORMATS, engine_of, engine_text, read_engine_file
from plait.ir.errors import FileError
from plait.ir.plan.engines import ENGINES
from plait.planner.interop.engine_layout import EngineLayout
from plait.planner.interop.megatron import layout_text, parse_layout

TABLE = Path(__file__).with_name("published_layouts.csv")
SUFFIXES = {
    "torchtitan": (".toml", ".args", ".yaml"),
    "megatron": (".args", ".yaml"),
    "deepspeed": (".json",),
    "accelerate": (".yaml", ".json"),
}


def published() -> list[EngineLayout]:
    rows = csv.DictReader(TABLE.open(encoding="utf-8"))
    layouts = []
    for row in rows:
        values = {k: v for k, v in row.items() if k not in ("model", "source")}
        layouts.append(msgspec.convert(values, EngineLayout, strict=False))
    return layouts


def of_engine(name: str) -> list[EngineLayout]:
    return [layout for layout in published() if layout.engine == name]


def sayable(layout: EngineLayout, suffix: str) -> EngineLayout:
    """What the engine's file can say of a layout."""
    if layout.engine == "torchtitan" and suffix == ".args" and layout.pipeline > 1:
        chunks = 2 if layout.model_chunks > 1 else 1  # those of its schedule
        return replace(layout, split=(), model_chunks=chunks)
    if layout.engine == "accelerate":
        return replace(layout, global_batch=None, micro_batch=None, precision="bf16")
    return layout


@pytest.fixture(params=published(), ids=lambda x: f"{x.engine}-{x.strategy}")
def layout(request):
    """A published layout, with stages as even as its engine makes them."""
    layout = replace(request.param, precision="bf16")
    chunks = layout.pipeline * layout.model_chunks
    if layout.pipeline > 1 and layout.engine in ("torchtitan", "megatron"):
        return replace(layout, split=tuple(random.Random(chunks).choices((1, 2, 3), k=chunks)))
    return layout


def test_there_are_enough():
    assert {name: len(of_engine(name)) >= 30 for name in FORMATS} == dict.fromkeys(FORMATS, True)


def test_published_layouts_come_back(layout, tmp_path):
    for suffix in SUFFIXES[layout.engine]:
        path = tmp_path / f"config{suffix}"
        path.write_text(engine_text(layout, ["a comment"], suffix))
        assert read_engine_file(path, layout.devices) == sayable(layout, suffix), suffix


def test_published_layouts_are_strategies_of_their_engine(layout):
    assert layout.strategy.devices == layout.devices
    assert ENGINES[layout.engine].refusal(layout.strategy) is None


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("Et*3|(tt|)*29,m|L", (3, *[2] * 29, 0, 0)),
        ("Ettt|t*4|t*4L", (3, 4, 4)),
        ("E|(t|)*2L", (0, 1, 1, 0)),
    ],
)
def test_layout_strings_repeat(text, split):
    assert parse_layout(text) == split
    assert parse_layout(layout_text(split)) == split


def test_a_script_with_variables(tmp_path):
    path = tmp_path / "train.sh"
    path.write_text(
        """#!/bin/bash
TP=4
export PP=2
torchrun --nproc-per-node 8 pretrain_gpt.py \\
    --tensor-model-parallel-size $TP --pipeline-model-parallel-size=${PP} \\
    --sequence-parallel --use-distributed-optimizer --micro-batch-size ${MBS:-2} \\
    --global-batch-size 64 --bf16  # and more
"""
    )
    layout = read_engine_file(path, 32)
    assert str(layout.strategy) == "pp=2,zero1=4,tp=4,sp"
    assert layout.micro_batches == 8


ARRAYS = """#!/bin/bash
PP=${1:-2}
MODEL_ARGS=(
    --sequence-parallel
    --tensor-model-parallel-size ${TP:=4}   # of a node
    --bf16
)
TRAIN_ARGS=(--use-distributed-optimizer --micro-batch-size 2 --global-batch-size 64)
torchrun pretrain_gpt.py ${MODEL_ARGS[@]} --pipeline-model-parallel-size $PP "${TRAIN_ARGS[@]}" --lr 1
"""
TEXTS = """
TP=4
GPT_ARGS="
    --tensor-model-parallel-size $TP \\
    --pipeline-model-parallel-size 2 --sequence-parallel \\
    --use-distributed-optimizer
    --micro-batch-size 2 --global-batch-size 64
    --bf16
"
torchrun $DISTRIBUTED_ARGS pretrain_gpt.py $GPT_ARGS --tensorboard-dir $LOGS
echo done
"""


@pytest.mark.parametrize("text", [ARRAYS, TEXTS], ids=["arrays", "texts"])
def test_a_script_that_gathers_its_flags(text, tmp_path):
    path = tmp_path / "train.sh"
    path.write_text(text)
    layout = read_engine_file(path, 32)
    assert str(layout.strategy) == "pp=2,zero1=4,tp=4,sp"
    assert (layout.micro_batches, layout.precision) == (8, "bf16")


def test_stages_of_unequal_numbers_of_layers(tmp_path):
    path = tmp_path / "train.args"
    flags = "--num-layers 61 --pipeline-model-parallel-size 16 --decoder-last-pipeline-num-layers 1"
    path.write_text(f"{flags} --use-distributed-optimizer --num-distributed-optimizer-instances 2")
    layout = read_engine_file(path, 128)
    assert layout.split == (4,) * 15 + (1,)
    assert str(layout.strategy) == "pp=16,dp=2,zero1=4"
    path.write_text(engine_text(layout, [], ".args"))
    assert read_engine_file(path, 128) == layout
    path.write_text(
        "--num-layers 30 --pipeline-model-parallel-size 4 --num-virtual-stages-per-pipeline-rank 2 "
        "--account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split"
    )
    assert read_engine_file(path, 8).split == (3, 4, 4, 4, 4, 4, 4, 3)


@pytest.mark.parametrize("theirs", ["GPipe", "ZBVZeroBubble", "DualPipeV"])
def test_schedules_of_torchtitan(theirs, tmp_path):
    path = tmp_path / "train.toml"
    path.write_text(
        f"[parallelism]\npipeline_parallel_degree = 2\npipeline_parallel_schedule = '{theirs}'"
    )
    layout = read_engine_file(path, 8)
    assert layout.pipeline_schedule in ENGINES["torchtitan"].schedules
    path.write_text(engine_text(layout, []))
    assert theirs in path.read_text()
    assert read_engine_file(path, 8) == layout


PIPELINE = "pipeline_parallel_degree"
UNPRICED = [
    ("a.toml", "[training]\nenable_cpu_offload = true\n[parallelism]", "enable_cpu_offload"),
    ("a.toml", "[model]\nconverters = ['float8']\n[parallelism]", "converters: float8"),
    ("a.args", "--tensor-model-parallel-size 1 --fp8-format hybrid", "fp8_format"),
    ("a.json", '{"zero_optimization": {"offload_param": {"device": "nvme"}}}', "on disks"),
    ("a.yaml", "distributed_type: FSDP\nfsdp_config: {fsdp_offload_params: true}", "offload"),
]


@pytest.mark.parametrize(("name", "text", "what"), UNPRICED)
def test_what_no_plan_prices_is_said(name, text, what, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    (setting,) = read_engine_file(path, 8).unpriced
    assert what in setting


def test_an_optimizer_on_the_host(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text(
        '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, '
        '"train_micro_batch_size_per_gpu": 1}'
    )
    layout = read_engine_file(path, 8)
    assert layout.optimizer_on_host
    assert not layout.unpriced
    path.write_text(engine_text(layout, []))
    assert read_engine_file(path, 8) == layout


def test_tensor_ranks_that_split_no_expert_hold_experts(tmp_path):
    path = tmp_path / "train.args"
    path.write_text(
        "--tensor-model-parallel-size 4 --expert-model-parallel-size 16 "
        "--expert-tensor-parallel-size 1 --sequence-parallel"
    )
    layout = read_engine_file(path, 64)
    assert str(layout.strategy) == "dp=4,ep=4,tp=4,sp"
    path.write_text(engine_text(layout, [], ".args"))
    assert read_engine_file(path, 64) == layout


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("a.toml", "[parallelism]\ntensor_parallel_degree = 3", "not 8 devices"),
        ("a.toml", "[parallelism]\ntensor_parallel_degree = 'x'", r"parallelism.tensor_parallel_degree"),
        ("a.toml", "[parallelism", "toml"),
        ("a.toml", "[other]\nx = 1", "no configuration of"),
        ("a.yaml", "distributed_type: FSDP\nnum_processes: 4", "num_processes"),
        ("a.yaml", "distributed_type: &a FSDP\nx: *a", "alias"),
        ("a.yaml", "a: 1\na: 2", "twice"),
        ("a.yaml", "!!python/object:os.system\nx: 1", "plain YAML|mapping|tag"),
        ("a.json", '{"train_batch_size": 8, "zero_optimization": {"stage": 9}}', r"stage"),
        ("a.json", '{"train_batch_size": 12, "train_micro_batch_size_per_gpu": 8}', "multiple"),
        ("a.args", "--tensor-model-parallel-size 0", "tensor_model_parallel_size"),
        ("a.args", "--expert-tensor-parallel-size 2", "expert_tensor"),
        ("a.args", "--tensor-model-parallel-size 8 --expert-model-parallel-size 4", "expert ranks"),
        ("a.args", "--pipeline-model-parallel-layout 'Ex|L'", "made of"),
        ("a.sh", "if a; then T=1; else T=2; fi\nx --micro-batch-size $T", r"no one value of \$T"),
        ("a.args", "--pipeline-model-parallel-size 4 --decoder-last-pipeline-num-layers 1", "num_l"),
        ("a.toml", f"[parallelism]\n{PIPELINE} = 2\npipeline_parallel_schedule = 'x'", "no price for x"),
        ("a.args", "--pipeline-model-parallel-layout '((t*9999)*9999)*9999'", "too long"),
    ],
)  # fmt: skip
def test_broken_files_say_where(name, text, what, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(FileError, match=what) as error:
        read_engine_file(path, 8)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "layout", of_engine("torchtitan"), indirect=True, ids=lambda x: str(x.strategy)
)
def test_torchtitan_parses_what_is_written(layout):
    tyro = pytest.importorskip("tyro")
    configs = pytest.importorskip("torchtitan.config.configs")
    manager = pytest.importorskip("torchtitan.config.manager")
    settings = FORMATS["torchtitan"].settings(layout)
    parallelism = configs.ParallelismConfig(**settings["parallelism"])
    assert parallelism.module_fqns_per_model_part is None or sum(layout.split) == sum(
        name.startswith("layers.")
        for part in parallelism.module_fqns_per_model_part
        for name in part
    )
    parallelism.module_fqns_per_model_part = None  # its command line has no lists of lists
    training = configs.TrainingConfig(**settings["training"])
    lines = engine_text(layout, [], ".args").replace("--parallelism.", "--").splitlines()
    flags = " ".join(
        line for line in lines if line.split()[0].lstrip("-") in settings["parallelism"]
    )
    parsed = tyro.cli(
        configs.ParallelismConfig, args=shlex.split(flags), registry=manager.custom_registry
    )
    assert parsed == parallelism
    assert training.local_batch_size * layout.data <= layout.global_batch


@pytest.mark.parametrize(
    "layout", of_engine("deepspeed"), indirect=True, ids=lambda x: str(x.strategy)
)
def test_deepspeed_parses_what_is_written(layout):
    runtime = pytest.importorskip("deepspeed.runtime.config")
    settings = json.loads(engine_text(layout, ["a comment"]))
    settings |= {"train_batch_size": layout.global_batch // layout.devices * layout.tensor}
    config = runtime.DeepSpeedConfig(settings | {"gradient_accumulation_steps": None})
    assert config.zero_optimization_stage == layout.zero_stage
    assert config.train_micro_batch_size_per_gpu == layout.micro_batch


@pytest.mark.parametrize(
    "layout", of_engine("accelerate"), indirect=True, ids=lambda x: str(x.strategy)
)
def test_accelerate_parses_what_is_written(layout, tmp_path):
    arguments = pytest.importorskip("accelerate.commands.config.config_args")
    path = tmp_path / "config.yaml"
    path.write_text(engine_text(layout, ["a comment"]))
    config = arguments.load_config_from_file(str(path))
    assert config.num_processes == layout.devices
    sizes = config.parallelism_config
    assert sizes.get("parallelism_config_dp_shard_size", 1) == layout.shards


def test_settings_tell_their_engine():
    for name, format_ in FORMATS.items():
        layout = next(x for x in published() if x.engine == name)
        assert engine_of(format_.settings(layout)) == name
