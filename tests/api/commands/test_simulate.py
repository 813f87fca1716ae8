"""`plait simulate`: a slow rank slows its stage and no other, lost links cost what passes them."""

import json

import pytest

from plait.api.cli import main
from plait.api.plans.plan_object import load_plan
from plait.cost_model.what_if import Conditions, LostLink, simulate_step
from plait.tests.paths import LLAMA


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulate")
    plan_file = str(folder / "plan.json")
    command = [
        "plan",
        LLAMA,
        "--cluster",
        "2x4xh100",
        "--pin",
        "*:pp=2,dp=2,tp=2",
        "--schedule",
        "1f1b",
    ]
    assert main([*command, "--micro-batches", "4", "-o", plan_file]) == 0
    return plan_file


def test_nothing_changed_is_the_plan(file):
    plan = load_plan(file)
    made = simulate_step(plan, Conditions())
    assert made.step_seconds == pytest.approx(plan.prediction.step_seconds, rel=0.02)
    work = [4 * (s.forward_seconds + s.backward_seconds) for s in plan.stages]
    assert made.timeline.busy_seconds == pytest.approx(work)


def test_a_slow_rank_slows_its_stage_alone(file):
    plan = load_plan(file)
    before = simulate_step(plan, Conditions())
    after = simulate_step(plan, Conditions(slow=((5, 3.0),)))
    assert after.timeline.busy_seconds[0] == pytest.approx(before.timeline.busy_seconds[0])
    assert after.timeline.busy_seconds[1] > 1.2 * before.timeline.busy_seconds[1]
    assert after.timeline.bubbles[0] > before.timeline.bubbles[0]
    assert after.step_seconds > before.step_seconds
    both = simulate_step(plan, Conditions(slow=((5, 3.0), (4, 2.0))))
    assert both == after  # the others of the stage wait for rank 5 anyway
    quick = simulate_step(plan, Conditions(slow=((5, 0.5),)))
    assert quick == before  # a quick rank waits for the others


def test_lost_links_cost_what_passes_them(file):
    plan = load_plan(file)
    before = simulate_step(plan, Conditions())
    half = simulate_step(plan, Conditions(lost=(LostLink(1, 0.5),)))
    gone = simulate_step(plan, Conditions(lost=(LostLink(1, 1.0),)))
    assert before.step_seconds < half.step_seconds < gone.step_seconds
    one = simulate_step(plan, Conditions(lost=(LostLink(1, 1.0, rank=0),)))
    assert one.timeline.busy_seconds[1] == pytest.approx(before.timeline.busy_seconds[1])
    assert one.timeline.busy_seconds[0] == pytest.approx(gone.timeline.busy_seconds[0])
    outer = simulate_step(plan, Conditions(lost=(LostLink(0, 0.5),)))
    assert outer.timeline.busy_seconds == pytest.approx(  # only sends pass it
        before.timeline.busy_seconds
    )
    assert outer.timeline.makespan_seconds > before.timeline.makespan_seconds


def test_text_and_json(file, capsys):
    capsys.readouterr()
    assert main(["simulate", file, "--slow", "rank3=1.3", "--link-down", "network=0.5"]) == 0
    text = capsys.readouterr().out
    assert "stage 1   ." in text
    assert "F" in text.splitlines()[-1]
    assert main(["simulate", file, "--slow", "rank3=1.3", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["step_time_s"] > body["planned_step_time_s"]
    assert [x["devices"] for x in body["stages"]] == [[0, 3], [4, 7]]
    assert len(body["events"]) == 2 * 2 * 4


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--slow", "rank8=2"], 2, "rank0 to rank7"),
        (["--slow", "rank1"], 2, "not a number"),
        (["--slow", "rank1=nan"], 2, "times as long"),
        (["--slow", "rank1=2", "--slow", "rank1=3"], 2, "twice"),
        (["--link-down", "fibre"], 2, "network, scale_up"),
        (["--link-down", "network=2"], 2, "at most 1"),
        (["--link-down", "network"], 3, "outermost"),
    ],
)
def test_what_is_not_there_is_named(file, capsys, arguments, code, says):
    assert main(["simulate", file, *arguments]) == code
    assert says in capsys.readouterr().err
