"""`plait plan --buckets`: what switching sends, against elements counted one by one."""

import json
from itertools import permutations
from math import prod

import pytest
import torch
from msgspec.structs import replace

from plait.api import load_plan, plan
from plait.api.cli import main
from plait.codegen.table import plan_table
from plait.ir.errors import MismatchError
from plait.ir.lowering.redistribute import redistribution_bytes
from plait.runtime.comm.slicing import flatten, local_shard
from plait.tests.paths import LLAMA

# fmt: off
STRATEGIES = (
    "zero3=8", "pp=2,zero1=4", "dp=2,tp=4", "zero3=2,zero1=2,tp=2", "pp=4,zero2=2",
    "dp=2,zero3=4@1/2", "zero3=4@5/7,tp=2",
)
# fmt: on
MIXED = ["*:zero3=8", "model.layers.[1-2]:zero3=4,tp=2"]
# fmt: off
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99,
}
# fmt: on


@pytest.fixture(scope="module")
def tables(llama):
    """Tables of programs of a small model by strategy."""
    return [
        plan_table(plan(llama, cluster="8xh100", pin=pin), llama) for pin in (*STRATEGIES, MIXED)
    ]


def local_elements(table, rank):
    """The numbers of the elements that a rank keeps, as the runtime cuts tensors: of every
    parameter's value, and of what the optimizer steps on, whose gradients it has."""
    values, states = {}, {}
    for parameter in (h for h in table.state_tensors if h.kind == "parameter"):
        mesh = table.meshes[parameter.mesh]
        place = mesh.coordinate(rank)
        where = {axis.name: (axis.size, at) for axis, at in zip(mesh.axes, place, strict=True)}
        if where.get("pp", (1, 0))[1] not in parameter.stages:
            continue
        whole = torch.arange(prod(parameter.type.shape)).reshape(parameter.type.shape)
        levels = [where.get(role, (1, 0)) for role in ("zero3", "zero2", "zero1")]
        local = local_shard(whole + 1, parameter.factors, parameter.layout, mesh, place)
        degree = prod(size for size, _ in levels)
        sharded, rest = -(-local.numel() // degree) * degree, 0
        if parameter.fraction != (1, 1):
            outer, (over, under) = levels[0][0], parameter.fraction
            sharded = -(-local.numel() * over // under // outer) * outer
            sharded = min(sharded, local.numel() // outer * outer)
            rest = local.numel() - sharded
        flat = flatten(local, sharded + rest)
        parts = []
        for number, (size, at) in enumerate(levels):
            flat, same = (flat[:sharded], flat[sharded:]) if number == 0 else (flat, flat[:0])
            flat = torch.cat((flat.view(size, -1)[at], same))
            parts.append(torch.zeros(whole.numel() + 1, dtype=torch.bool))
            parts[-1][flat] = True
            parts[-1][0] = False  # padding
        parts = parts[0], parts[-1]
        for name in parameter.names():
            values[name], states[name] = parts
    return values, states


def test_bytes_are_those_of_elements_counted_one_by_one(tables):
    shares = [[local_elements(table, rank) for rank in range(8)] for table in tables]
    pairs = list(permutations(range(len(tables)), 2))
    for old, new in pairs:
        counted = redistribution_bytes(tables[old], tables[new])
        for rank in range(8):
            for kind, (source, target) in enumerate(((old, new), (new, old))):
                needed, there = shares[target][rank][kind], shares[source][rank][kind]
                lacked = sum(
                    int((own & ~there.get(name, torch.tensor(False))).sum())
                    for name, own in needed.items()
                )
                assert 4 * lacked == (counted.parameters, counted.gradients)[kind][rank]
    assert len(pairs) == 56


def test_staying_sends_nothing_and_other_models_cannot_switch(tables):
    assert not any(sum(redistribution_bytes(t, t).by_rank) for t in tables)
    other = replace(tables[0], state_tensors=tables[0].state_tensors[1:])
    with pytest.raises(MismatchError, match="other parameters"):
        redistribution_bytes(tables[0], other)


def test_a_plan_for_every_length(tmp_path, capsys):
    file, out = tmp_path / "config.json", tmp_path / "plan.json"
    file.write_text(json.dumps(CONFIG))
    pins = ["--cluster", "4xh100", "--global-batch", "8"]
    asked = ["plan", f"hf:{file}", *pins, "--buckets", "16,64:4", "-o", str(out), "--json"]
    assert main(asked) == 0
    body = json.loads(capsys.readouterr().out)
    assert [(b["tokens"], b["global_batch"]) for b in body["buckets"]] == [(16, 8), (64, 4)]
    assert [load_plan(tmp_path / f"plan.{n}.json").global_batch for n in (16, 64)] == [8, 4]
    for row in body["switches"]:
        row_bytes = row["parameter_bytes"] + row["gradient_bytes"]
        assert sum(row["bytes_by_rank"]) == row_bytes
        assert max(row["bytes_by_rank"]) == row["worst_rank_bytes"]
        (away,) = (b for b in body["buckets"] if b["tokens"] == row["to"])
        running = [m["peak"] - m["terms"]["optimizer"] for m in away["memory"]]
        assert row["peak"] >= max(running)


def test_what_is_no_bucket_is_refused(tmp_path, capsys):
    assert main(["plan", LLAMA, "--cluster", "4xh100", "--buckets", "16,32"]) == 2
    assert "hf: source" in capsys.readouterr().err
    for text in ("", "16,16", "16:0", "16:a", "0"):
        assert main(["plan", "hf:no.json", "--cluster", "4xh100", "--buckets", text]) == 2
