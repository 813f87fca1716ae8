"""`plait calibrate --log`: steps made with known factors give them back; bad lines are named."""

import json

import pytest

from plait.api.cli import main
from plait.api.plans.plan_object import load_plan
from plait.cost_model.calibration.fit import MeasuredStep, fit
from plait.cost_model.explain.step_terms import step_term
from plait.cost_model.hardware import load_cluster
from plait.cost_model.scaled_cluster import ScaleFactors, scaled_cluster

TRUE = ScaleFactors(compute=1.7, communication=0.6, overhead=2.5)
STRATEGIES = ("dp=4", "tp=4", "dp=2,tp=2", "pp=2,dp=2", "zero3=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, llama_file):
    folder_path = tmp_path_factory.mktemp("log")
    for i, strategy in enumerate(STRATEGIES):
        command = ["plan", llama_file, "--cluster", "local:4", "--pin", f"*:{strategy}"]
        assert main([*command, "-o", str(folder_path / f"plan{i}.json")]) == 0
    return folder_path


def steps(folder):
    plans = [load_plan(folder / f"plan{i}.json") for i in range(len(STRATEGIES))]
    return [
        MeasuredStep(p, step_term(p, scaled_cluster(p.cluster, TRUE)).value, 1 << 30) for p in plans
    ]


def test_factors_are_found_again_and_one_bad_step_hardly_matters(folder):
    rows = steps(folder) * 4
    made = fit(rows, rows[0].plan.cluster, "a log")
    assert made.factors.compute == pytest.approx(1.7, rel=0.05)
    assert made.factors.communication == pytest.approx(0.6, rel=0.1)
    assert made.error_after < 0.01 < made.error_before
    rows[0] = MeasuredStep(rows[0].plan, 20 * rows[0].step_seconds)
    again = fit(rows, rows[0].plan.cluster, "a log")
    assert again.factors.compute == pytest.approx(1.7, rel=0.1)


def test_the_file_has_the_factors_and_says_so(folder, capsys):
    log = folder / "steps.jsonl"
    rows = []
    for i, step in enumerate(steps(folder)):
        named = {"plan": f"plan{i}.json"} if i % 2 else {"digest": step.plan.digest}
        peak = step.plan.peak_bytes
        rows.append({**named, "step_seconds": step.step_seconds, "peak_bytes": peak + (10 << 20)})
    log.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    capsys.readouterr()
    machine = str(folder / "machine.toml")
    assert main(["calibrate", "--log", str(log), "-o", machine, "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["steps"] == len(STRATEGIES)
    assert body["error_after"] < 0.02
    calibrated, before = load_cluster(machine), load_cluster("local:4")
    assert calibrated.device.peak("float32") < before.device.peak("float32")
    runtime = before.device.runtime_overhead_bytes + (10 << 20)
    assert calibrated.device.runtime_overhead_bytes == pytest.approx(runtime, rel=1e-5)
    assert calibrated.device.source_of("tflops").startswith("fitted to 5 steps of steps.jsonl")
    assert calibrated.device.source_of("achievable").startswith("assumed")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"plan": "plan0.json"}', "step_seconds"),
        ('{"plan": "plan0.json", "step_seconds": -1}', "not the length"),
        ('{"plan": "none.json", "step_seconds": 1}', "none.json"),
        ('{"plan": "plan0.json", "digest": "00", "step_seconds": 1}', "either plan"),
        ('{"digest": "00", "step_seconds": 1}', "no plan beside"),
        ('{"plan": "plan0.json", "step_seconds": 1, "peak": 3}', "peak"),
        ("step 1 took long", "malformed"),
    ],
)
def test_bad_lines_are_named_one_by_one(folder, tmp_path, capsys, line, says):
    log = folder / "bad.jsonl"
    log.write_text(f'{{"plan": "plan0.json", "step_seconds": 1}}\n{line}\n[]\n')
    out = tmp_path / "machine.toml"
    assert main(["calibrate", "--log", str(log), "-o", str(out)]) == 6
    text = capsys.readouterr().err
    assert "line 2: " in text
    assert "line 3: " in text
    assert says in text
    assert not out.exists()
