"""The server answers as the commands do, keeps nothing that changes an answer, and refuses with a way
out."""

import json
import random

import pytest

from plait.api.cli import main
from plait.api.serve.json_lines import serve
from plait.api.serve.methods import METHODS, schema, what_if
from plait.api.serve.requests import Change, PlanningJob, WhatIfParams
from plait.api.serve.session import Session, fastest, other_batch
from plait.tests.sampling import some

CHANGES = {
    "global_batch": (8, 24, 64),
    "memory": ("1300MiB", "2GiB", "40GiB"),
    "cluster": ("8xh100", "2xh100", "2x4xh100", "4xa100-40", "4xl40s"),
    "pin": (
        "*:tp=4",
        "*:zero3=4",
        "pp=2,dp=2",
        "model.layers.0:dp=2,tp=2",
        "model.layers.[1-2]:tp=4",
    ),
}


@pytest.fixture(scope="module")
def model(llama_file):
    return llama_file


@pytest.fixture(scope="module")
def session():
    return Session()


@pytest.fixture
def ask(model, session):
    """The answer to one request about the model on 4 devices."""

    def of(method, **params):
        params = {"source": model, "cluster": "4xh100", **params}
        (line,) = serve([json.dumps({"id": 7, "method": method, "params": params})], session)
        answer = json.loads(line)
        assert answer["id"] == 7
        return answer.get("result") or answer["error"]

    return of


def test_a_plan_is_that_of_the_command(ask, model, tmp_path, capsys):
    assert main(["plan", model, "--cluster", "4xh100", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    answer = ask("plan")
    times = {"plan_time_s": {}}
    assert answer | times == printed | times


def question(model, seed):
    """A request that a seed draws."""
    draw = random.Random(seed)
    params = {"source": model, "cluster": "4xh100"}
    if draw.random() < 0.2:
        strategy = draw.choice(("dp=4", "tp=4", "pp=2,tp=2", "zero3=4"))
        return {"method": "fits", "params": {**params, "strategy": strategy, "memory": "1500MiB"}}
    if draw.random() < 0.1:
        return {"method": "compare", "params": {**params, "against": "ddp,fsdp,megatron:tp=2"}}
    names = draw.sample(list(CHANGES), draw.choice((1, 1, 1, 2)))
    change = {name: draw.choice(CHANGES[name]) for name in names}
    return {"method": "what_if", "params": {**params, "change": change}}


@pytest.mark.parametrize("seed", some(range(40), 40))
def test_a_warm_answer_is_the_cold_one(model, session, seed):
    asked = [json.dumps(question(model, s)) for s in (seed + 1000, seed)]
    warm = list(serve(asked, session))[1]
    (cold,) = serve(asked[1:], Session())
    assert warm == cold


def test_another_batch_is_priced_as_a_pinned_plan_is(ask, session, model):
    job = PlanningJob(model, "4xh100")
    row = ask("what_if", change={"global_batch": 32})["after"]
    pinned = PlanningJob(model, "4xh100", global_batch=32, pins=(row["word"],))
    space = session.space(pinned)
    same = [
        c
        for c in space.candidates
        if (c.micro_batches, c.memory_text) == (row["micro_batches"], row["memory"])
    ]
    close = [pytest.approx(c.step_seconds, rel=5e-3) for c in same]  # layers keep their prices
    assert row["step_time_s"] in close
    assert other_batch(session.space(job), 16).candidates


def test_more_nodes_are_priced_as_a_search_there_prices_them(session, model):
    params = WhatIfParams(model, "2x4xh100", change=Change(cluster="4x4xh100"))
    answer = what_if(session, params)
    row = answer["after"]
    assert not answer["exact"]
    space = session.space(PlanningJob(model, "4x4xh100", pins=(row["word"],)))
    same = [
        c.step_seconds
        for c in space.candidates
        if (c.micro_batches, c.memory_text) == (row["micro_batches"], row["memory"])
    ]
    assert row["step_time_s"] in [pytest.approx(seconds, rel=1e-9) for seconds in same]


def test_a_pin_of_some_layers_leaves_the_others_as_they_are(ask):
    answer = ask("what_if", change={"pin": "model.layers.0:dp=2,tp=2"})
    assert "dp=2,tp=2" in answer["after"]["word"]
    assert not answer["exact"]
    assert answer["gain"] <= 1e-9


def test_another_cluster_and_a_pin(ask):
    wider = ask("what_if", change={"cluster": "2x4xh100", "global_batch": 16})
    assert wider["after"]["word"] != ""
    pinned = ask("what_if", change={"pin": "*:tp=4"})
    assert pinned["after"]["word"] == "tp=4"
    assert pinned["gain"] <= 0


def test_what_does_not_fit_says_what_would(ask):
    free = ask("plan")["memory"][0]["peak"]
    answer = ask("fits", strategy="pp=2,dp=2", memory=f"{(free >> 20) + 1}MiB")
    assert answer["fits"] or answer["smallest_change"]["fits"]
    refused = ask("plan", memory="1GiB")
    assert refused["kind"] == "InfeasibleError"
    assert refused["exit_code"] == 3
    change = refused["smallest_change"]["change"]
    assert ask("plan", memory=change.removeprefix("--memory "))["status"]


def test_compare_and_explain(ask):
    rows = ask("compare", against="ddp,megatron:tp=2")["baselines"]
    assert [r["name"] for r in rows] == ["ddp", "megatron:tp=2"]
    assert ask("explain", of_memory=True)["terms"]
    assert ask("plan", engine="torchtitan")["word"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("nonsense", "not JSON"),
        ("[1]", "an object"),
        ('{"id": 1, "method": "dance"}', "unknown method"),
        ('{"method": "plan", "params": {"source": "m.json"}}', "cluster"),
        ('{"method": "plan", "params": {"source": "m.json", "cluster": "4xh100"}}', "m.json"),
        ('{"method": "plan", "params": {"source": 1, "cluster": "4xh100"}}', "source"),
        ('{"method": "plan", "params": {"source": "m", "cluster": "c", "x": 1}}', "x"),
        ('{"method": "plan", "params": {"source": "m.json", "cluster": "9xz"}}', "9xz"),
    ],
)
def test_bad_requests_are_answered(line, what, session):
    (answer,) = serve([line], session)
    assert what in json.loads(answer)["error"]["message"]


def test_schemas_are_those_of_the_structs(model):
    (line,) = serve(['{"method": "schemas"}'])
    schemas = json.loads(line)["result"]
    assert set(schemas) == set(METHODS)
    for name in METHODS:
        assert schemas[name] == json.loads(json.dumps(schema(name)))
        assert {"source", "cluster"} <= set(schemas[name]["properties"])
        assert schemas[name]["additionalProperties"] is False
    assert Change(memory="1GiB").apply(PlanningJob(model, "4xh100")).memory == "1GiB"


def test_the_mcp_server_has_a_tool_per_method(model, session):
    pytest.importorskip("mcp")
    anyio = pytest.importorskip("anyio")
    from mcp import Client

    from plait.api.serve.mcp_server import server

    async def talk():
        async with Client(server(session)) as client:
            tools = await client.list_tools()
            arguments = {"source": model, "cluster": "4xh100"}
            good = await client.call_tool("fits", arguments)
            bad = await client.call_tool("plan", {**arguments, "memory": "1GiB"})
            return [tool.name for tool in tools.tools], good, bad

    names, good, bad = anyio.run(talk)
    assert names == list(METHODS)
    assert good.structured_content["fits"]
    assert bad.is_error
    assert bad.structured_content["smallest_change"]


def test_a_model_file_keeps_its_tokens(ask):
    assert "hf: sources" in ask("what_if", change={"seq": 8})["message"]


@pytest.mark.long
def test_other_lengths_are_plans_that_can_be_had(tmp_path):
    file, session = tmp_path / "gpt2.json", Session()
    sizes = {"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 64, "n_positions": 64}
    file.write_text(json.dumps({"model_type": "gpt2", **sizes}))
    job = {"source": f"hf:{file}", "cluster": "4xh100", "seq": 16, "global_batch": 64}
    answer = what_if(session, WhatIfParams(**job, change=Change(seq=64)))
    searched = fastest(session.space(PlanningJob(**{**job, "seq": 64})))
    assert not answer["exact"]
    assert answer["before"]["step_time_s"] < answer["after"]["step_time_s"]
    assert searched.step_seconds <= answer["after"]["step_time_s"] <= 1.2 * searched.step_seconds
