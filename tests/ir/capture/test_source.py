"""Sources: factories in files and modules, and transformers configurations."""

import json

import pytest
import torch

from plait.ir.capture import load_source, materialize, trace
from plait.ir.errors import FileError, TraceError, UsageError

FACTORY = """
import copy

import torch
from torch import nn

calls = []

def tiny():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    calls.append(str(model[0].weight.device) + type(model[0].weight.data).__name__)
    return model, torch.randn(4, 8), lambda output, batch: output.pow(2).mean()

def averaged():
    norm = nn.BatchNorm1d(8)
    return nn.Sequential(norm, copy.deepcopy(norm)), torch.randn(4, 8), lambda output, _: output.mean()

def needs_values():
    model = nn.Linear(8, 8)
    if model.weight.sum() > 1e9:
        raise ValueError("too large")
    return model, torch.randn(4, 8), lambda output, batch: output.sum()

def wrong():
    return 7

def failing():
    return undefined_name
"""
# fmt: off
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "vocab_size": 64,
}
# fmt: on


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "models_here.py"
    path.write_text(FACTORY)
    return path


def config(tmp_path, **values):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    return f"hf:{path}"


def test_a_factory_is_called_without_allocating(file) -> None:
    source = load_source(f"{file}:tiny")
    assert isinstance(source.model[0].weight, torch._subclasses.FakeTensor)
    assert source.name == "tiny"
    model = trace(source.model, source.batch, source.loss_fn)
    real = materialize(f"{file}:tiny")
    assert model == trace(real.model, real.batch, real.loss_fn)


def test_copies_in_a_factory_have_no_memory_either(file) -> None:
    norm, copied = load_source(f"{file}:averaged").model
    assert isinstance(copied.running_mean, torch._subclasses.FakeTensor)
    assert copied.running_mean is not norm.running_mean


def test_a_factory_that_needs_values_gets_them(file) -> None:
    source = load_source(f"{file}:needs_values")
    assert trace(source.model, source.batch, source.loss_fn).parameters[0].type.shape == (8, 8)


def test_real_models_follow_the_seed(file) -> None:
    one, same, other = (materialize(f"{file}:tiny", seed=s, dtype="float64") for s in (1, 1, 2))
    assert one.model[0].weight.dtype == one.batch.dtype == torch.float64
    assert torch.equal(one.model[0].weight, same.model[0].weight)
    assert torch.equal(one.batch, same.batch)
    assert not torch.equal(one.batch, other.batch)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.py:f", "no file"),
        ("no_such_module_at_all:f", "no module"),
        ("justaname", "known form"),
        ("json:absent", "no function"),
        ("json:dumps()", "no function"),
        ("hf:nothing.json", "no file"),
    ],
)
def test_what_is_not_there(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_source(source, batch=2, seq=8)


def test_factories_that_fail_are_located(file) -> None:
    line = FACTORY.split("\n").index("    return undefined_name") + 1
    with pytest.raises(TraceError, match=f"models_here.py:{line}"):
        load_source(f"{file}:failing")
    with pytest.raises(UsageError, match="must return"):
        load_source(f"{file}:wrong")


def test_a_configuration_is_built_and_traced(tmp_path) -> None:
    source = load_source(config(tmp_path, **LLAMA, use_cache=True), batch=2, seq=8)
    assert source.model.training
    assert not source.model.config.use_cache  # a training step reads none
    assert source.model.lm_head.weight.is_meta
    assert source.name == "LlamaForCausalLM"
    model = trace(source.model, source.batch, source.loss_fn, name=source.name)
    assert [i.type.shape for i in model.inputs] == [(2, 8), (2, 8)]


def test_a_configuration_names_class_and_precision(tmp_path) -> None:
    values = {**LLAMA, "architectures": ["LlamaForSequenceClassification"], "dtype": "bfloat16"}
    source = materialize(config(tmp_path, **values, pad_token_id=0), batch=2, seq=8)
    assert type(source.model).__name__ == "LlamaForSequenceClassification"
    assert source.model.score.weight.dtype == torch.bfloat16
    assert source.batch["input_ids"].max() < 64


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model_type": 7}, FileError),
        ({"model_type": "no-such"}, UsageError),
        ({"architectures": ["AutoConfig"]}, UsageError),
        ({"architectures": ["os; import sys"]}, UsageError),
        ({"num_attention_heads": 0}, TraceError),
        ({"dtype": "float7"}, UsageError),
    ],
)
def test_wrong_configurations(tmp_path, change, error) -> None:
    with pytest.raises(error):
        load_source(config(tmp_path, **{**LLAMA, **change}), batch=2, seq=8)


def test_a_language_model_needs_a_length_and_has_a_sample(tmp_path) -> None:
    with pytest.raises(UsageError, match="--seq"):
        load_source(config(tmp_path, **LLAMA), batch=2)
    assert load_source(config(tmp_path, **LLAMA), seq=2).batch["input_ids"].shape == (1, 2)
