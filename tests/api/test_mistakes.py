"""Likely mistakes: the error names what was meant, at the command line in one or two lines."""

import re
import shlex
from shutil import copy

import pytest
import torch
from torch import nn

import plait
from plait.api.cli import command_parser, main
from plait.api.commands.table import COMMANDS
from plait.ir.errors import UsageError
from plait.tests.paths import EXAMPLES, LLAMA

HF = f"hf:{EXAMPLES / 'configs' / 'gpt2.json'}"
PLAN = "plan model.json --cluster 4xh100"
MISTAKES = {
    "plann model.json": "did you mean plan?",
    "apply plan.json": "did you mean compile?",
    "show plan.json": "did you mean view?",
    "explian plan.json": "did you mean explain?",
    "plan model.json": "arguments are required: --cluster",
    "plan modle.json --cluster 4xh100": "modle.json: No such file",
    "plan model.json --clusters 4xh100": "unknown option --clusters; did you mean --cluster?",
    "plan model.json --cluser 4xh100": "unknown option --cluser; did you mean --cluster?",
    f"{PLAN} --microbatches 4": "did you mean --micro-batches?",
    f"{PLAN} --globalbatch 4": "did you mean --global-batch?",
    "plan model.json --cluster 8h100": "did you mean 8xh100?",
    "plan model.json --cluster 8*h100": "did you mean 8xh100?",
    "plan model.json --cluster 8xa100": "kinds: a100-40, a100-80",
    "plan model.json --cluster 8xh1000": "kinds: h100",
    f"{PLAN} --dtype bf16": "did you mean --precision?",
    f"{PLAN} --gpus 4": "did you mean --cluster?",
    f"{PLAN} --recompute": "did you mean --memory-actions?",
    f"{PLAN} --objective cost": "did you mean dollars?",
    f"{PLAN} --global-batch 0": "0 samples in a global batch: there must be 1 or more",
    f"{PLAN} --global-batch -4": "-4 samples in a global batch: there must be 1 or more",
    f"{PLAN} --memory 80": "80 of memory has no unit; write 80GiB or 80GB",
    f"{PLAN} --memory lots": "'lots' is not a size; write it like 72GiB",
    f"{PLAN} --pin *:fsdp=4": "did you mean zero3?",
    f"{PLAN} --pin *:ddp=4": "did you mean dp?",
    f"{PLAN} --pin *:zero=4": "did you mean zero3?",
    f"{PLAN} --pin *:zero-3=4": "did you mean zero3?",
    f"{PLAN} --pin *:tensor=4": "did you mean tp?",
    f"{PLAN} --pin *:pipeline=4": "did you mean pp?",
    f"{PLAN} --pin *:expert=4": "did you mean ep?",
    f"{PLAN} --pin *:ring=4": "did you mean cp?",
    f"{PLAN} --pin *:ulysses=4": "did you mean sp?",
    f"{PLAN} --pin *:tp4": "write tp=4, not tp4",
    f"{PLAN} --pin *:tp": "tp needs a size, as in tp=2",
    f"{PLAN} --pin *:tp=8": "tp=8 is for 8 devices, the cluster has 4",
    f"{PLAN} --pin layer*:dp=4": "matches no layer; there are: data, entry, model.layers.0",
    f"{PLAN} --roles ddp,fsdp": "did you mean dp?",
    f"{PLAN} --precision bfloat16": "did you mean bf16?",
    f"{PLAN} --precision half": "did you mean fp16?",
    f"{PLAN} --optimizer AdamW": "did you mean adamw?",
    f"{PLAN} --optimizer adam-w": "did you mean adamw?",
    f"{PLAN} --micro-batches 7": "16 samples do not divide into 7 micro-batches; 8 or 4 do",
    f"{PLAN} --schedule 1F1B": "did you mean 1f1b?",
    f"{PLAN} --schedule zero-bubble": "did you mean zb-h1?",
    f"{PLAN} --schedule vpp": "did you mean interleaved?",
    f"{PLAN} --compress int8": "did you mean int8-activations?",
    f"{PLAN} --memory-actions checkpointing": "did you mean recompute?",
    f"{PLAN} --engine megatron-lm": "did you mean megatron?",
    f"{PLAN} --engine fsdp2": "did you mean torch?",
    "plan none.py --cluster 4xh100": "there is no file none.py",
    f"plan {EXAMPLES / 'small_llama.py'} --cluster 4xh100": "which function makes the model",
    f"plan {LLAMA[:-1]} --cluster 4xh100": "has no function 'mak'",
    "plan some-org/some-model --cluster 4xh100": "looks like a name on a model hub",
    f"trace {HF} --batch 0": "0 samples in a batch: there must be 1 or more",
    f"trace {HF} --seq 0": "0 tokens in a sample: there must be 1 or more",
    "view model.json --format perfetto": "did you mean chrome-trace?",
    "export plan.json --to megatron-core": "unknown engine 'megatron-core'; did you mean megatron?",
    "explain model.json": "a model, where a plan is expected (`plait plan` writes one)",
    "run model.json": "model.json is a file, not the folder of a program",
    f"{PLAN} -o none/plan.json": "none/plan.json: there is no folder",
    f"{PLAN} --batch 4": "--batch 4 is for hf: sources",
    f"{PLAN} --global-batch 64k": "--global-batch takes a whole number, not '64k'",
    f"{PLAN} --time-limit 5min": "--time-limit takes a number, not '5min'",
    f"{PLAN} --memory -4GiB": "--memory needs a value",
    f"{PLAN} --roles 'dp tp'": "did you mean dp,tp?",
    f"{PLAN} --pin tp:4": "write tp=4",
    f"{PLAN} --pin dp=4 --schedule zb-h1": "pin dp=4 has no stages: add pp",
    "plan model.json --cluster 2x8xh200-sxm": "did you mean 2x8xh200?",
    "plan model.json --cluster local": "did you mean local:4?",
    "plan model.json --cluster 8": "`plait clusters` lists the kinds",
    "plan hf:gpt2 --cluster 4xh100": "hf: takes the config.json",
    "compile model.json": "arguments are required: SOURCE",
}


IN_PYTHON = {  # arguments of `parallelize` beside or instead of the model and its batch
    "the model comes first": {"model": {}, "batch": nn.ReLU()},
    "model is the class ReLU: give one of it": {"model": nn.ReLU},
    "there is nothing to train": {"model": nn.ReLU()},
    "it is the optimizer's: optimizer_args={'lr': …}": {"lr": 1e-3},
    "give a dict, as in {'lr': 3e-4}": {"optimizer_args": 3e-4},
    "did you mean 'micro_batches'?": {"mirco_batches": 2},
    "did you mean 'pin'?": {"strategy": "dp=2"},
    "did you mean 'precision'?": {"dtype": "bf16"},
    "precision=torch.bfloat16 is a dtype, not a text; did you mean 'bf16'?": {
        "precision": torch.bfloat16
    },
    "micro_batches=2.0 is a float, not an int": {"micro_batches": 2.0},
    "a strategy is pin='dp=2'": {"plan": "dp=2"},
    "write '8xh100', or 'local:8'": {"cluster": 8},
    "unknown inputs 'locl'; did you mean local?": {"inputs": "locl"},
    "unknown nonfinite 'skipp'; did you mean skip?": {"nonfinite": "skipp"},
    "timeout_seconds='60' is no number of seconds": {"timeout_seconds": "60"},
    "check_every=-2 is no number of steps": {"check_every": -2},
}


@pytest.mark.parametrize("message", IN_PYTHON)
def test_python_says_what_was_meant(message):
    arguments = {"model": nn.Linear(2, 2), "batch": torch.zeros(2, 2)} | IN_PYTHON[message]
    with pytest.raises((UsageError, TypeError), match=re.escape(message)):
        plait.parallelize(**arguments)
    with pytest.raises(AttributeError, match="did you mean parallelize"):
        plait.paralelize  # noqa: B018


@pytest.fixture(scope="module")
def folder(tmp_path_factory, llama_file):
    folder = tmp_path_factory.mktemp("mistakes")
    copy(llama_file, folder / "model.json")
    return folder


@pytest.mark.parametrize("line", MISTAKES)
def test_the_error_says_what_was_meant(line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    try:
        code = main(shlex.split(line.replace("*", "\\*")))
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code in (2, 6)
    assert MISTAKES[line] in error
    assert len(error.splitlines()) <= 2


def test_a_name_that_is_like_no_other_gets_the_list_alone(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(shlex.split(f"{PLAN} --optimizer zzz")) == 2
    assert "unknown optimizer 'zzz'; known: adamw, adam" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_examples_of_help_are_command_lines(command):
    parser = command_parser(command.name)
    for line in command.examples():
        assert parser.parse_args(shlex.split(line.split(" > ")[0])[1:]).command == command.name


def test_a_program_that_cannot_be_written_is_refused(files, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["compile", *reversed(files), "-o", str(tmp_path / "file" / "program")]) == 6
    assert "file/program: Not a directory" in capsys.readouterr().err
