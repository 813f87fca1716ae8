"""Runs described by rows: what is read, what is refused and why, and how predictions move."""

import csv
import json
from random import Random

import pytest
from msgspec.structs import replace

from plait.api.cli import main
from plait.api.predict.architecture import Architecture, read_architecture, usual_heads
from plait.api.predict.assume import assume
from plait.api.predict.deepen import deepen
from plait.api.predict.predictor import (
    Predictor,
    padded_vocabulary,
    reserved_bytes,
    traced_kinds,
    traced_layers,
)
from plait.api.predict.run import read_run
from plait.api.predict.table import predict_row
from plait.api.predict.tracing import trace
from plait.ir.analysis.verify_model import verify_model
from plait.tests.sampling import some

# fmt: off
ROW = {
    "row_id": "r1", "layers": "4", "hidden": "256", "heads": "8", "kv_heads": "8", "ffn": "1024",
    "gated_mlp": "1", "vocab": "8192", "seq_len": "512", "precision": "bf16", "gpu": "A100-SXM",
    "gpu_mem_gb": "80", "num_gpus": "16", "gpus_per_node": "8", "inter_node_gbps_per_gpu": "200",
    "dp": "4", "zero_stage": "1", "tp": "2", "pp": "2", "vpp": "1", "sp": "1", "microbatch": "2",
    "global_batch": "32", "recompute": "none", "flash_attn": "1",
}
# fmt: on


@pytest.fixture(scope="module")
def predictor():
    return Predictor()


def predict(predictor, **changes):
    row = {**ROW, **{k: str(v) for k, v in changes.items()}}
    return predictor.predict(read_architecture(row), read_run(row))


def test_a_row_becomes_a_strategy():
    run = read_run(ROW)
    assert str(run.layout.strategy) == "pp=2,zero1=4,tp=2,sp"
    assert run.micro_batches == 4
    sharded = read_run({**ROW, "shard_group": "2"})
    assert str(sharded.layout.strategy) == "pp=2,dp=2,zero1=2,tp=2,sp"
    alone = read_run({**ROW, "dp": "1", "cp": "4", "zero_stage": "3", "global_batch": "8"})
    assert str(alone.layout.strategy) == "pp=2,zero3=1,cp=4,tp=2,sp"  # sharded over context ranks
    assert read_run({**ROW, "recompute": "none/selective (not printed)"}).recompute == "unknown"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden": ""}, "hidden is missing"),
        ({"hidden": "x"}, "not a number"),
        ({"tp": "3"}, "for 24 devices, not 16"),
        ({"gpu": "Abacus", "gpu_mem_gb": ""}, "not known"),
        ({"gpu": "2xH100+2xA100"}, "several kinds"),
        ({"layers": "1"}, "cannot"),
        ({"layers": "nan"}, "layers"),
        ({"heads": "7"}, "not a multiple"),
        ({"tp": "0"}, "tp"),
    ],
)
def test_what_cannot_be_modelled_says_why(predictor, changes, reason):
    made = predict_row({**ROW, **changes}, predictor)
    assert made.predicted_step_time_s is None
    assert made.fits is None
    assert reason in made.note


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"global_batch": "30"}, "30 is not a multiple of 8 samples at once: 32"),
        ({"recompute": "lucky"}, "'lucky' is not known"),
        ({"precision": "int3"}, "int3' is not known: bf16"),
        ({"precision": "nvfp4"}, "no rate for nvfp4: bf16"),
        ({"gpu": "Abacus"}, "'Abacus' is not known: h100-pcie-80, the nearest"),
        ({"task": "dance"}, "'dance' is not known: pretrain"),
        ({"dp": "8"}, "dp 8 does not fill 16 devices"),
        ({"gpus_per_node": "5"}, "do not fill nodes of 5"),
        ({"shard_group": "3"}, "shard_group does not divide dp 4"),
    ],
)
def test_what_a_row_does_not_say_is_assumed_and_named(predictor, changes, note):
    plain, assumed = predict_row(ROW, predictor), predict_row({**ROW, **changes}, predictor)
    assert note in assumed.note
    assert assumed.predicted_step_time_s == pytest.approx(plain.predicted_step_time_s, rel=0.4)


# fmt: off
DRAWN = {
    "gpu": ("H100", "H200-SXM", "GH200", "B300", "GB200", "MI355X", "TPU v5p", "v6e", "A800", "L40S"),
    "framework": ("", "Megatron-LM", "torchtitan FSDP2", "MaxText", "OLMo-core", "DeepSpeed"),
    "precision": ("", "bf16", "fp8-rowwise", "nvfp4", "int8", "fp16", "tf32"),
    "recompute": ("", "none", "full", "selective", "core_attn", "moe_act", "what"),
    "num_gpus": (1, 2, 6, 8, 12, 64, 100), "tp": (1, 2, 4), "pp": (1, 2, 3), "cp": (1, 2),
    "dp": ("",), "ep": (1, 2, 8), "zero_stage": (0, 1, 3), "vpp": (1, 2), "microbatch": ("", 1, 3),
    "global_batch": ("", 1, 7, 64), "gpus_per_node": (1, 8), "flash_attn": (0, 1),
    "experts": ("", 8), "topk": (2,), "moe_ffn": (256,), "seq_len": (512, 8192),
    "task": ("", "sft", "lora"),
}
# fmt: on


@pytest.mark.parametrize("seed", some(range(12), 12))
def test_no_description_breaks_a_prediction(predictor, seed):
    draw = Random(seed)
    for _ in range(2):
        row = {**ROW, "layers": "6", **{k: str(draw.choice(v)) for k, v in DRAWN.items()}}
        prediction = predict_row(row, predictor)
        seconds, peak = prediction.predicted_step_time_s, prediction.predicted_peak_mem_gb
        assert prediction.note
        if seconds is not None:
            assert 0 < seconds < 1e4, row
            assert peak is not None
            assert 0 < peak < 1e4, row


def test_first_layers_have_no_experts():
    shape = Architecture(64, 4, 4, 128, 96, 16, 16, experts=4, dense_layers=2, window=8)
    kinds = shape.kinds(5)
    assert [kind.feed for kind in kinds] == ["dense"] * 2 + ["experts"] * 3
    assert [kind.mixer for kind in kinds] == ["window", "attention"] * 2 + ["window"]
    assert traced_layers(kinds, traced_kinds(kinds, frozen=False))[0] == 0


def test_hybrids_have_layers_of_several_kinds(predictor, tmp_path):
    config = {
        "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 512,
        "intermediate_size": 512, "hybrid_override_pattern": "M-M*-M", "mamba_num_heads": 8,
        "mamba_head_dim": 64, "ssm_state_size": 32, "n_groups": 4,
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    row = {**ROW, "config": str(path), **dict.fromkeys(("layers", "hidden", "ffn", "heads"), "")}
    shape = read_architecture(row)
    assert [kind.mixer[:2] for kind in shape.kinds(6)] == ["st", "no", "st", "at", "no", "st"]
    made = predict_row(row, predictor)
    assert made.predicted_step_time_s
    assert made.note == "engine megatron, the nearest to no framework, which is not known"


def test_hosts_that_wait_for_devices_and_odd_heads_take_time(predictor):
    old, new = (predict(predictor, framework="Megatron-DeepSpeed", year=y) for y in (2022, 2024))
    assert old.step_seconds > 1.2 * new.step_seconds
    wide = {"flash_attn": 0, "seq_len": 2048, "hidden": 1024, "heads": 8, "kv_heads": 8}
    odd, even = (predict(predictor, **wide, head_size=size) for size in (108, 112))
    assert odd.step_seconds > even.step_seconds  # whose products the matrix units compute


def test_windows_save_time(predictor):
    wide = {"seq_len": 8192, "tp": 1, "sp": 0, "pp": 1, "dp": 16, "microbatch": 1}
    shape = {**ROW, **{k: str(v) for k, v in wide.items()}}
    run, full = read_run(shape), read_architecture(shape)
    narrow = replace(full, window=128, window_period=2)
    assert predictor.predict(narrow, run).step_seconds < predictor.predict(full, run).step_seconds


def test_uneven_routing_takes_longer_and_more_memory(predictor):
    mixed = {"experts": 16, "topk": 2, "moe_ffn": 512, "tp": 1, "sp": 0, "pp": 1, "dp": 16, "ep": 8}
    even, zipf, dropped = (
        predict(predictor, **mixed, framework="Megatron-LM", routing=routing)
        for routing in ("balanced", "zipf:1", "capacity:1")
    )
    assert even.step_seconds < zipf.step_seconds
    assert even.allocated_bytes < zipf.allocated_bytes
    assert dropped.step_seconds == even.step_seconds


def test_more_work_takes_longer_and_more_memory(predictor):
    plain = predict(predictor)
    deeper, longer = predict(predictor, layers=8), predict(predictor, global_batch=64)
    assert deeper.step_seconds > 1.5 * plain.step_seconds
    assert deeper.peak_bytes > plain.peak_bytes
    assert longer.step_seconds > 1.5 * plain.step_seconds


def test_recomputing_trades_memory_for_time(predictor):
    shape = {"microbatch": 8, "seq_len": 2048, "global_batch": 128}
    whole_activations = predict(predictor, **shape)
    half = predict(predictor, **shape, recompute="selective_layer")
    full = predict(predictor, **shape, recompute="full")
    assert whole_activations.step_seconds < half.step_seconds < full.step_seconds
    assert whole_activations.allocated_bytes > half.allocated_bytes > full.allocated_bytes


def test_sharded_tokens_are_saved_as_shards(predictor):
    """A layer saves 34 bytes per token, channel and rank (Korthikanti et al. 2022), two of them for
    dropout, which is not here."""
    batch, tokens, width = 8, 2048, 1024
    shape = {"microbatch": batch, "seq_len": tokens, "global_batch": 32, "gated_mlp": 0}
    sizes = {"hidden": width, "ffn": 4 * width, "tp": 4, "pp": 1, "framework": "Megatron-LM"}
    four, eight = (
        dict(predict(predictor, **shape, **sizes, layers=layers).stages[0].memory_terms)
        for layers in (4, 8)
    )
    per_layer = (eight["activations"] - four["activations"]) / 4
    assert per_layer == pytest.approx(32 * batch * tokens * width / 4, rel=0.02)


def test_a_measurement_says_what_it_counts(predictor):
    run = predict(predictor)
    kinds = "nvidia-smi", "torch max reserved", "torch max allocated"
    device, blocks, tensors = map(run.measured_bytes, kinds)
    assert device > blocks > tensors
    assert run.measured_bytes("as printed") == blocks
    assert reserved_bytes(80, limit=90) == 90  # a full device gives cached blocks back


def test_an_optimizer_that_steps_all_at_once_needs_copies_of_all(predictor):
    layout = {"framework": "InternEvo", "zero_stage": 0, "microbatch": 1, "global_batch": 8}
    run = predict(predictor, **layout, hidden=1024, ffn=8192, recompute="full", pp=1, dp=8)
    terms = dict(run.stages[0].memory_terms)
    elements = terms["parameters"] / 2
    assert terms["temporaries"] == pytest.approx(12 * elements, rel=0.01)  # a gradient, two roots
    assert terms["gradients"] == pytest.approx(2 * elements, rel=0.01)


def test_an_eager_loss_holds_three_tensors_of_the_logits(predictor):
    wide = {"vocab": 65536, "tp": 1, "pp": 1, "dp": 16, "zero_stage": 3, "framework": "torchtitan"}
    compiled, eager = (predict(predictor, **wide, year=year) for year in (2025, 2024))
    logits = 2 * 512 * 65536 * 4
    assert logits < eager.allocated_bytes - compiled.allocated_bytes <= 2 * logits


def test_selective_checkpointing_lies_between_none_and_full(predictor):
    none, some, full = (
        predict(predictor, recompute=recompute) for recompute in ("none", "selective_op", "full")
    )
    assert none.allocated_bytes > some.allocated_bytes > full.allocated_bytes
    assert none.step_seconds < some.step_seconds < full.step_seconds


def test_operands_of_8_bits_wait_as_they_are_and_weights_twice(predictor):
    row = {"gpu": "H100-SXM", "pp": 1, "dp": 16, "tp": 1, "zero_stage": 1, "year": 2025}
    plain, recipe, cached = (
        predict(predictor, **row, framework=framework, precision=precision)
        for framework, precision in (("nemo", "bf16"), ("nemo", "fp8"), ("megatron", "fp8"))
    )
    saved = [dict(run.stages[0].memory_terms)["activations"] for run in (plain, recipe, cached)]
    assert saved[0] > saved[1] == saved[2]
    terms = sum(b for name, b in cached.stages[0].memory_terms if name not in ("runtime", "margin"))
    assert cached.allocated_bytes > terms
    assert recipe.allocated_bytes < plain.allocated_bytes


def test_what_waits_in_host_memory_is_not_on_the_device(predictor):
    on_device, inputs, optimizer = (
        dict(predict(predictor, recompute="full", offload=offload).stages[0].memory_terms)
        for offload in ("none", "checkpoints", "optimizer")
    )
    assert on_device["activations"] > inputs["activations"] == 0
    assert on_device["optimizer"] > optimizer["optimizer"] == 0
    assert "offload 'disk' is not known" in assume({**ROW, "offload": "disk"}).notes[0]


def test_a_row_says_whether_tensor_parallel_collectives_overlap(predictor):
    rows = {"framework": "torchtitan", "year": 2025, "dp": 2, "tp": 4, "hidden": 2048, "ffn": 8192}
    apart, beside = (predict(predictor, **rows, tp_overlap=overlap) for overlap in (0, 1))
    assert beside.step_seconds < apart.step_seconds


def test_heads_that_nobody_names_are_as_wide_as_usual():
    assert usual_heads(4096, 8) == 32
    assert usual_heads(14400, 8) == 120
    assert read_architecture({**ROW, "heads": "", "kv_heads": ""}).heads == 2


def test_a_vocabulary_is_padded_where_tensor_ranks_do_not_divide_it():
    assert padded_vocabulary(50257, 1) == 50257
    assert padded_vocabulary(50257, 8) == 51200
    assert padded_vocabulary(128256, 8) == 128256


def test_fused_attention_is_faster_and_smaller(predictor):
    shape = {"microbatch": 8, "seq_len": 2048, "global_batch": 128}
    written = predict(predictor, **shape, flash_attn=0)
    assert predict(predictor, **shape).step_seconds < written.step_seconds
    assert predict(predictor, **shape).allocated_bytes < written.allocated_bytes
    years = (predict(predictor, **shape, framework="Megatron", year=y) for y in (2022, 2024))
    first, second = (run.step_seconds for run in years)
    assert first > 1.1 * second


def test_the_head_of_an_8_bit_run_has_16(predictor):
    head = {"layers": 2, "hidden": 2048, "ffn": 256, "vocab": 65536, "microbatch": 32}
    alone = {"num_gpus": 1, "dp": 1, "tp": 1, "pp": 1, "zero_stage": 0, "gpu": "H100"}
    wide, narrow = (predict(predictor, **head, **alone, precision=p) for p in ("bf16", "fp8"))
    assert 0.9 * wide.step_seconds < narrow.step_seconds < wide.step_seconds


def test_small_kernels_wait_for_the_host(predictor):
    small = {"microbatch": 1, "seq_len": 128, "global_batch": 4, "recompute": "full"}
    small["framework"] = "FSDP2"
    eager, compiled = predict(predictor, **small), predict(predictor, **small, compile=1)
    assert compiled.step_seconds < 0.6 * eager.step_seconds


def test_experts_and_context_are_priced(predictor):
    mixed = {"experts": 8, "topk": 2, "moe_ffn": 512, "tp": 1, "sp": 0, "pp": 1, "dp": 16}
    apart, whole = predict(predictor, **mixed, ep=8), predict(predictor, **mixed)
    assert apart.allocated_bytes < whole.allocated_bytes
    split = predict(predictor, cp=2, dp=2)
    assert split.candidate.strategies[0].size("cp") == 2


def test_adapters_train_little(predictor):
    tuned, trained = predict(predictor, task="lora"), predict(predictor)
    assert tuned.step_seconds < trained.step_seconds
    terms = dict(tuned.stages[0].memory_terms)
    assert terms["optimizer"] < terms["parameters"]


@pytest.mark.parametrize("adapter", [0, 8])
def test_deep_models_are_sound(adapter):
    shape = Architecture(64, 4, 4, 128, 96, 16, 16, adapter_rank=adapter)
    traced = trace(shape, shape.kinds(3), 4, "bfloat16")
    deep = deepen(traced, [0, 1, *[2] * 5])
    verify_model(deep)
    assert sum(c.path.startswith("layers.") for c in deep.calls) == 7
    same = deepen(traced, [0, 1, 2])
    assert len(same.parameters) == len(traced.parameters)


def test_the_command_writes_every_row(tmp_path, capsys):
    rows, out = tmp_path / "runs.csv", tmp_path / "out.csv"
    with rows.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*ROW, "colour"])
        writer.writeheader()
        writer.writerows([{**ROW, "colour": "red"}, {**ROW, "row_id": "r2", "tp": "3"}])
    assert main(["predict", str(rows), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predicted"] == 1
    good, bad = csv.DictReader(out.open())
    assert list(good) == [
        "row_id",
        "predicted_step_time_s",
        "predicted_peak_mem_gb",
        "fits",
        "note",
        "predicted_step_time_low_s",
        "predicted_step_time_high_s",
    ]
    assert float(good["predicted_step_time_s"]) > 0
    assert good["fits"] == "1"
    assert (bad["row_id"], bad["predicted_step_time_s"]) == ("r2", "")
    assert "24 devices" in bad["note"]


def test_a_file_that_is_no_table_exits_6(tmp_path):
    file = tmp_path / "runs.csv"
    file.write_text("a,b\n1,2\n")
    assert main(["predict", str(file), "-o", str(tmp_path / "out.csv")]) == 6
    assert main(["predict", str(tmp_path / "none.csv"), "-o", str(tmp_path / "out.csv")]) == 6


def test_the_inputs_of_recomputed_layers_wait(predictor):
    """Each layer's input is kept: tokens times hidden, two bytes each, whole along no axis."""
    alone = {"num_gpus": 1, "dp": 1, "tp": 1, "sp": 0, "pp": 1, "global_batch": 2}
    shallow, deep = (
        dict(predict(predictor, **alone, recompute="full", layers=n).stages[0].memory_terms)
        for n in (4, 12)
    )
    inputs = 8 * 2 * 512 * 256 * 2
    assert deep["activations"] - shallow["activations"] == inputs
