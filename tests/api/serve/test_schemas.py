"""Schemas ship with the package as they are generated, and hold what is printed."""

import json
from pathlib import Path

import msgspec
import pytest

from plait.api.cli import main
from plait.api.serve.json_lines import answer
from plait.api.serve.reports import REPORTS, PlanReport
from plait.api.serve.schema_files import schema_text, schemas
from plait.api.serve.session import Session
from plait.tests.paths import ROOT

SHIPPED = ROOT / "api" / "serve" / "schemas"


def test_what_is_shipped_is_what_is_generated():
    generated = {f"{name}.json": schema_text(schema) for name, schema in schemas().items()}
    shipped = {path.name: path.read_text() for path in SHIPPED.glob("*.json")}
    assert shipped == generated, "python -m plait.api.serve.schema_files api/serve/schemas"


def test_answers_are_their_reports(tmp_path, capsys, llama_file):
    model, session = llama_file, Session()
    capsys.readouterr()
    pinned = ["plan", model, "--cluster", "2xh100", "--pin", "dp=2"]
    assert main([*pinned, "-o", str(tmp_path / "plan.json"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert msgspec.convert(printed, PlanReport)
    job = {"source": model, "cluster": "2xh100"}
    requests = {
        "plan": job,
        "what_if": {**job, "change": {"global_batch": 32}},
        "fits": {**job, "strategy": "dp=2", "memory": "1145MiB"},
        "compare": {**job, "against": "ddp,megatron:tp=2"},
    }
    for name, params in requests.items():
        result = answer(json.dumps({"method": name, "params": params}), session)
        assert msgspec.convert(result["result"], REPORTS[name])
    refused = answer(json.dumps({"method": "plan", "params": {**job, "memory": "1GiB"}}), session)
    assert msgspec.convert(refused["error"], REPORTS["refusal"])
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(printed, schemas()["report.plan"])
    jsonschema.validate(json.loads((tmp_path / "plan.json").read_text()), schemas()["file.plan"])
    jsonschema.validate(json.loads(Path(model).read_text()), schemas()["file.model"])
