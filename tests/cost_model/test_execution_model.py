"""Execution models: every line has a source, names pick them, defaults are those of programs."""

import pytest

from plait.cost_model.execution_model import (
    GENERATED,
    execution_model,
    execution_model_files,
    execution_model_of_framework,
)
from plait.ir.errors import UsageError


@pytest.mark.parametrize("name", execution_model_files())
def test_every_line_has_a_source(name: str) -> None:
    file = execution_model_files()[name]
    assert file.model.keys() == file.sources.keys() >= file.fp16.keys()
    assert file.execution("float16") is not None


def test_programs_of_our_own_have_the_defaults() -> None:
    assert execution_model("plait") == GENERATED


def test_names_of_frameworks_pick_models_by_year() -> None:
    assert execution_model_of_framework("NeMo/Megatron-Core", 2025) == "nemo"
    assert execution_model_of_framework("Megatron-LM", 2021) == "megatron-2022"
    assert execution_model_of_framework("Megatron-LM", 2025) == "megatron"
    assert execution_model_of_framework("torchtitan FSDP2", 2024) == "torchtitan-2024"
    assert execution_model_of_framework("torchtitan FSDP2", 2025) == "torchtitan"
    assert execution_model_of_framework("Megatron-DeepSpeed", 2022) == "megatron-deepspeed-2022"
    assert execution_model_of_framework("Megatron-DeepSpeed", 2024) == "megatron-deepspeed"
    assert execution_model_of_framework("NeMo AutoModel", 2025) == "torchtitan"
    assert execution_model_of_framework("GPT-NeoX", 2023) == "neox-2023"
    assert execution_model_of_framework("GPT-NeoX", 2024) == "megatron-deepspeed"
    assert execution_model_of_framework("nanotron", 2025) == "nanotron"
    assert execution_model_of_framework("nanotron", 2024) == "nanotron-2024"
    assert execution_model_of_framework("a framework of tomorrow", 2026) is None
    with pytest.raises(UsageError, match="torchtitan"):
        execution_model("none such")


def test_gradients_are_summed_whole_where_weights_are() -> None:
    deepspeed = execution_model("deepspeed")
    assert deepspeed.scattering({"gradient", "optimizer"}) == "all_reduce"
    assert deepspeed.scattering({"parameter", "gradient", "optimizer"}) == "reduce_scatter"
    assert execution_model("fsdp2").scattering({"gradient"}) == "reduce_scatter"
